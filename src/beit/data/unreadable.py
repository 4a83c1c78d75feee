"""Images that cannot be read: each is named once, counted, and held against a limit."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from beit.data.batch import Batch


class Unreadable:
    """Keeps count of unreadable images, and stops the run when they are too large a share."""

    def __init__(self, total: int, limit_share: float) -> None:
        """Start with none.

        Args:
            total: images of the set
            limit_share: largest share of them that may be unreadable, in [0, 1]
        """
        self.total = total
        self.limit_share = limit_share
        self.names: set[str] = set()

    def note(self, names: Sequence[str]) -> list[str]:
        """Take in `Batch.unreadable`. Returns: those not seen before, to be logged."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(new)
        self.check(len(self.names))
        return new

    def check(self, count: int) -> None:
        """Raise ValueError if so many unreadable images are more than the limit."""
        if count > self.limit_share * self.total:
            first = "; ".join(sorted(self.names)[:5])
            raise ValueError(
                f"{count} of {self.total} images cannot be read, more than the allowed "
                f"{self.limit_share:.3%}: {first}. Repair or remove them, or raise max_unreadable"
            )

    def state_dict(self) -> dict[str, list[str]]:
        """Return what a checkpoint keeps."""
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        """Restore what `state_dict` returned."""
        self.names = set(state["names"])


def readable(
    batches: Iterable[Batch], unreadable: Unreadable, warn: Callable[[str], None]
) -> Iterator[Batch]:
    """Yield the batches of an evaluation that hold images; report those that cannot be read.

    Args:
        batches: of `EvalBatches`, or prefetched from them
        unreadable: counts them
        warn: shows a line to the user
    """
    for batch in batches:
        for name in unreadable.note(batch.unreadable):
            warn(f"unreadable, left out: {name}")
        if len(batch.indices):
            yield batch
