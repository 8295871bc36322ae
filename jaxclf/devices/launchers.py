"""Who started this process and the others of its run, by the environment. Pure.

>>> place({"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "29500", "LOCAL_RANK": "1"})
Place(launcher='torchrun', coordinator='a:29501', processes=4, process=3, devices=(1,))
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxclf.errors import UsageError

Environment = Mapping[str, str]
PORT = 8476
"""Port of the coordinator where a launcher names its host alone."""


class Place(NamedTuple):
    """A process among those of its run."""

    launcher: str
    coordinator: str | None
    """HOST:PORT of process 0; None: JAX asks the launcher."""
    processes: int
    process: int
    """Number of this one, from 0."""
    devices: tuple[int, ...] | None = None
    """Devices of this process among those that it sees; None: all."""


class Launcher(NamedTuple):
    """A program that starts processes, and how it tells each its place."""

    program: str
    needed: tuple[str, ...]
    """Variables that a place is read from."""
    sign: Callable[[Environment], bool]
    """Whether it started this process as one of several."""
    read: Callable[[Environment], Place]


def place(environment: Environment, launcher: str = "auto") -> Place | None:
    """Return the place that a launcher gave this process; None: it is alone.

    `launcher` is a name of `LAUNCHERS`; auto takes the first whose sign is there. Raises `UsageError` where the named
    one left no place, and under auto where something says that this is one of several processes and nothing says where
    process 0 is: such a process would train alone, and so would each of the others.
    """
    if launcher == "auto" and (launcher := found(environment)) == "none":
        _require_alone(environment)
        return None
    program, needed, _, read = LAUNCHERS[launcher]
    if missing := [name for name in needed if not environment.get(name)]:
        raise UsageError(f"this process was not started by {program}: {', '.join(missing)} is not set; {WAYS}")
    own = read(environment)
    if own.processes == 1:
        return None
    if not 0 <= own.process < own.processes:
        raise UsageError(f"{program} says process {own.process} of {own.processes}, which count from 0; {WAYS}")
    return own


def found(environment: Environment) -> str:
    """Return the first of `LAUNCHERS` whose sign is there, or none."""
    return next((name for name, one in LAUNCHERS.items() if one.sign(environment)), "none")


WAYS = "say where the processes are by --coordinator, --processes and --process, or --launcher none for one alone"


def number(environment: Environment, name: str, default: int = 1) -> int:
    """Return a variable's whole number; `UsageError` where it is none."""
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}={text!r}, but it must be a whole number; {WAYS}")
    return int(text)


# 1. Launchers


def first_host(nodes: str) -> str:
    """Return the first of SLURM's node names.

    >>> [first_host(nodes) for nodes in ("a5,b6", "node[007-009,12],x1", "gpu[1-2]-ib", "rack[3,5]n[01-16].local")]
    ['a5', 'node007', 'gpu1-ib', 'rack3n01.local']
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def _slurm(environment: Environment) -> Place:
    # JAX's own port, but not its host: it drops what follows the brackets of a node list.
    port = number(environment, "SLURM_JOB_ID") % 2**12 + 2**16 - 2**12
    coordinator = f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    here = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    bound = any(environment.get(name, "none") != "none" for name in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"))
    own = None if bound else _share(environment, number(environment, "SLURM_LOCALID", 0), int(here))
    return Place("slurm", coordinator, *_numbers(environment, "SLURM_NTASKS", "SLURM_PROCID"), own)


def _ompi(environment: Environment) -> Place:
    names = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    own = _share(environment, number(environment, names[0], 0), number(environment, names[1]))
    return Place("ompi", None, *_numbers(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), own)


def _torchrun(environment: Environment) -> Place:
    # torchrun's own store listens on MASTER_PORT.
    coordinator = f"{environment['MASTER_ADDR']}:{number(environment, 'MASTER_PORT') + 1}"
    own = None  # without a local rank a process is its host's only one
    if "LOCAL_RANK" in environment:
        local = number(environment, "LOCAL_RANK")
        counted = "LOCAL_WORLD_SIZE" in environment
        own = _share(environment, local, number(environment, "LOCAL_WORLD_SIZE")) if counted else (local,)
    return Place("torchrun", coordinator, *_numbers(environment, "WORLD_SIZE", "RANK"), own)


def _stated(environment: Environment) -> Place:
    host = environment["JAX_COORDINATOR_ADDRESS"]
    port = environment.get("JAX_COORDINATOR_PORT") or PORT
    return Place("jax", host if ":" in host else f"{host}:{port}", *_numbers(environment, "NNODES", "NODE_RANK"))


def _skypilot(environment: Environment) -> Place:
    addresses = environment["SKYPILOT_NODE_IPS"].split()
    return Place("skypilot", f"{addresses[0]}:{PORT}", len(addresses), number(environment, "SKYPILOT_NODE_RANK", 0))


def _jobset(environment: Environment) -> Place:
    name, job = environment["JOBSET_NAME"], environment["REPLICATED_JOB_NAME"]
    return Place("jobset", f"{name}-{job}-0-0.{name}:{PORT}", *_numbers(environment, "NNODES", "JOB_COMPLETION_INDEX"))


def _numbers(environment: Environment, processes: str, process: str) -> tuple[int, int]:
    return number(environment, processes), number(environment, process, 0)


def _share(environment: Environment, local: int, here: int) -> tuple[int, ...] | None:
    """Return the devices of the `local`-th of `here` processes of a host; None: all that it sees.

    Of the GPUs that are visible to all of them each takes an equal part, in order. Fewer than there are processes are
    visible where the launcher gave each its own.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
    count = len(visible.split(",")) if visible else here
    if here == 1 or count < here:
        return None
    if count % here:
        raise UsageError(f"{here} processes share {count} visible devices ({visible}), no equal parts; {WAYS}")
    part = count // here
    return tuple(range(local * part, (local + 1) * part))


def _inside_srun(environment: Environment) -> bool:
    # sbatch sets the number of tasks, too, for a script that is none of them.
    inside = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
    return inside and number(environment, "SLURM_NTASKS") > 1


LAUNCHERS = {
    "jax": Launcher(
        *("JAX's own variables, as xpk sets them on GPUs", ("JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK")),
        lambda given: bool(given.get("JAX_COORDINATOR_ADDRESS")),
        _stated,
    ),
    "torchrun": Launcher(
        *("torchrun", ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")),
        lambda given: "RANK" in given and number(given, "WORLD_SIZE") > 1,
        _torchrun,
    ),
    "ompi": Launcher(
        *("mpirun", ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")),
        lambda given: number(given, "OMPI_COMM_WORLD_SIZE") > 1,
        _ompi,
    ),
    "slurm": Launcher(
        *("srun", ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")),
        _inside_srun,
        _slurm,
    ),
    "skypilot": Launcher(
        *("SkyPilot", ("SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK")),
        lambda given: number(given, "SKYPILOT_NUM_NODES") > 1,
        _skypilot,
    ),
    "jobset": Launcher(
        *("a JobSet", ("JOBSET_NAME", "REPLICATED_JOB_NAME", "NNODES", "JOB_COMPLETION_INDEX")),
        lambda given: all(given.get(name) for name in ("JOBSET_NAME", "REPLICATED_JOB_NAME", "NNODES")),
        _jobset,
    ),
}
"""The innermost first: torchrun and mpirun start processes inside a task of srun, and SkyPilot may run all of them."""


# 2. Processes that nothing tells where process 0 is

SEVERAL = {
    "NNODES": "the number of nodes, as xpk and Kubernetes manifests set it",
    "WORLD_SIZE": "the number of processes of PyTorch's launchers",
    "PMI_SIZE": "the number of processes of MPICH's or Intel's mpirun",
    "MV2_COMM_WORLD_SIZE": "the number of processes of MVAPICH's mpirun",
    "FLUX_JOB_SIZE": "the number of processes of flux run",
}
"""Variables that above 1 mean several processes, and what they are."""


def _require_alone(environment: Environment) -> None:
    """Raise `UsageError` where the environment looks like one of several processes."""
    for name, meaning in SEVERAL.items():
        if number(environment, name) > 1:
            raise UsageError(f"{name}={environment[name]} ({meaning}), but nothing names process 0's host; {WAYS}")
    if indexed_pod(environment):
        raise UsageError(
            f"this is pod {environment['JOB_COMPLETION_INDEX']} of an indexed Kubernetes Job, and nothing says how "
            f"many there are: set JAX_COORDINATOR_ADDRESS, NNODES and NODE_RANK as docs/clusters does, or {WAYS}"
        )


def indexed_pod(environment: Environment) -> bool:
    """Tell whether this process is in a pod of an indexed Kubernetes Job, as those of a JobSet are."""
    return "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
