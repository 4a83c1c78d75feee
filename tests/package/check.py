"""Build wheel and sdist, check them, and install the wheel into empty environments.

    python tests/package/check.py                     # make package
    python tests/package/check.py --python --whole    # make wheel-check

`make installs` names each Python, and the one with the oldest versions.

uv builds, makes the environments and downloads a Python that is not here. In each environment, from
a folder outside of the sources: `beit --version`, `beit presets`, and README's Python lines about
the weights that come with the package; with --whole also `beit demo` and the notebooks, on images
that are drawn. With the oldest versions of the dependencies also the tests of --tests. An
environment takes some gigabytes and is removed unless --keep names a folder.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
MAX_MB = {"wheel": 15, "sdist": 30}
# Small, and through most dependencies: torch, pyarrow, scipy, safetensors, matplotlib, jinja2 …
TESTS = (
    "tests/nn/test_quantizer.py tests/run/test_optim.py tests/data/test_sources.py "
    "tests/data/tabular tests/rows tests/weights/test_file.py "
    "tests/command tests/draw/test_report.py tests/pretraining/test_pretrain.py "
    "tests/weights/test_teachers.py tests/comparison/test_ablation_table.py"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", nargs="*", default=[here], help="with the newest versions")
    parser.add_argument("--whole", nargs="*", help="the same, with demo and notebooks")
    parser.add_argument("--oldest", nargs="*", default=[], help="with the oldest versions")
    parser.add_argument("--tests", nargs="*", default=TESTS.split(), help="run with --oldest")
    parser.add_argument("--keep", type=Path, help="keep the environments in this folder")
    options = parser.parse_args()
    whole = [here] if options.whole == [] else options.whole or []
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run([find_uv_bin(), "build", "--quiet", "--out-dir", dist, ROOT])
    run([find_uv_bin(), "tool", "run", "twine", "check", "--strict", *dist.glob("beit-*")])
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    faults = faults_of(wheel, sdist, tracked_files())
    print("\n".join(faults) or f"{wheel.name} and {sdist.name}: as in the repository", flush=True)
    for python, kind in [
        *((python, "newest") for python in options.python),
        *((python, "whole") for python in whole),
        *((python, "oldest") for python in options.oldest),
    ]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.keep or Path(scratch)) / f"{python}-{kind}"
            fault = install(wheel, folder, python, kind, options.tests)
        print(f"Python {python}, {kind}: {fault or 'installs and works'}", flush=True)
        faults += [fault] if fault else []
    return bool(faults)


# ── contents ────────────────────────────────────────────────────────────────────────────────────


def tracked_files() -> set[str]:
    """List the files of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    return set(listed.stdout.decode().splitlines())


def faults_of(wheel: Path, sdist: Path, tracked: set[str]) -> list[str]:
    """Compare the files of wheel and sdist with those of the repository. Returns: differences."""
    with zipfile.ZipFile(wheel) as archive:
        [about] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        dead = re.findall(r"\]\((?!https?:)[^)]*\)", archive.read(about).decode())
        inside = {n for n in archive.namelist() if ".dist-info/" not in n and n[-1] != "/"}
    with tarfile.open(sdist) as archive:
        names = (m.name.partition("/")[2] for m in archive.getmembers() if m.isfile())
        in_sdist = {*names} - {"PKG-INFO"}
    package = {n.removeprefix("src/") for n in tracked if n.startswith("src/")}
    needed = {n for n in tracked if n.startswith(("src/", "tests/"))} | {"README.md", "LICENSE"}
    faults = [
        *(f"missing in the wheel: {name}" for name in sorted(package - inside)),
        *(f"too much in the wheel: {name}" for name in sorted(inside - package)),
        *(f"missing in the sdist: {name}" for name in sorted(needed - in_sdist)),
        *(f"too much in the sdist: {name}" for name in sorted(in_sdist - tracked)),
        *(f"a dead link in the description: {link[2:-1]}" for link in dead),
    ]
    for kind, file in (("wheel", wheel), ("sdist", sdist)):
        size = file.stat().st_size / 1e6
        print(f"{file.name}: {size:.1f} MB")
        if size > MAX_MB[kind]:
            faults.append(f"the {kind} has {size:.1f} MB, expected at most {MAX_MB[kind]}")
    return faults


# ── an empty environment ────────────────────────────────────────────────────────────────────────


def install(wheel: Path, folder: Path, python: str, kind: str, tests: Sequence[str]) -> str | None:
    """Install the wheel into a new environment and use it. Returns: what failed, if anything."""
    try:
        run([find_uv_bin(), "venv", "--quiet", "--clear", "--python", python, folder])
        into = [find_uv_bin(), "pip", "install", "--quiet", "--python", folder]
        if kind == "whole":
            run([*into, f"beit[demo] @ {wheel.as_uri()}", "nbclient>=0.10", "ipykernel>=6.29"])
        elif kind == "oldest":
            run([*into, "--resolution", "lowest-direct", wheel, "pytest>=8.4"])
        else:
            run([*into, wheel])
        with tempfile.TemporaryDirectory() as elsewhere:
            use(folder / "bin", Path(elsewhere))
            if kind == "whole":
                use_whole(folder / "bin", Path(elsewhere))
        if kind == "oldest":
            pytest = [folder / "bin" / "python", "-m", "pytest", "-q", "-o", "pythonpath="]
            # Old versions warn of what is gone in new ones.
            few = ["-m", "not slow and not gpu", "-p", "no:cacheprovider"]
            run([*pytest, *few, "-W", "default", *tests], cwd=ROOT)
    except subprocess.CalledProcessError as error:
        return f"exit code {error.returncode} of {' '.join(map(str, error.cmd))[:200]}"
    return None


def use(scripts: Path, folder: Path) -> None:
    """Run the command and README's lines about shipped weights in a folder without sources."""
    run([scripts / "beit", "--version"], cwd=folder)
    run([scripts / "beit", "presets"], cwd=folder, stdout=subprocess.DEVNULL)
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    code = next(code for code in lines if "beit:cifar10-small" in code)
    photos = (
        "import beit, numpy, PIL.Image as i\n"
        f"assert {str(ROOT)!r} not in beit.__file__, beit.__file__\n"
        "r = numpy.random.default_rng(0)\n"
        "for n in ('cat', 'dog'):\n"
        "    i.fromarray(r.integers(0, 256, (48, 64, 3), 'uint8')).save(n + '.jpg')\n"
    )
    run([scripts / "python", "-c", photos + code], cwd=folder)


def use_whole(scripts: Path, folder: Path) -> None:
    """Run the demo with little time, and the notebooks, in a folder without sources."""
    drawn = ["--data", "shapes://2000?size=64", "--budget", "60s", "--output", "demo"]
    run([scripts / "beit", "demo", *drawn], cwd=folder)
    (folder / "data").touch()  # in place of a folder, so that nothing is fetched
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder)
        run([scripts / "jupyter-execute", "--startup_timeout=600", notebook.name], cwd=folder)


def run(command: Iterable[str | Path], **settings: object) -> None:
    """Run a command as a user would: without the variables that point to the sources."""
    words = [str(word) for word in command]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(words, check=True, env=environment, **settings)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
