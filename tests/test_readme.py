"""Every command that the documents name is one that the command line understands."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import beit
from beit import cli
from beit.command import presets
from beit.nn.vit import VisionTransformer, ViTConfig

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *GUIDES]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents name files that are not here; settings that follow them have other tests."""
    monkeypatch.setattr("beit.command.options.following_data", lambda *_: [])
    monkeypatch.setattr("beit.command.options.following_init", lambda *_: [])


def commands(text: str) -> list[list[str]]:
    """Find the `beit ...` lines of a text, however they are launched and broken over lines."""
    lines = re.sub(r"\\\n\s*(#\s*)?", " ", text).splitlines()
    found = [re.match(r"[\s#]*(?:torchrun .*-m )?(beit [a-z-]+ .*)", line) for line in lines]
    return [shlex.split(match[1], comments=True)[1:] for match in found if match]


def check(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] in ("presets", "demo") or "--resume" in words or "VERB" in words:
        return
    with pytest.raises(SystemExit) as ended:  # as argparse ends after printing
        assert cli.main([*words, "--print_config"]) == 0, capsys.readouterr().err
    assert ended.value.code == 0


def test_there_are_commands_to_check() -> None:
    assert len(commands((ROOT / "README.md").read_text())) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_documents_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page.read_text()):
        check(words, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_documents_names_what_there_is(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module[:5] == "beit.":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), code
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "beit" or hasattr(beit, node.attr), code


def test_the_fine_tuning_loop_of_the_documents_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ViTConfig((16, 24), 8, width=12, depth=3, num_heads=3)
    (tmp_path / "runs/pretrain").mkdir(parents=True)
    beit.save(VisionTransformer(config), "runs/pretrain/weights.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "parameter_groups" in block]
    loader = [(torch.rand(2, 3, 16, 24), torch.tensor([0, 1]))]
    names: dict[str, Any] = {"beit": beit, "torch": torch, "loader": loader}
    exec(code, names)
    assert {group["lr"] for group in names["optimiser"].param_groups} == {
        5e-4 * 0.65**layer for layer in range(5)
    }
    assert [block.drop_rate for block in names["model"].backbone.blocks] == [0.0, 0.05, 0.1]
    read = beit.load("classifier.safetensors")
    assert read.classes == ("cat", "dog")
    assert torch.equal(read.head.weight, names["model"].head.weight)


def test_the_pretraining_loop_of_the_documents_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "MaskedImageModelConfig" in block]
    loader = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))] * 2
    names: dict[str, Any] = {"beit": beit, "torch": torch, "loader": loader}
    exec(code, names)
    assert names["loss"].isfinite()
    read = beit.load("pretrained.safetensors")
    assert torch.equal(read.head.weight, names["model"].head.weight)


@pytest.mark.parametrize("name", presets.names())
def test_commands_at_the_head_of_a_preset_parse(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(presets.path_of(name).read_text()):
        check(words, capsys)


@pytest.mark.parametrize("name", presets.names())
def test_every_part_of_a_preset_is_a_configuration(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in presets.read_yaml(presets.path_of(name)):
        required = ["--model", "runs/x"] if verb == "probe" else []
        check([verb, "--preset", name, *required], capsys)


CITATION = re.compile(r"docs/reference/([\w-]+\.md)(?:,\s*\"?([A-Z][^\").;:]*))?")


def test_pages_and_headings_that_the_code_cites_exist() -> None:
    """`docs/reference/PAGE.md, Heading`, also where it is broken over lines."""
    pages = {
        page.name: re.findall(r"^#+ (.+)$", page.read_text().replace("`", ""), re.MULTILINE)
        for page in (ROOT / "docs" / "reference").glob("*.md")
    }
    cited = 0
    for file in sorted((ROOT / "src").rglob("*.py")):
        for page, heading in CITATION.findall(re.sub(r"\s*\n\s*#?\s*", " ", file.read_text())):
            cited += 1
            assert page in pages, f"{file.name} cites {page}"
            assert any(h.startswith(heading.strip()) for h in pages[page]), (file.name, heading)
    assert cited >= 10
