"""Processes started by Slurm's srun: its environment variables as those of torchrun."""

import re
from collections.abc import Mapping

RESERVED_STEP = 2**31  # higher numbers are of batch scripts and shells, not of srun


def as_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """Translate the variables of one of several tasks of srun; empty for any other process.

    A batch script and a shell also have Slurm's variables for the tasks of the whole job, but are
    one process. Only srun numbers its step; with --pty it starts a shell.

    Raises:
        ValueError: the nodes have different numbers of tasks.
    """
    step, tasks = environment.get("SLURM_STEP_ID", ""), environment.get("SLURM_NTASKS", "1")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", tasks)
    of_srun = step.isdecimal() and int(step) < RESERVED_STEP and "SLURM_PTY_PORT" not in environment
    if "TORCHELASTIC_RUN_ID" in environment or not of_srun or tasks == "1":
        return {}
    by_node = environment.get("SLURM_STEP_TASKS_PER_NODE", tasks)
    equal = re.fullmatch(r"(\d+)(\(x\d+\))?", by_node)  # 4(x2): 4 on each of 2 nodes
    if equal is None:
        raise ValueError(
            f"srun started {by_node} tasks on its nodes (SLURM_STEP_TASKS_PER_NODE); start "
            "the same number on each with srun --ntasks-per-node"
        )
    job, nodes = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_NODELIST", "")
    first_node = re.sub(r"\[(\w+).*", r"\1", nodes).split(",")[0]  # gpu[03-05,9]: gpu03
    port = 15000 + (int(job) + int(step)) % 10000  # the same in all processes of the step
    return {
        "TORCHELASTIC_RUN_ID": f"slurm-{job}.{step}",
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": equal[1],
        "GROUP_RANK": environment["SLURM_NODEID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_node or "127.0.0.1"),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }
