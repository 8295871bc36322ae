"""The environments of launchers, as they set them: which process of how many this is, where process 0 listens."""

import pytest

from jaxclf.devices.launchers import Place, place
from jaxclf.errors import UsageError

SRUN = {"SLURM_JOB_ID": "4100", "SLURM_STEP_NODELIST": "node[007-009],other12", "SLURM_NTASKS": "6"}
SRUN |= {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
MPIRUN = {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.0.0.1:43370", "OMPI_COMM_WORLD_SIZE": "4"}
MPIRUN |= {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
TORCHRUN = {"MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29500", "WORLD_SIZE": "16", "RANK": "11"}
TORCHRUN |= {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
PYTORCHJOB = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "3", "RANK": "2"}
XPK = {"JAX_COORDINATOR_ADDRESS": "exp-slice-job-0-0.exp", "JAX_COORDINATOR_PORT": "6002", "NNODES": "4"}
XPK |= {"NODE_RANK": "3", "KUBERNETES_SERVICE_HOST": "10.4.0.1", "JOB_COMPLETION_INDEX": "3"}
SKYPILOT = {"SKYPILOT_NODE_IPS": "10.1.0.4\n10.1.0.7", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
SKYPILOT |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8"}
JOBSET = {"JOBSET_NAME": "run7", "REPLICATED_JOB_NAME": "workers", "JOB_COMPLETION_INDEX": "1", "NNODES": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.4.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SRUN, ("slurm", "node007:61444", 6, 3, (1,))),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[3-4]-ib"}, ("slurm", "gpu3-ib:61444", 6, 3, (1,))),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x6)"}, ("slurm", "node007:61444", 6, 3, None)),
        # Four GPUs that two tasks see: two each; bound by srun or fewer than tasks: what a task sees is its own.
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("slurm", "node007:61444", 6, 3, (2, 3))),
        (
            SRUN | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"},
            ("slurm", "node007:61444", 6, 3, None),
        ),
        (SRUN | {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPU_BIND": "closest"}, ("slurm", "node007:61444", 6, 3, None)),
        (SRUN | {"ROCR_VISIBLE_DEVICES": "5"}, ("slurm", "node007:61444", 6, 3, None)),
        (MPIRUN, ("ompi", None, 4, 2, (2,))),
        (SRUN | MPIRUN, ("ompi", None, 4, 2, (2,))),
        (TORCHRUN, ("torchrun", "10.0.0.5:29501", 16, 11, (3,))),
        (SRUN | TORCHRUN, ("torchrun", "10.0.0.5:29501", 16, 11, (3,))),  # srun torchrun ...
        (PYTORCHJOB, ("torchrun", "job-master-0:23457", 3, 2, None)),
        (XPK, ("jax", "exp-slice-job-0-0.exp:6002", 4, 3, None)),
        (XPK | {"JAX_COORDINATOR_ADDRESS": "a:7"}, ("jax", "a:7", 4, 3, None)),
        (SKYPILOT, ("skypilot", "10.1.0.4:8476", 2, 1, None)),
        (JOBSET, ("jobset", "run7-workers-0-0.run7:8476", 2, 1, None)),
    ],
)
def test_each_launcher_gives_a_place(environment: dict[str, str], expected: tuple[object, ...]) -> None:
    assert place(environment) == Place(*expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # in the script of sbatch
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        XPK | {"NNODES": "1", "NODE_RANK": "0"},
        {"SKYPILOT_NODE_IPS": "10.1.0.4", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.4.0.1"},  # of a Deployment or a plain Job
    ],
)
def test_a_process_that_is_alone_has_none(environment: dict[str, str]) -> None:
    assert place(environment) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (POD, "pod 0 of an indexed Kubernetes Job, and nothing says how many there are: set JAX_COORDINATOR_ADDRESS"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8 .* nothing names process 0's host; say where the processes are by --coord"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "NNODES=2 .* nothing names process 0's host"),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "PMI_SIZE=4 .*MPICH"),
        ({"FLUX_JOB_SIZE": "2"}, "FLUX_JOB_SIZE=2"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "xpk .*NNODES, NODE_RANK is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "not started by torchrun: MASTER_ADDR, MASTER_PORT is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "not started by mpirun: OMPI_MCA_orte_hnp_uri, OMPI_COMM_WORLD_RANK"),
        ({"SKYPILOT_NUM_NODES": "2"}, "not started by SkyPilot: SKYPILOT_NODE_IPS, SKYPILOT_NODE_RANK is not set"),
        (TORCHRUN | {"RANK": "16"}, "torchrun says process 16 of 16, which count from 0"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "WORLD_SIZE='many', but it must be a whole number"),
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, r"2 processes share 3 visible devices \(0,1,2\)"),
    ],
)
def test_what_looks_like_several_processes_and_names_no_place_is_refused(
    environment: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        place(environment)


def test_a_launcher_that_is_named_must_have_started_the_process() -> None:
    assert place(SRUN | TORCHRUN, "slurm") == Place("slurm", "node007:61444", 6, 3, (1,))
    with pytest.raises(UsageError, match="not started by srun: SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_PROCID"):
        place(TORCHRUN, "slurm")
