"""The pages of the documentation site, written before its build and checked after it.

    python docs/site/pages.py write    fills build/pages, from which Zensical builds build/site
    python docs/site/pages.py check    refuses dead links and requests to other hosts in build/site

The documents keep their places in the repository, so that their links work here and there:
README.md is the home page, docs/ and all files that they link to are copied. The pages of verbs are
made from `beit VERB --help`, those of the Python API from docstrings (`API`), which mkdocstrings
reads.
"""

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

from beit import cli
from beit.calls import VERB_OF
from beit.command import presets
from beit.command.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")

# Title, introduction and contents of each page of the API: names as users write them, or, with a
# space, such a name and the place of its definition.
API = {
    "models": (
        "Open, use and save models",
        """Sources are runs, files, folders, `published:NAME`, `beit:NAME` and `hf://OWNER/NAME`:
[Weights](../docs/weights.md). [Models in your own code](../docs/python.md#models-in-your-own-code)
has a training loop.""",
        [
            "beit.load beit.weights.open.load",
            "beit.load_backbone beit.weights.open.load_backbone",
            "beit.load_tokenizer beit.weights.open.load_tokenizer",
            "beit.load_teacher beit.weights.teachers.load_teacher",
            "beit.open_image beit.data.opening.open_image",
            "beit.save beit.weights.file.save",
        ],
    ),
    "networks": (
        "Networks and what they return",
        """`B` images, `H W` pixels, `Gh Gw` the grid, `N` patches, `D` width, `M` hidden patches,
`K` codes, `C` code width, `T` teacher width, `Y` classes ([letters](../docs/glossary.md#letters)).
Images are RGB, (B, 3, H, W), or have the channels of the model; uint8 or float in [0, 1]. All else
is refused by a `ValueError` or `TypeError` that says what was found and what to give.""",
        [
            "beit.nn.vit.ViTConfig",
            "beit.nn.vit.VisionTransformer",
            "beit.nn.vit.Features",
            "beit.nn.tokenizer.Tokenizer",
            "beit.nn.tokenizer.VQKDConfig",
            "beit.nn.tokenizer.VQKD",
            "beit.nn.tokenizer.VQKDOutput",
            "beit.nn.mim.MaskedImageModelConfig",
            "beit.nn.mim.MaskedImageModel",
            "beit.nn.mim.MaskedPrediction",
            "beit.nn.heads.ImageClassifierConfig",
            "beit.nn.heads.ImageClassifier",
            "beit.nn.segmenter.SegmenterConfig",
            "beit.nn.segmenter.SemanticSegmenter",
            "beit.nn.segmenter.SegmenterOutput",
            "beit.weights.teachers.Teacher",
        ],
    ),
    "parts": (
        "Parts for your own code",
        "Functions and classes that other programs use; they keep their names.",
        [
            "beit.nn.quantizer.Quantizer",
            "beit.nn.masking.block_masks",
            "beit.nn.position.resize_relative_bias",
            "beit.nn.position.resized",
            "beit.nn.attention_maps.attention_maps",
            "beit.nn.metrics.codebook_health",
            "beit.run.parameters.parameter_groups",
            "beit.data.sources.open_source",
            "beit.data.imagenet_names.imagenet_words",
            "beit.weights.crop.crop_ratio",
            "beit.weights.hub.fetch",
            "beit.weights.manifest.published_files",
            "beit.evaluation.corruptions.corrupt.corrupt",
            "beit.evaluation.corruptions.corrupt.mean_corruption_error",
            "beit.codebook.explorer.ExplorerPage",
            "beit.codebook.explorer.write_explorer",
            "beit.codebook.contents.Code",
            "beit.codebook.contents.Patch",
            "beit.codebook.contents.WholeImage",
            "beit.codebook.crops.Crop",
            "beit.draw.thumbnails.thumbnail",
        ],
    ),
}
CALLS = "api/calls.md", ["beit.resume beit.calls.resume", "beit.result.Result"]


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path) -> None:
    """Write all pages into a folder, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in documents():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    for path, text in made_pages().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def documents() -> list[str]:
    """List README.md, the pages, pictures and styles in docs/, and all files that they link to."""
    paths = [ROOT / "README.md"]
    paths += sorted(
        path
        for path in (ROOT / "docs").rglob("*")
        if path.is_file() and path.suffix in (".md", ".svg", ".webp", ".css", ".js")
    )
    for path in paths:  # which grows
        for linked in links(path) if path.suffix == ".md" else ():
            if linked.is_file() and linked not in paths:
                paths.append(linked)
    return [path.relative_to(ROOT).as_posix() for path in paths]


def links(page: Path) -> list[Path]:
    """List what a page links to on this machine; code is left out."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.M | re.S)
    local = [link for link in LINK.findall(text) if ":" not in link]
    return [Path(os.path.normpath(page.parent / unquote(link))) for link in local]


def made_pages() -> dict[str, str]:
    """Return the texts of the pages of verbs and of the API, by path."""
    pages = {f"verbs/{function}.md": verb_page(function) for function in VERB_OF}
    pages["verbs/README.md"] = overview()
    for name, (title, about, names) in API.items():
        pages[f"api/{name}.md"] = f"# {title}\n\n{about}\n\n{blocks(names)}"
    path, names = CALLS
    pages[path] = calls_page(names)
    return pages


def blocks(names: list[str]) -> str:
    """Write what mkdocstrings replaces by the documentation of each name."""
    parts = []
    for name in names:
        shown, _, place = name.partition(" ")
        options = f"    options:\n      heading: {shown}\n      toc_label: {shown}\n"
        parts.append(f"::: {place or shown}\n{options}")
    return "\n".join(parts)


def calls_page(names: list[str]) -> str:
    """Write the page of the functions of verbs, and of what else calls need."""
    about = """Each verb of the command is a function with the same options:
`beit.pretrain(...)` does what `beit pretrain` does. [From Python](../docs/python.md) explains them,
the pages of the verbs list their options. Each returns a `Result`."""
    table = verbs_table({f"beit.{name}": f"../verbs/{name}.md" for name in VERB_OF})
    return f"# Calls\n\n{about}\n\n{table}\n{blocks(names)}"


def overview() -> str:
    """Write the page of all verbs."""
    about = """`beit VERB [--preset NAME] [--config FILE] [--field.sub VALUE ...]`. A preset comes
first, then configuration files, then options: later values override earlier ones. `--print_config`
prints the settings without running the verb."""
    table = verbs_table({f"beit {verb}": f"{name}.md" for name, verb in VERB_OF.items()})
    return f"# The command\n\n{about}\n\n{table}"


def verbs_table(links: dict[str, str]) -> str:
    """Write a table of the verbs, in their order, from what is shown of each to its page."""
    rows = [
        f"| [`{shown}`]({page}) | {sentence(verb.help)} |"
        for (shown, page), verb in zip(links.items(), VERBS.values(), strict=True)
    ]
    return "\n".join(["| verb | what it does |", "|---|---|", *rows, ""])


def verb_page(function: str) -> str:
    """Write the page of a verb: usage, presets, guides, and every option of each of its kinds."""
    verb = VERB_OF[function]
    kinds = [*VERBS[verb].kinds] or [""]
    helps = [help_of(verb, kind) for kind in kinds]
    lines = [f"# beit {verb}", "", helps[0].about, "", "```text", helps[0].usage, "```", ""]
    call = "[`beit." + function + "(...)`](../api/calls.md)"
    lines += [f"From Python: {call}, with the same options as keywords.", ""]
    using = [f"`{name}`" for name, verbs in verbs_of_presets().items() if verb in verbs]
    lines += [f"Presets: {', '.join(using)}.", ""] if using else []
    guides = [f"[{title}](../docs/{page}.md)" for page, title in guides_with(verb)]
    lines += [f"Guides: {', '.join(guides)}.", ""] if guides else []
    for kind, options in zip(kinds, helps, strict=True):
        lines += [f"## Options of `--kind {kind}`", ""] if kind else []
        for title, group in options.groups:
            lines += [f"{'###' if kind else '##'} {title}", ""]
            for option in group:
                lines += [f"`{option.spelling}`", f":   {option.text}", ""]
    return "\n".join(lines)


@cache
def verbs_of_presets() -> dict[str, list[str]]:
    """List the verbs for which each preset has settings."""
    return {name: [*presets.read_yaml(presets.path_of(name))] for name in presets.names()}


def guides_with(verb: str) -> Iterator[tuple[str, str]]:
    """List the documents, by name and title, with a command of the verb."""
    docs = ROOT / "docs"
    for page in [*sorted((docs / "guides").glob("*.md")), *sorted(docs.glob("*.md"))]:
        text = page.read_text("utf-8")
        if page.stem != "diary" and re.search(rf"^[\s#]*(torchrun .*-m )?beit {verb} ", text, re.M):
            name = page.relative_to(docs).with_suffix("").as_posix()
            yield name, re.search(r"^# (.+)$", text, re.M)[1]


class Option(NamedTuple):
    """An option as help shows it: its spellings with a name for the value, and its description."""

    spelling: str
    text: str


class Help(NamedTuple):
    """The help of a verb; `groups` are titles and options."""

    usage: str
    about: str
    groups: list[tuple[str, list[Option]]]


@cache
def help_of(verb: str, kind: str = "") -> Help:
    """Read `beit VERB --help`."""
    words = [*verb.split(), *([f"--kind={kind}"] if kind else []), "--help"]
    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS="100000"), redirect_stdout(printed):
        try:
            cli.main(words)
        except SystemExit as ended:
            assert not ended.code, words
    usage, about, rest = printed.getvalue().split("\n\n", 2)
    groups: list[tuple[str, list[Option]]] = []
    for line in rest.splitlines():
        if re.match(r"\S.*:$", line):
            title = "General" if line == "options:" else sentence(line[:-1].replace("*", r"\*"))
            groups.append((title, []))
        elif match := re.match(r"  (-\S.*?)(?:  +(\S.*))?$", line):
            groups[-1][1].append(Option(match[1], plain(match[2] or "")))
        elif match := re.match(r" {20,}(\S.*)$", line):
            spelling, text = groups[-1][1].pop()
            groups[-1][1].append(Option(spelling, f"{text} {plain(match[1])}".strip()))
    filled = [(title, group) for title, group in groups if group]
    return Help(usage.removeprefix("usage: "), plain(about), filled[1:] + filled[:1])


def plain(text: str) -> str:
    """Write a description so that Markdown shows it as it is, type and default as code."""
    values = re.search(r" \((required, )?type: (.*?)(?:, default: (.*))?\)$", text)
    text = text[: values.start()] if values else text
    text = re.sub(r"([\\`*_\[\]{}#])", r"\\\1", text).replace("<", "&lt;")
    if not values:
        return text
    kind = re.sub(r"Literal\[([^]]*)\]", lambda names: names[1].replace("'", ""), values[2])
    default = (
        "required" if values[1] else f"default `{values[3]}`" if values[3] else "empty by default"
    )
    return f"{text.rstrip('.')} (`{kind}`; {default})"


def sentence(text: str) -> str:
    """Write the first letter as a capital, but that of k-NN."""
    return text if text[1:2] == "-" else f"{text[0].upper()}{text[1:]}"


# ── checking ────────────────────────────────────────────────────────────────────────────────────


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(values.get("href", ""))
        elif "src" in values:
            self.loaded.append(values["src"])


def check(site: Path) -> list[str]:
    """Return what is wrong in a built site: dead links and anchors, and files of other hosts."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    faults = [] if pages else [f"{site} has no pages; run `make site`"]
    for path, page in pages.items():
        name = path.relative_to(site)
        faults += [
            f"{name} loads {link}" for link in page.loaded if urlsplit(link).netloc
        ]  # of another host
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name.name == "404.html":
                continue
            target = (
                Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            )
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                faults.append(f"{name} links to {link}, which does not exist")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                faults.append(f"{name} links to {link}, which has no such heading")
    return faults


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write(PAGES)
    elif sys.argv[1:] == ["check"]:
        faults = check(SITE)
        sys.exit("\n".join(faults) or 0)
    else:
        sys.exit("give write or check")
