"""What the package's own files say of it agrees, and the check of wheels finds what is wrong."""

import hashlib
import re
import runpy
import tarfile
import tomllib
import zipfile
from pathlib import Path

import yaml

import beit

ROOT = Path(__file__).parents[2]


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == beit.__version__
    assert beit.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_workflow_runs_what_a_developer_runs_and_may_only_read() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert commands == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_container_gets_all_that_the_build_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    copied = (ROOT / "Containerfile").read_text("utf-8")
    kept = (ROOT / ".containerignore").read_text("utf-8").splitlines()
    files = [
        "README.md",
        *settings["project"]["license-files"],
        "constraints.txt",
    ]
    for name in [*files, "pyproject.toml", "src"]:
        assert f"!{name}" in kept and f" {name} " in copied


def test_the_description_on_pypi_links_to_nothing_that_is_not_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {each["path"] for each in hook["fragments"]} <= {*included}  # a wheel is built from it
    text = (ROOT / "README.md").read_text("utf-8")
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", text)
    assert "[timm](https://github.com/huggingface/pytorch-image-models)" in text
    assert " container: docs/install.md." in text
    assert "[first steps]" not in text and "first steps (notebooks/first_steps.ipynb)," in text
    assert "*Ten codes" not in text  # whose picture is left out


def test_the_card_of_the_shipped_weights_states_their_licence() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    card = (ROOT / "src/beit/weights/shipped/README.md").read_text("utf-8")
    assert f"**Licence**: {settings['project']['license']}," in card


def test_the_card_of_the_drawings_has_their_checksums() -> None:
    folder = ROOT / "src/beit/demonstration/drawings"
    card = (folder / "README.md").read_text("utf-8")
    for name in ("train.parquet", "test.parquet"):
        checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert f"`{name}`" in card and checksum in card


def test_wheel_and_sdist_are_compared_with_the_repository(tmp_path: Path) -> None:
    faults_of = runpy.run_path(str(ROOT / "tests/package/check.py"))["faults_of"]
    wheel, sdist, file = tmp_path / "a.whl", tmp_path / "a.tar.gz", tmp_path / "file"
    file.write_text("x")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("beit-1.dist-info/METADATA", "[a](https://a.b), [data](docs/data.md)")
        for name in ("beit/a.py", "beit/__pycache__/a.pyc", "beit-1.dist-info/RECORD"):
            archive.write(file, name)
    with tarfile.open(sdist, "w:gz") as archive:
        for name in (
            "README.md",
            "LICENSE",
            "PKG-INFO",
            "src/beit/a.py",
            "src/beit/b.yaml",
            "x.log",
        ):
            archive.add(file, f"beit-1/{name}")
    tracked = {"README.md", "LICENSE", "src/beit/a.py", "src/beit/b.yaml", "tests/test_a.py"}
    assert faults_of(wheel, sdist, tracked) == [
        "missing in the wheel: beit/b.yaml",
        "too much in the wheel: beit/__pycache__/a.pyc",
        "missing in the sdist: tests/test_a.py",
        "too much in the sdist: x.log",
        "a dead link in the description: docs/data.md",
    ]


def test_too_large_a_wheel_is_said(tmp_path: Path) -> None:
    check = runpy.run_path(str(ROOT / "tests/package/check.py"))
    check["MAX_MB"]["wheel"] = 1
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("beit/a.py", bytes(1_200_000))
        archive.writestr("beit-1.dist-info/METADATA", "")
    tarfile.open(sdist, "w:gz").close()
    assert "the wheel has 1.2 MB, expected at most 1" in check["faults_of"](wheel, sdist, set())
