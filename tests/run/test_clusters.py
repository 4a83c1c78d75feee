"""The scripts of docs/clusters.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]

# Stand-ins: srun starts two tasks and sends USR1 to both when the first log line is there.
SRUN = """#!/bin/bash
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=n1
export MASTER_ADDR=127.0.0.1 SLURM_NODEID=0
while [[ "$1" == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[task]=$!; done
if [ ! -e {folder}/requeued ]; then
  until grep -qs loss {folder}/run/metrics.jsonl; do sleep 0.01; done
  kill -USR1 "${{tasks[@]}}"
fi
highest=0
for task in 0 1; do wait ${{tasks[task]}}; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest
"""
BEIT = """#!/bin/bash
verb=$1; shift
exec {python} -m beit $verb --preset=shapes-tiny --target.kind=pixels --check.every=0 \\
  --data=shapes://197?size=32 --validation= --data.num_workers=0 --device.accelerator=cpu \\
  --optim.batch_size=16 --optim.epochs=4 --run.log_every=3 --output={folder}/run --resume=auto
"""


def test_every_script_is_valid() -> None:
    assert len(SHELL) == 4
    for script in SHELL:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "--resume auto" in script
    (job,) = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    named = {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule}
    assert named == {container["name"]}
    codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in rules
        if len(rule) == 2 and "onExitCodes" in rule
    }
    assert codes == {"Ignore": [75], "FailJob": [2]}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert "--resume=auto" in container["args"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs bash and gloo on this machine")
def test_the_slurm_script_requeues_and_resumes(tmp_path: Path) -> None:
    script = next(text for text in SHELL if "srun --kill-on-bad-exit" in text)
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in {
        "srun": SRUN.format(folder=tmp_path),
        "beit": BEIT.format(folder=tmp_path, python=sys.executable),
        "scontrol": f"#!/bin/bash\necho $* >> {tmp_path}/requeued\n",
    }.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{bin}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"}
    codes, errors = [], []
    for _ in range(2):
        done = subprocess.run(
            ["bash"], input=script, env=environment, capture_output=True, text=True, timeout=300
        )
        codes.append(done.returncode)
        errors.append(done.stderr)
    assert codes == [75, 0], errors
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert errors[0].count("beit: stopped by SIGUSR1; the checkpoint of step ") == 1
    assert f"go on with: srun beit pretrain --resume {tmp_path}/run" in errors[0]
    assert f"{tmp_path}/run: resumes after step " in errors[1]
