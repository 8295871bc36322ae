"""The processes that share a run: how they find each other, and what they tell each other besides gradients.

JAX's own runtime connects them. Everything here is called by all processes at the same place of the program; a process
that is alone is answered at once.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxclf.config import Cluster, Launcher
from jaxclf.devices.layout import AXIS, Layout, lengthen_waits
from jaxclf.errors import RunError, UsageError

T = TypeVar("T")
FIRST_PORT, PORTS = 61440, 4096
"""The coordinator's port under a launcher is one of these, by the number of the job."""


class Place(NamedTuple):
    """A process among those of a run."""

    coordinator: str
    """HOST:PORT of process 0."""
    processes: int
    process: int
    device: int | None
    """The one device of the host that is this process's own; None: all that it sees."""


def join(cluster: Cluster) -> None:
    """Connect this process with the others of its run, if there are any; before anything else of JAX is used.

    Raises:
        UsageError: flags that contradict each other, a launcher whose environment is not there, and a coordinator that
            cannot be reached in five minutes.
    """
    if cluster.peer_timeout < 1:
        raise UsageError(f"--peer-timeout is {cluster.peer_timeout} but must be at least 1 second")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself (preemption.py)
    if cluster.devices is not None:
        _make_devices(cluster.devices)
    given = (cluster.coordinator, cluster.processes, cluster.process)
    if given != (None, None, None):
        _initialise(_explicit(cluster), "--coordinator", cluster.peer_timeout)
    elif (launcher := found(os.environ, _has_tpu()) if cluster.launcher == "auto" else cluster.launcher) == "tpu":
        jax.distributed.initialize(heartbeat_timeout_seconds=cluster.peer_timeout)
    elif launcher != "none":
        _initialise(PLACES[launcher](os.environ), launcher, cluster.peer_timeout)


def _make_devices(count: int) -> None:
    """Make virtual devices, should the CPU be what is computed on; other platforms do not read this."""
    if count < 1:
        raise UsageError(f"--devices is {count} but must be at least 1")
    lengthen_waits()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # JAX is in use already, with the devices that it has: layout.over_devices says if too few
            return


def _explicit(cluster: Cluster) -> Place:
    given = {"coordinator": cluster.coordinator, "processes": cluster.processes, "process": cluster.process}
    if missing := [f"--{name}" for name, value in given.items() if value is None]:
        raise UsageError(f"--coordinator, --processes and --process go together; missing: {', '.join(missing)}")
    assert cluster.coordinator is not None
    assert cluster.processes is not None
    assert cluster.process is not None
    if cluster.launcher not in ("auto", "none"):
        raise UsageError(f"--launcher {cluster.launcher} says where processes are, and so does --coordinator; give one")
    if not 0 <= cluster.process < cluster.processes:
        raise UsageError(f"--process is {cluster.process} but must be from 0 to {cluster.processes - 1}")
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator is {cluster.coordinator!r} but must be HOST:PORT")
    return Place(cluster.coordinator, cluster.processes, cluster.process, None)


def _initialise(place: Place, what: str, peer_timeout: int) -> None:
    if place.processes == 1:
        return
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local_device_ids=None if place.device is None else [place.device],
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=peer_timeout,
        )
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"{what}: process {place.process} of {place.processes} finds no others ({line})") from error


def found(environment: Mapping[str, str], tpu: bool) -> Launcher:
    """Return who started this process, by its environment: a TPU VM's own runtime, srun, mpirun, or nobody.

    >>> found({"OMPI_COMM_WORLD_SIZE": "4"}, False), found({"SLURM_JOB_ID": "7"}, False)
    ('ompi', 'none')
    """
    if tpu:
        return "tpu"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "ompi"
    inside_srun = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
    return "slurm" if inside_srun and int(environment.get("SLURM_NTASKS", "1")) > 1 else "none"


def _has_tpu() -> bool:
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def slurm(environment: Mapping[str, str]) -> Place:
    """Return the place of a task of srun; its device is its own where a node has several tasks.

    >>> tasks = {"SLURM_JOB_ID": "5", "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_NTASKS": "8"}
    >>> own = {"SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    >>> slurm(tasks | own)
    Place(coordinator='gpu03:61445', processes=8, process=6, device=2)
    """
    job, nodes, tasks, rank = _all_of(
        environment, "srun", "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"
    )
    prefix, bracket, inside = nodes.split(",")[0].partition("[")
    host = prefix + (inside.split("-")[0].rstrip("]") if bracket else "")
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0] == "1"
    device = None if alone else _own_device(environment, environment.get("SLURM_LOCALID", "0"))
    return Place(f"{host}:{FIRST_PORT + int(job) % PORTS}", int(tasks), int(rank), device)


def ompi(environment: Mapping[str, str]) -> Place:
    """Return the place of a process of Open MPI's mpirun, whose own host holds process 0.

    >>> uri = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
    >>> own = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    >>> ompi(uri | own | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    Place(coordinator='10.96.0.1:62624', processes=2, process=1, device=None)
    """
    uri, size, rank = _all_of(
        environment, "mpirun", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
    )
    job, _, addresses = uri.partition(";")
    kind, _, rest = addresses.partition("://")
    host = f"[{rest[1:].split(',')[0].split(']')[0]}]" if kind == "tcp6" else rest.split(",")[0].split(":")[0]
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
    device = None if alone else _own_device(environment, environment.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
    port = FIRST_PORT + int(job.split(".")[0]) // PORTS % PORTS  # mpirun's numbers are multiples of 4096
    return Place(f"{host}:{port}", int(size), int(rank), device)


PLACES: dict[str, Callable[[Mapping[str, str]], Place]] = {"slurm": slurm, "ompi": ompi}


def _all_of(environment: Mapping[str, str], launcher: str, *names: str) -> list[str]:
    if missing := [name for name in names if name not in environment]:
        raise UsageError(f"this process was not started by {launcher}: {', '.join(missing)} is not set")
    return [environment[name] for name in names]


def _own_device(environment: Mapping[str, str], local: str) -> int | None:
    """Return the device of a process that shares its host; None where the launcher shows it one device only."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
    return None if visible and "," not in visible else int(local)


# What the processes of a run tell each other.


def joined() -> bool:
    """Tell whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def gather(text: str) -> list[str]:
    """Return what each process says, by rank."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(own)], np.int32))).reshape(-1)
    room = 1 << int(sizes.max()).bit_length()  # a power of two: few shapes to compile
    padded = np.zeros(room, np.uint8)
    padded[: len(own)] = own
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), room)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def together(work: Callable[[], T]) -> T:
    """Do something on every process; where it fails on one, it fails on all, with the error of that one.

    Without this the others would wait for it at their next common step. Passes `UsageError` and `RunError` on; an
    OSError becomes a `RunError`.
    """
    if jax.process_count() == 1:
        return work()
    value, failed = None, None
    try:
        value = work()
    except (UsageError, RunError, OSError) as error:
        failed = error
    said = gather("" if failed is None else str(failed))
    if failed is not None:
        raise failed
    if wrong := [f"process {rank}: {text}" for rank, text in enumerate(said) if text]:
        raise RunError("; ".join(wrong))
    return value  # pyright: ignore[reportReturnType]  # None only with an error


def warn(text: str) -> None:
    """Warn the user, once for all processes."""
    if jax.process_index() == 0:
        warnings.warn(text, stacklevel=3)


class Votes:
    """Whether any process wants all to stop, known to all at the same step without waiting for each other.

    A vote is one integer's maximum over the devices, and it is counted when the next one is cast: by then the devices
    have long summed it.
    """

    EVERY = 4
    """Dispatches between two votes."""

    def __init__(self, layout: Layout) -> None:
        """Prepare to vote among the processes of a layout; one process alone does not."""
        self._layout = layout
        self._split = NamedSharding(layout.mesh, PartitionSpec(AXIS))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))
        self._cast: jax.Array | None = None
        self._number = 0

    def stop(self, wanted: bool) -> bool:
        """Cast a vote if it is time to, and tell whether the one before asked to stop."""
        if self._layout.hosts == 1:
            return wanted
        self._number += 1
        if self._number % self.EVERY:
            return False
        counted, own = self._cast, self._layout.devices // self._layout.hosts
        flags = jax.make_array_from_process_local_data(self._split, np.full(own, int(wanted), np.int32))
        self._cast = self._largest(flags)
        if not self._layout.ahead:
            jax.block_until_ready(self._cast)
        return counted is not None and int(counted) > 0
