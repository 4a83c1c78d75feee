import pytest

from beit.command.slurm import as_torchrun

BATCH = {
    "SLURM_JOB_ID": "812345",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_srun_has_the_variables_of_torchrun() -> None:
    assert as_torchrun(STEP) == {
        "TORCHELASTIC_RUN_ID": "slurm-812345.2",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": "17347",
    }
    own = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "99"}
    assert own.items() <= as_torchrun(STEP | own).items()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n7", "n7"), ("a1,b[2-3]", "a1"), ("gpu[5,7-9]", "gpu5"), ("gpu[08],x", "gpu08")],
)
def test_the_first_node_is_the_master(nodes: str, first: str) -> None:
    assert as_torchrun(STEP | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        BATCH | {"SLURM_STEP_ID": "4294967291"},  # of a batch script
        BATCH | {"SLURM_STEP_ID": "4294967290"},  # of the shell of salloc
        STEP | {"SLURM_PTY_PORT": "41000"},  # srun --pty bash
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"TORCHELASTIC_RUN_ID": "x"},  # torchrun, itself started by srun
    ],
)
def test_any_other_process_is_alone(environment: dict[str, str]) -> None:
    assert as_torchrun(environment) == {}


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"srun started 3,1 tasks .* --ntasks-per-node"):
        as_torchrun(STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"})
