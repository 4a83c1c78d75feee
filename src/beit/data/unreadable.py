"""Unreadable images: each is reported once and counted; too many of them stop the run."""

import re
from collections.abc import Callable, Iterable, Iterator

from beit.data.batch import Batch

NAME = re.compile(r'"(?:\\.|[^"\\])*"(?=: )|.*?(?=: |\Z)', re.DOTALL)  # of an UnreadableImage
OPTION = re.compile(r"SOURCE\?(\S*[^\s,;])")  # of the string of the data, if a reason asks for it
_NAMED = 4  # further images named in an error
_FEW = 20  # images, of which one may be unreadable even if it is a larger share than allowed


def allowed(total: int, limit_share: float) -> float:
    """Return how many of `total` images may be unreadable: a share, or one if they are not few."""
    return max(limit_share * total, 1.0 if limit_share and total >= _FEW else 0.0)


class TooManyUnreadable(ValueError):  # noqa: N818 - reads as the state of a set
    """A larger share of a set cannot be read than `max_unreadable` allows."""


class Unreadable:
    """Counts unreadable images of `total`; too large a share, in [0, 1], is an error."""

    def __init__(self, total: int, limit_share: float) -> None:
        self.total, self.limit_share, self.names = total, limit_share, set[str]()

    def add(self, names: Iterable[str]) -> list[str]:
        """Count the images of `Batch.unreadable`. Returns: the new ones, for the log."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(new)
        return new

    def note(self, names: Iterable[str]) -> list[str]:
        """Count images, and `check`. Returns: the new ones."""
        new = self.add(names)
        self.check()
        return new

    def check(self) -> None:
        """Raise TooManyUnreadable if they are more than the limit."""
        count = len(self.names)
        if count > allowed(self.total, self.limit_share):
            advice = (
                "Repair or remove them, or leave them out (beit doctor DATA --write clean.csv, "
                "then --data clean.csv), or raise max_unreadable (of a training, "
                "--data.max_unreadable)"
            )
            raise TooManyUnreadable(
                f"{count} of {self.total} images cannot be read, more than the allowed "
                f"{100 * self.limit_share:.4g}%: {described(self.names, advice)}"
            )

    def state_dict(self) -> dict[str, list[str]]:
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        """Restore the names; none if they were too many and have stopped the run for repair."""
        many = len(state["names"]) > allowed(self.total, self.limit_share)
        self.names = set() if many else set(state["names"])


def described(names: Iterable[str], advice: str) -> str:
    """Name the first of some unreadable images with its reason, a few others, and what to do.

    Images come first whose reason asks for an option of the data; it is then the only advice.
    """
    first, *others = sorted(names, key=lambda name: (OPTION.search(name) is None, name))
    if OPTION.search(first):
        return first
    also = ", ".join(NAME.findall(name)[0] for name in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{first}{f'. Also {also}{more}' if also else ''}. {advice}"


def readable(
    batches: Iterable[Batch], unreadable: Unreadable, warn: Callable[[str], None]
) -> Iterator[Batch]:
    """Yield the batches of `EvalBatches` that have images; count and report unreadable images."""
    for batch in batches:
        for name in unreadable.note(batch.unreadable):
            warn(f"unreadable, left out: {name}")
        if len(batch.indices):
            yield batch
