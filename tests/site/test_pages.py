"""What the documentation says is there, and what is there is in the documentation."""

import ast
import dataclasses
import importlib
import inspect
import re
import typing
from pathlib import Path

import pytest
import yaml

import beit
from beit.calls import VERB_OF
from beit.command.verbs import VERBS

ROOT = Path(__file__).parents[2]
DOCS = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
SOURCES = ROOT / "src" / "beit"


# ── navigation ──────────────────────────────────────────────────────────────────────────────────


def leaves(nav):
    """List the pages of a navigation."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else leaves(value)


def test_the_navigation_has_every_page_once(pages):
    listed = [*leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    made = [f"verbs/{name}.md" for name in (*VERB_OF, "README")]
    made += [f"api/{name}.md" for name in pages.API] + [pages.CALLS[0]]
    copied = [path for path in pages.documents() if path.endswith(".md")]
    others = {"tests/goldens/README.md"}  # linked, but for developers
    assert sorted(listed) == sorted({*made, *copied} - others)


# ── links ───────────────────────────────────────────────────────────────────────────────────────


def slugs(text):
    """The anchors of a page's headings, as GitHub and Zensical name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading).strip() for heading in headings]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", words.lower())) for words in plain}


def test_links_and_headings_of_the_documents_exist(pages):
    texts = [path for path in pages.documents() if path.endswith(".md")]
    for name in texts:
        page = ROOT / name
        for linked in pages.links(page):
            assert linked.exists(), f"{name} links to {linked}"
        text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
        for path, heading in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", text):
            target = page.parent / path if path else page
            assert heading in slugs(target.read_text()), f"{name}: {path}#{heading}"


def test_faults_of_a_site_are_found(pages, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<h1 id="there">x</h1>')
    link = '<a href="{}">x</a>'.format
    good = [link("sub/#there"), link("#own"), link("https://else.where/x"), '<p id="own">']
    (tmp_path / "a.html").write_text("".join(good))
    assert pages.check(tmp_path) == []
    bad = [link("gone.html"), link("sub/#gone"), '<img src="gone.png">']
    bad += ['<script src="https://else.where/x.js"></script>']
    (tmp_path / "b.html").write_text("".join(bad))
    assert pages.check(tmp_path) == [
        "b.html loads https://else.where/x.js",
        "b.html links to gone.html, which does not exist",
        "b.html links to sub/#gone, which has no such heading",
        "b.html links to gone.png, which does not exist",
    ]
    assert "no pages" in pages.check(tmp_path / "empty")[0]


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────


def fields_of(config, prefix=""):
    """List the dotted names of all settings of a Config."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{name}.")
        else:
            yield name


@pytest.mark.parametrize("function", VERB_OF)
def test_every_option_of_a_verb_is_on_its_page_with_a_description(function, pages):
    verb = VERBS[VERB_OF[function]]
    spelled = {field: name for name, field in verb.spellings.items()}
    page = pages.verb_page(function)
    assert page.startswith(f"# beit {VERB_OF[function]}\n")
    for kind, module in (verb.kinds or {"": verb.module}).items():
        options = pages.help_of(VERB_OF[function], kind)
        shown = {
            name: option
            for _, group in options.groups
            for option in group
            for name in re.findall(r"--[\w.]+", option.spelling)
        }
        for field in fields_of(importlib.import_module(module).Config):
            option = shown[f"--{spelled.get(field, field)}"]
            assert re.search(r"\w+ \w+", option.text), field  # more than type and default
            assert f"`{option.spelling}`\n:   {option.text}" in page, field


# ── Python ──────────────────────────────────────────────────────────────────────────────────────


def named(pages):
    """List the names of the API's pages, as users write them, and their places."""
    names = [name for _, _, listed in pages.API.values() for name in listed] + pages.CALLS[1]
    return {name.split()[0]: name.split()[-1] for name in names}


def found(place):
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_public_name_is_on_a_page_with_its_errors(pages):
    names = named(pages)
    public = {f"beit.{name}" for name in beit.__all__ if name != "__version__"}
    assert public <= names.keys()
    for name, place in names.items():
        about = inspect.getdoc(found(place))
        assert about, name
        if name in public - {"beit.resume"}:
            assert found(place) is getattr(beit, name.removeprefix("beit."))
            assert "Args:" in about or name == "beit.load_teacher", name
            assert "Raises:" in about, name


def test_every_name_that_the_guides_import_is_on_a_page(pages):
    places = named(pages).values()
    for page in [ROOT / "README.md", *DOCS]:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("beit."):
                    for name in node.names:
                        if not name.name.isupper():  # constants
                            assert f"{node.module}.{name.name}" in places, page.name


# ── pages about the code ────────────────────────────────────────────────────────────────────────


def test_files_and_names_in_the_page_about_the_paper_exist():
    text = (ROOT / "docs" / "paper.md").read_text()
    cited = re.findall(r"`((?:\w+/)+[\w-]+)\.(py|yaml)(?:: ([\w.]+))?`", text)
    assert len(cited) > 60
    for path, ending, name in cited:
        assert (SOURCES / f"{path}.{ending}").is_file(), path
        value = importlib.import_module("beit." + path.replace("/", ".")) if name else None
        for part in name.split(".") if name else ():
            value = getattr(value, part)
    for owner, attribute in re.findall(r"`(VQKDOutput)\.(\w+)`", text):
        assert attribute in found(f"beit.nn.tokenizer.{owner}")._fields


def test_tests_in_the_page_about_parity_exist():
    cited = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "parity.md").read_text())
    assert len(cited) > 30
    for file, name in cited:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_picture_of_the_package_has_every_folder():
    picture = (ROOT / "docs" / "pictures" / "layers.svg").read_text()
    folders = [path.parent.name for path in SOURCES.glob("*/__init__.py")]
    assert [name for name in folders if not re.search(rf"\b{name}\b", picture)] == []
