"""Unreadable images: each is reported once and counted; too many of them stop the run."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from beit.data.batch import Batch


class Unreadable:
    """Counts unreadable images of `total`; too large a share, in [0, 1], raises ValueError."""

    def __init__(self, total: int, limit_share: float) -> None:
        self.total, self.limit_share, self.names = total, limit_share, set[str]()

    def note(self, names: Sequence[str]) -> list[str]:
        """Count the images of `Batch.unreadable` and check. Returns: the new ones, for the log."""
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
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        self.names = set(state["names"])


def readable(
    batches: Iterable[Batch], unreadable: Unreadable, warn: Callable[[str], None]
) -> Iterator[Batch]:
    """Yield the batches of `EvalBatches` that have images; count and report unreadable images."""
    for batch in batches:
        for name in unreadable.note(batch.unreadable):
            warn(f"unreadable, left out: {name}")
        if len(batch.indices):
            yield batch
