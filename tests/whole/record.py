"""What tiny runs of everything give, recorded with one checkout's code and compared with another's.

    python tests/whole/record.py SRC OUTPUT          record with the code under SRC, a `src` folder
    python tests/whole/record.py SRC OUTPUT --only trainings
    python tests/whole/record.py --compare OLD NEW   record both, print each item as equal or not
    python tests/whole/record.py --assets SRC        write `assets` anew

All by the command line: nothing of the package is imported here. In --compare half of each training
with the old code is also resumed with the new code, and must end as the old code's whole one did.
The exit status is 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from runs import FIGURES, HALF, KINDS, ROWS, TEACHER, TRAININGS, Reading, write_teacher
from safetensors.torch import load_file

ASSETS = Path(__file__).parent / "assets"
PARTS = ("trainings", "rows", "figures", "config")
LEGEND = "legend.png"
SETTINGS = "settings.yaml"  # with a file of settings, trainings take none from the machine
WORK = "work"  # where the commands ran: below a recording, and no part of it
# Beside the number itself, what decides the order in which floats are added up.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")

Step = dict[str, Any]


# ── running ─────────────────────────────────────────────────────────────────────────────────────


def step(argv: list[str], *copies: tuple[str, str]) -> Step:
    return {"argv": argv, "copies": copies}


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    printed: str
    errors: str

    def __str__(self) -> str:
        return f"exit status {self.code}: {' '.join(self.errors.split())[-250:]}\n"


def run_steps(source: Path, folder: Path, steps: list[Step]) -> list[Ended]:
    """Run commands in a folder, one after the other, as far as they go."""
    commands, results = folder.parent / ".steps", folder.parent / ".results"
    commands.write_text(json.dumps(steps))
    batch = Path(__file__).with_name("batch.py").resolve()
    environment = os.environ | {
        "PYTHONPATH": str(source.resolve()),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100000",  # of --help: nothing is broken into lines
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [str(path.resolve()) for path in (batch, source, commands, results)]
    subprocess.run([sys.executable, "-P", *arguments], cwd=folder, env=environment, check=True)
    return [Ended(*ended) for ended in json.loads(results.read_text())]


def record(source: Path, output: Path, parts: Iterable[str] = PARTS) -> list[str]:
    """Write what the code under a `src` folder gives: one small text file an item.

    Returns: what failed, in a line each.
    """
    work = output / WORK
    work.mkdir(parents=True)
    write_teacher(work / TEACHER)
    (work / SETTINGS).write_text("run: {seed: 0}\n")
    for folder in ("rows", "figures"):
        (work / folder).mkdir()
    readings = [
        *(reading for reading in ROWS if "rows" in parts),
        *(reading for reading in FIGURES if "figures" in parts),
    ]
    steps = [
        step(
            [*training.arguments, f"--config={SETTINGS}"],
            *(
                [(f"runs/{training.name}/weights.safetensors", training.keeps)]
                * bool(training.keeps)
            ),
        )
        for training in TRAININGS
    ]
    done = run_steps(source, work, [*steps, *(step(reading.arguments) for reading in readings)])
    for training, ended in zip(TRAININGS, done, strict=False):
        write_training(training.name, output, ended)
    for reading, ended in zip(readings, done[len(steps) :], strict=True):
        kind = "rows" if reading in ROWS else "figures"
        text = str(ended) if ended.code else read(work, reading, ended.printed)
        write(output / kind / f"{reading.name}.txt", text)
    if "config" in parts:
        record_config(source, output)
    names = [item.name for item in (*TRAININGS, *readings)]
    return [f"{n}: {ended}" for n, ended in zip(names, done, strict=True) if ended.code]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# ── trainings ───────────────────────────────────────────────────────────────────────────────────


def write_training(name: str, output: Path, ended: Ended) -> None:
    run, items = output / WORK / "runs" / name, output / "trainings" / name
    if ended.code:
        write(items / "metrics.jsonl", str(ended))
        return
    write(items / "metrics.jsonl", (run / "metrics.jsonl").read_text())
    write(items / "weights.json", described(run / "weights.safetensors"))


def described(weights: Path) -> str:
    """Tell the hashes of a weights file, and of each tensor a few numbers."""
    tensors = load_file(weights)
    about = {
        "file": sha256(weights.read_bytes()),
        "tensors": digest(tensors),
    }
    each = {name: json.dumps(numbers(tensor)) for name, tensor in sorted(tensors.items())}
    lines = ",\n".join(f"{json.dumps(name)}: {line}" for name, line in each.items())
    return f'{json.dumps(about)[:-1]}, "each": {{\n{lines}\n}}}}\n'


def numbers(tensor: torch.Tensor) -> dict[str, Any]:
    values = tensor.double()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "sum": float(f"{float(values.sum()):.9g}"),
        "norm": float(f"{float(values.square().sum().sqrt()):.9g}"),
    }


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and bits of tensors, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_half(run: Path, target: Path) -> None:
    """Make of a finished run what is left of it when it is killed after step 8.

    A resumed run itself leaves out the log lines after its checkpoint.
    """
    (target / "checkpoints").mkdir(parents=True)
    checkpoint = f"checkpoints/step-{HALF:09d}.pt"
    for name in ("config.yaml", checkpoint):
        shutil.copyfile(run / name, target / name)
    environment = json.loads((run / "environment.json").read_text())
    kept = {name: environment[name] for name in ("verb", "python", "torch", "commit")}
    write(target / "environment.json", json.dumps(kept, indent=2) + "\n")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    write(target / "metrics.jsonl", "".join(s for s in lines if json.loads(s)["step"] <= 8))


# ── rows and figures ────────────────────────────────────────────────────────────────────────────


def read(work: Path, reading: Reading, printed: str) -> str:
    """Turn what a command wrote into text: a hash of the bytes, then what people can read."""
    path = work / reading.output
    if not reading.output:
        return printed
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return "".join(f"{file.relative_to(path)} {readable(file)}" for file in files)
    return readable(path)


def readable(path: Path) -> str:
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content.pop("environment", None)
        content.pop("notes", None)  # sentences: their words may change
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    head = f"sha256 {sha256(path.read_bytes())}\n"
    if path.suffix == ".parquet":
        return head + rows_of(path)
    if path.suffix == ".png":
        return head + ("" if path.name == LEGEND else pixels_of(path))
    if path.suffix == ".pth":
        return head + "".join(tensor_lines(torch.load(path, weights_only=True)))
    return head + path.read_text()


def rows_of(path: Path) -> str:
    table = pq.read_table(path)
    about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    about.pop("ARROW:schema", None)
    lines = [about, {name: str(table.schema.field(name).type) for name in table.column_names}]
    return "".join(json.dumps(line) + "\n" for line in [*lines, *table.to_pylist()])


def pixels_of(path: Path) -> str:
    picture = Image.open(path)
    if picture.mode != "P":  # an overlay: colours, which the hash above tells apart
        return ""
    classes, counts = np.unique(np.asarray(picture), return_counts=True)
    return json.dumps(dict(zip(classes.tolist(), counts.tolist(), strict=True))) + "\n"


def tensor_lines(content: Any, name: str = "") -> Iterable[str]:
    if isinstance(content, torch.Tensor):
        yield f"{name} {json.dumps(numbers(content))} {digest({name: content})}\n"
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from tensor_lines(value, f"{name}/{key}")
    else:
        yield f"{name} {content!r}\n"


# ── configurations ──────────────────────────────────────────────────────────────────────────────


def record_config(source: Path, output: Path) -> None:
    """Write the verbs, the options of each with their defaults, and all resolved configurations."""
    work, config = output / WORK, output / "config"
    overview, listed = run_steps(source, work, [step(["--help"]), step(["presets"])])
    table = overview.printed.partition("verbs:\n")[2]
    verbs = re.findall(r"^  (\S+(?: \S+)?)  ", table, re.MULTILINE)
    write(config / "verbs.txt", "".join(f"{verb}\n" for verb in verbs))
    presets = re.findall(r"^(\S+)  .*\n +(.*)$", listed.printed, re.MULTILINE)
    write(config / "presets.txt", "".join(f"{name}: {parts}\n" for name, parts in presets))
    variants = [(verb, verb.split()) for verb in verbs]
    variants += [
        (f"{verb}-{kind}", [verb, f"--kind={kind}"])
        for verb, kinds in KINDS.items()
        for kind in kinds
    ]
    steps = {f"options/{name}.txt": [*words, "--help"] for name, words in variants}
    steps |= {f"plain/{name}.yaml": [*words, "--print_config"] for name, words in variants}
    steps |= {
        f"presets/{name}/{verb}.yaml": [*verb.split(), f"--preset={name}", "--print_config"]
        for name, parts in presets
        for verb in parts.split(", ")
    }
    done = run_steps(source, work, [step(argv) for argv in steps.values()])
    for name, (code, printed, _) in zip(steps, done, strict=True):
        text = options_of(printed) if name.startswith("options") else printed
        write(config / name.replace(" ", "-"), f"# exit status {code}\n{text}")


def options_of(text: str) -> str:
    """Give the names of the options that --help lists, with their defaults; no other words."""
    parts = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    lines = []
    for part in parts:
        name = re.match(r"(?:-\w, )?(--[\w.-]+)", part)
        assert name is not None, part
        default = re.search(r"default: (.*)\)$", part, re.MULTILINE)
        value = "" if default is None else default[1].rpartition("default: ")[2]  # words have some
        lines.append(f"{name[1]} {value}".rstrip() + "\n")
    return "".join(lines)


# ── comparing ───────────────────────────────────────────────────────────────────────────────────


def compare(old: Path, new: Path, folder: Path) -> int:
    """Record with both codes, resume the old's halves with the new, and print what differs."""
    if failed := record(old, folder / "old"):
        raise SystemExit(f"with the old code failed {''.join(failed)}")
    record(new, folder / "new")
    differing = report(items(folder / "old"), items(folder / "new"))
    resume_all(new, folder / "old", folder / "resumed")
    whole = {name: path for name, path in items(folder / "old").items() if "trainings" in name}
    differing += report(whole, items(folder / "resumed"), "resumed ")
    print(f"{differing} items differ" if differing else "all items are equal")
    return int(differing > 0)


def resume_all(source: Path, recorded: Path, output: Path) -> None:
    """Go on, with the code under `source`, with half of each training of a recording."""
    work = output / WORK
    work.mkdir(parents=True)
    shutil.copytree(recorded / WORK / "starts", work / "starts")
    for training in TRAININGS:
        run = Path("runs", training.name)
        make_half(recorded / WORK / run, work / run)
    steps = [step([t.verb, "--resume", f"runs/{t.name}"]) for t in TRAININGS]
    for training, ended in zip(TRAININGS, run_steps(source, work, steps), strict=True):
        write_training(training.name, output, ended)


def items(recorded: Path) -> dict[str, Path]:
    files = (path for part in PARTS for path in sorted((recorded / part).rglob("*")))
    return {str(path.relative_to(recorded)): path for path in files if path.is_file()}


def report(old: Mapping[str, Path], new: Mapping[str, Path], what: str = "") -> int:
    """Print each item as equal or with its first difference. Returns: how many differ."""
    differing = 0
    for name in dict.fromkeys((*old, *new)):
        if name not in old or name not in new:
            found = "only in the new code" if name in new else "only in the old code"
        else:
            found = difference(old[name].read_text(), new[name].read_text())
        differing += found != "equal"
        print(f"{what}{name}: {found}")
    return differing


def difference(old: str, new: str) -> str:
    """Say `equal`, or which line differs first."""
    if old == new:
        return "equal"
    ours, theirs = old.splitlines(), new.splitlines()
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            return f"line {number} differs\n  old: {one[:300]}\n  new: {other[:300]}"
    return f"{len(ours)} lines in the old, {len(theirs)} in the new"


# ── assets ──────────────────────────────────────────────────────────────────────────────────────


def machine() -> dict[str, Any]:
    """Tell what the bits of a float may depend on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpu, re.MULTILINE))
    flags = about.get("flags", "").split()
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu": [about.get(name, "") for name in ("vendor_id", "cpu family", "model")],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": {name: name in flags for name in FLAGS},
    }


def write_assets(source: Path) -> None:
    """Record once and keep of each training half a run and what all of it ended in."""
    for old in ("runs", "starts", "expected"):
        shutil.rmtree(ASSETS / old, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "recorded"
        if failed := record(source, recorded, ["trainings"]):
            raise SystemExit("".join(failed))
        starts = recorded / WORK / "starts"
        for training in (training for training in TRAININGS if training.kept):
            run = recorded / WORK / "runs" / training.name
            make_half(run, ASSETS / "runs" / training.name)
            shutil.copytree(
                recorded / "trainings" / training.name, ASSETS / "expected" / training.name
            )
            for start in starts.iterdir():
                if f"starts/{start.name}" in (run / "config.yaml").read_text():
                    (ASSETS / "starts").mkdir(exist_ok=True)
                    shutil.copyfile(start, ASSETS / "starts" / start.name)
        commit = json.loads((run / "environment.json").read_text())["commit"]
    about = {"commit": commit, **machine()}
    write(ASSETS / "machine.json", json.dumps(about, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="SRC and OUTPUT")
    parser.add_argument("--only", choices=PARTS, action="append", help="record this part")
    parser.add_argument("--compare", action="store_true", help="two src folders, old and new")
    parser.add_argument("--assets", action="store_true", help="write the assets anew from SRC")
    parser.add_argument("--keep", type=Path, help="with --compare: a new folder for both records")
    given = parser.parse_args(arguments)
    if len(given.paths) != (1 if given.assets else 2):
        parser.error("expected SRC OUTPUT, --compare OLD_SRC NEW_SRC or --assets SRC")
    if given.assets:
        write_assets(given.paths[0])
        return 0
    if not given.compare:
        failed = record(*given.paths, given.only or PARTS)
        print("".join(failed), end="")
        return int(bool(failed))
    if given.keep:
        return compare(*given.paths, given.keep)
    with tempfile.TemporaryDirectory() as folder:
        return compare(*given.paths, Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
