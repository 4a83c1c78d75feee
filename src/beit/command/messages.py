"""Error messages: suggestions of names, jsonargparse's errors in plain words, one line each."""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the nearest name: first by its last part (`--epochs`) or its initials (`--lr`)."""

    def tail(dotted: str) -> str:
        return dotted.lstrip("-").rpartition(".")[2]

    def initials(dotted: str) -> str:
        return "".join(word[:1] for word in tail(dotted).split("_"))

    choices = sorted(known)
    same = [choice for choice in choices if tail(name) in (tail(choice), initials(choice))]
    near = get_close_matches(name, same, 1, 0.0) or get_close_matches(name, choices, 1, cutoff)
    if not near:
        tails = get_close_matches(tail(name), map(tail, choices), 1, cutoff)
        near = [choice for choice in choices if tail(choice) in tails]
    return f"; did you mean {near[0]}?" if near else "."


def in_plain_words(message: str) -> str:
    """Rewrite an error of jsonargparse for users of the command, in one line."""
    union = (
        r"(?s)Does not validate against any of the Union subtypes\s+Subtypes: \[.*?\]\s+Errors:"
        r"\s+- (.*?)(?:\s+- Expected a <class 'NoneType'>)?\s+Given value type:.*?Given value: (.*)"
    )
    group = r"\1 is a group of options, got \2; give one of them, as in --device.accelerator cuda"
    for pattern, replacement in (
        (r"(?s)Parser key \"(\w+)\":\s+Unable to load config '(\w+)'.*", group),
        (union, r"\1 (got \2)"),
        (r"Problem with given class_path '[^']*':\s*", ""),
        (r"NestedArg\(key='(\w+)', val='(.*?)'\)", r"\1=\2"),
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"an? <class '(?:\w+\.)*(\w+)'>", r"\1"),
        (r"an? typing\.Literal", "one of "),
        (r"Expected int\s+- Expected tuple", "expected a number, or several, as in [224,320]"),
        (r"Expected tuple(?: \(got |\. Got value: )([\w.,-]+)\)?", r"expected a list, as in [\1]"),
    ):
        message = re.sub(pattern, replacement, message)
    return " ".join(message.replace("typing.", "").split())


def one_line(error: Exception) -> str:
    """Return an error's message in one line; for system errors the file and the reason."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message += "; allow more open files (ulimit -n 4096), or use fewer workers (num_workers)"
    return " ".join(message.split())
