"""Checks with their findings: printed, as a page and as JSON."""

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beit.draw.report import Section, Table, write_report
from beit.files import write_text
from beit.run.environment import environment

JSON, PAGE = "doctor.json", "report.html"
CLASSES, CUT_OFF = "classes", "cut_off"  # figures: findings on classes, values at the high end


class Check(NamedTuple):
    """One check: what was found, and advice; no advice if all is well.

    Attributes:
        must: whether the advice must be followed
    """

    name: str
    found: str
    advice: str = ""
    must: bool = False


class Findings(NamedTuple):
    """All checks, and what else the page and the JSON show.

    Attributes:
        title: of the page
        sections: of the page, after the table of checks
        values: for the JSON
        figures: the numbers that matter, by name
    """

    title: str
    checks: list[Check]
    sections: Sequence[Section] = ()
    values: Mapping[str, Any] = {}
    figures: Mapping[str, float] = {}


def show(checks: Sequence[Check]) -> None:
    """Print a line for each check, and its advice below; a mark where it must be followed."""
    width = max(len(check.name) for check in checks)
    screen, indent = max(60, shutil.get_terminal_size((100, 24)).columns), " " * (width + 4)
    for check in checks:
        mark = "!" if check.must else "·" if check.advice else " "
        texts = [(check.found, f"{mark} {check.name:<{width}}  ", indent)]
        texts += [(check.advice, f"{indent}→ ", f"{indent}  ")] if check.advice else []
        for text, first, others in texts:
            wrapper = textwrap.TextWrapper(screen, first, others, break_long_words=False)
            print(wrapper.fill(text))  # lists of numbers stay whole, to be pasted


def failures(checks: Sequence[Check]) -> list[str]:
    """Return what must be mended, a sentence each."""
    return [f"{check.name}: {check.found}; {check.advice}" for check in checks if check.must]


def check_output(output: str | None) -> None:
    """Refuse a folder that exists, unless it is empty or doctor's own."""
    if output is None:
        return
    folder = Path(output)
    if folder.exists() and not (
        folder.is_dir() and ((folder / JSON).is_file() or not any(folder.iterdir()))
    ):
        raise FileExistsError(
            f"{output} exists and is no earlier output of doctor; it is not overwritten, name "
            "another folder"
        )


def write(output: Path, found: Findings) -> Path:
    """Write the page and the JSON into a folder. Returns: the page."""
    output.mkdir(parents=True, exist_ok=True)
    about = environment("doctor")
    plain = [check._asdict() for check in found.checks]
    values = {"environment": about, "checks": plain, **found.values}
    write_text(output / JSON, json.dumps(values, indent=1) + "\n")
    columns = ["what", "found", "what to do"]
    columns = columns if any(check.advice for check in found.checks) else columns[:2]
    rows = [
        [check.name + " !" * check.must, check.found, check.advice][: len(columns)]
        for check in found.checks
    ]
    first = Section("What was found", "", [Table("", columns, rows)])
    must = ", ".join(dict.fromkeys(check.name for check in found.checks if check.must))
    summary = f"To mend, marked with !: {must}." if must else "Nothing must be mended."
    sections = [first, *found.sections]
    facts = {name: str(about[name]) for name in ("started", "machine", "python", "torch", "commit")}
    return write_report(output / PAGE, found.title, sections, facts, summary=summary)
