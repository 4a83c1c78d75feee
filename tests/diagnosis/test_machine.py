"""`beit doctor` alone: the machine, and what is missing with the command that helps."""

import json
import resource
from pathlib import Path

import pytest

from beit.cli import main
from beit.diagnosis import machine
from beit.diagnosis.checks import Check, show


def test_it_says_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["doctor", "--output", "machine"])
    found = json.loads(Path("machine/doctor.json").read_text())
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "packages", "GPU", "bfloat16", "CPU cores", "memory", "disk"} <= checks.keys()
    assert code == int(any(check["must"] for check in checks.values()))
    assert "torch" in checks["packages"]["found"] and found["environment"]["verb"] == "doctor"
    assert "This machine" in Path("machine/report.html").read_text()
    assert "bfloat16" in capsys.readouterr().out


def test_what_is_missing_has_its_command(monkeypatch):
    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=99", "absent-package>=1"])
    monkeypatch.setattr(machine, "_version", {"beit": "0", "onnx": "1", "torch": "2"}.get)
    checks = {check.name: check for check in machine._packages()}
    assert checks["torch"].must and checks["torch"].advice == 'pip install "torch>=99"'
    assert checks["absent-package"].found == "missing" and checks["absent-package"].must
    assert 'pip install "beit[onnx]"' in checks["extra onnx"].advice
    assert "onnxruntime" in checks["extra onnx"].found and not checks["extra onnx"].must


@pytest.mark.parametrize(
    ("soft", "advice", "must"), [(4096, "", False), (256, "1024", False), (64, "1024", True)]
)
def test_few_open_files(soft, advice, must, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, 4096))
    check = machine._open_files()
    assert advice in check.advice and bool(check.advice) == bool(advice) and check.must == must


def test_a_driver_without_a_gpu_for_torch(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    check = machine._gpu()
    assert check.must and "finds no GPU" in check.found and "nvidia-smi" in check.advice


def test_a_container_has_its_quota(monkeypatch):
    files = {
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/memory.max": "3000000000\n",
    }
    files["/sys/fs/cgroup/memory.current"] = "1000000000\n"
    files["/proc/meminfo"] = "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n"
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert machine.cores_here() == 1 and machine.memory_here() == 2.0
    files["/sys/fs/cgroup/cpu.max"], files["/sys/fs/cgroup/memory.max"] = "max 100000", "max"
    assert machine.cores_here() == 8 and machine.memory_here() == pytest.approx(32.768)


def test_a_line_for_each_check_and_what_to_do_below_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    show(
        [
            Check("disk", "1 GB free", "make room"),
            Check("GPU", "none"),
            Check("torch", "1.0", "new", True),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "· disk   1 GB free",
        "         → make room",
        "  GPU    none",
        "! torch  1.0",
        "         → new",
    ]
