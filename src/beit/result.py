"""What a call of a verb returns: what it wrote, its figures, its rows or its model."""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from beit.command.ending import last_values
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Item, Picture, embedded
from beit.rows.files import read_about, read_table
from beit.run.directory import RunDirectory
from beit.run.journal import Result as Trained

PATHS = ("directory", "file", "output", "report", "card")  # fields of the verbs' own results
MOST_PICTURES, MOST_FIGURES = 3, 6  # shown
WIDE = 800  # pixels; text of wider pictures would be too small beside another one
LARGEST_PAGE = 6_000_000  # bytes of a page that is shown in a notebook, which keeps them
# For `themed_svg`: ink is the notebook's, light or dark, and the other colours show on both.
CAPTION = "font-size:85%;opacity:.75"
FRAME = "width:100%;height:50em;border:1px solid #8886"
STYLE = "--ink:currentColor;--faint:#84898f;--rule:#8886;--series-1:#4a8ad8;--series-2:#dd7433"


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a verb. The fields of the verb's own result are attributes as well.

    Attributes:
        verb: of the command
        config: its settings, complete
        value: what the verb's `run` returned
        ending: of the verb, which the command prints
        temporary: the rows are in `arrays` only, no file is kept
        path: what was written, a directory or a file; None for nothing
        figures: by name, shares as fractions; of a training the last ones of its log, but those of
            the validation are of the weights that it kept
    """

    verb: str
    config: Any
    value: Any
    ending: Callable[[Any, Any], Any] | None = None
    temporary: bool = False
    path: Path | None = field(init=False)
    figures: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        named = [getattr(self.value, name, None) for name in PATHS]
        path = next((path for path in named if path), getattr(self.config, "output", None))
        object.__setattr__(self, "path", None if self.temporary or not path else Path(path))
        figures = getattr(self.value, "figures", None)
        if isinstance(self.value, Trained):
            file = RunDirectory(self.value.directory).metrics_file
            kept = self.value.metrics
            last = last_values(file, kept) if file.exists() else kept  # no file on other nodes
            figures = {n: v for n, v in last.items() if n not in ("step", "epoch", "warning")}
        elif not isinstance(figures, Mapping):  # counts, such as rows or images
            fields = self.value._asdict() if hasattr(self.value, "_asdict") else {}
            figures = {name: value for name, value in fields.items() if isinstance(value, int)}
        object.__setattr__(self, "figures", dict(figures))
        if self.temporary:
            self.arrays, self.about  # noqa: B018  # while the file is there

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__.get("value")  # not there yet in a copy that is being made
        if name.startswith("_") or not hasattr(value, name):
            raise AttributeError(f"this result has no {name!r}")
        return getattr(value, name)

    @cached_property
    def summary(self) -> str:
        """The figure that matters, in words; empty if the verb has none."""
        ending = self.ending and self.ending(self.config, self.value)
        return ending.figure if ending else ""

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, in eval mode: `beit.load(result.path)`."""
        from beit.weights.open import load

        if self.path is None:
            raise ValueError(f"{self.verb} has made no model")
        return load(self.path)

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of the table that `embed`, `tokenize` or `predict` made, by name."""
        return read_table(self._table)

    @cached_property
    def about(self) -> dict[str, Any]:
        """How that table was made: its model and settings; `label_names` by the labels' numbers."""
        return read_about(self._table)

    @property
    def _table(self) -> Path:
        file = getattr(self.value, "file", None)
        if file is None:
            raise ValueError(f"{self.verb} has made no table; embed, tokenize and predict make one")
        return Path(file)

    @cached_property
    def pictures(self) -> list[Picture]:
        """Some pictures: the first of each section of the report, or those in files."""
        found = []
        for section in getattr(self.value, "sections", ()):
            found += [picture for item in section.items for picture in _captioned(item)][:1]
        for file in () if found else self._picture_files()[:MOST_PICTURES]:
            found.append(Picture("", file.stem, file.read_bytes(), "image/png"))
        return found[:MOST_PICTURES]

    def _picture_files(self) -> list[Path]:
        """List the pictures that the verb wrote, or those in the folder of its report, in order."""
        named, path = getattr(self.config, "picture", None), self.path
        if named or path is None:
            return [Path(named)] if named else []
        folder = path.parent if path.name == "report.html" else path
        if not folder.is_dir():
            return [path] * _is(path, ".png")
        return sorted(folder.rglob("*.png"), key=lambda file: (file.stat().st_mtime_ns, file))

    @property
    def _page(self) -> str:
        """The page to browse that the verb wrote, as text; empty without one, or if it is large."""
        page = self.path if _is(self.path, ".html") else self.path and self.path / "explorer.html"
        if page is None or page.name == "report.html" or not page.is_file():
            return ""
        return page.read_text("utf-8") if page.stat().st_size <= LARGEST_PAGE else ""

    def __repr__(self) -> str:
        figures = self._shown_figures()
        width = max(map(len, figures), default=0)
        lines = [f"  {name:<{width}}  {text}" for name, text in figures.items()]
        summary = f" · {self.summary}" if self.summary else ""
        return "\n".join([f"{self.verb}: {self.path or 'no file'}{summary}", *lines])

    def _shown_figures(self) -> dict[str, str]:
        """Return the figures to show, those of the last validation if there are some."""
        figures = self.figures
        if isinstance(self.value, Trained):
            validated = {n: v for n, v in figures.items() if n.startswith(("val_", "knn_"))}
            figures = validated or figures
        shown = {name: short_number(figures[name]) for name in list(figures)[:MOST_FIGURES]}
        left = len(self.figures) - len(shown)
        return shown | ({"…": f"{left} more in .figures"} if left else {})

    def _repr_html_(self) -> str:
        """Show the figures and some pictures in a notebook; nothing is loaded from elsewhere."""
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td style='text-align:right'>{text}</td></tr>"
            for name, text in self._shown_figures().items()
        )
        title = f"<b>{html.escape(self.verb)}</b>"
        if self.path is not None:
            report = self.path / "report.html" if self.path.is_dir() else self.path
            shown = report if report.is_file() else self.path
            title += (
                f" · <a href='{html.escape(str(shown), quote=True)}'>{html.escape(str(shown))}</a>"
            )
        title += f"<br>{html.escape(self.summary)}" if self.summary else ""
        table = f"<table>{rows}</table>" if rows else ""
        if page := self._page:
            # Without a base, links to a place of the page would open the notebook in the frame.
            page = page.replace("<head>", "<head><base href='about:srcdoc'>", 1)
            frame = f'<iframe srcdoc="{html.escape(page)}" style="{FRAME}"></iframe>'
            return f"<div>{title}{table}{frame}</div>"
        drawn = "".join(
            f"<div style='max-width:{_room(picture)}em;margin:.5em 1em .5em 0'>"
            f"{embedded(picture)}<div style='{CAPTION}'>{html.escape(picture.caption)}</div></div>"
            for picture in self.pictures
        ).replace("<img ", "<img style='max-width:100%;height:auto' ")
        flex = "display:flex;flex-wrap:wrap;align-items:flex-start"
        return f"<div style='{STYLE}'>{title}{table}<div style='{flex}'>{drawn}</div></div>"


def _captioned(item: Item) -> list[Picture]:
    """List the pictures of an item, each with the caption of its gallery."""
    if isinstance(item, Gallery):
        both = [(picture, f"{item.caption} {picture.caption}") for picture in item.pictures]
        return [replace(picture, caption=caption.strip()) for picture, caption in both]
    return [item] if isinstance(item, Picture) else []


def _room(picture: Picture) -> int:
    """Return the width in em that a picture gets at most: more for those with many columns."""
    png = picture.media_type == "image/png"
    return 60 if png and int.from_bytes(picture.data[16:20]) > WIDE else 30


def _is(path: Path | None, suffix: str) -> bool:
    return path is not None and path.suffix == suffix
