"""The processes that share a run: how they find each other, and what they tell each other besides gradients.

JAX's own runtime connects them. Everything here is called by all processes at the same place of the program; a process
that is alone is answered at once.
"""

import functools
import importlib.util
import json
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compiler, distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxclf.config import Cluster
from jaxclf.devices import launchers
from jaxclf.devices.layout import AXIS, Layout, lengthen_waits
from jaxclf.devices.preemption import Requests
from jaxclf.errors import RunError, UsageError
from jaxclf.storage import Location

T = TypeVar("T")
TOKEN = ".shared"
"""File of process 0 in a run directory, there while the others look for it."""
PATIENCE = 15.0
"""Seconds."""
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"
"""Flag of XLA. The other half, the kernels that autotuning chose, JAX keeps in the compilation cache."""
SHOWN = 3
"""Most differences of a process that an error names."""


def join(cluster: Cluster) -> None:
    """Connect this process with the others of its run, if there are any; before anything else of JAX is used.

    Processes that are connected already, as Ray Train's are, stay so.

    Raises:
        UsageError: flags that contradict each other, a launcher whose environment is not there, an environment that
            looks like several processes and names no coordinator (`launchers.place`), and a coordinator that cannot be
            reached in five minutes.
    """
    if cluster.peer_timeout < 1:
        raise UsageError(f"--peer-timeout is {cluster.peer_timeout} but must be at least 1 second")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself (preemption.py)
    if cluster.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if cluster.devices is not None:
        _make_devices(cluster.devices)
    if jax.distributed.is_initialized():
        _let_all_cache()
    elif (cluster.coordinator, cluster.processes, cluster.process) != (None, None, None):
        _join_stated(cluster)
    elif cluster.launcher == "tpu" or (cluster.launcher == "auto" and _has_tpu()):
        _connect(cluster, "tpu")
    elif cluster.launcher == "kubernetes" or (cluster.launcher == "auto" and _asks_kubernetes()):
        _connect(cluster, "kubernetes")
    elif cluster.launcher != "none" and (place := launchers.place(os.environ, cluster.launcher)) is not None:
        own: dict[str, Any] = {"local_device_ids": list(place.devices or ())}
        own["cluster_detection_method"] = "deactivate" if place.coordinator else place.launcher
        _connect(cluster, place.launcher, place.coordinator, place.processes, place.process, **own)


def _let_all_cache() -> None:
    """Let every process keep the programs that it compiles; JAX lets process 0 alone, and has no setting for it.

    The others, whose caches are on disks of their own, would compile everything again at each restart. Where a
    directory is shared, JAX leaves an entry that is there as it is.
    """
    state, write = distributed.global_state, getattr(compiler, "_cache_write", None)
    if write is None or hasattr(write, "__wrapped__"):  # another JAX, or done already
        return

    @functools.wraps(write)
    def as_first(*given: Any, **named: Any) -> None:
        own, state.process_id = state.process_id, 0
        try:
            write(*given, **named)
        finally:
            state.process_id = own

    compiler._cache_write = as_first


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


def _join_stated(cluster: Cluster) -> None:
    """Connect the process that the flags describe."""
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
    if cluster.processes > 1:
        place = (cluster.coordinator, cluster.processes, cluster.process)
        _connect(cluster, "--coordinator", *place, cluster_detection_method="deactivate")


def _connect(cluster: Cluster, what: str, *place: Any, **detection: Any) -> None:
    _let_all_cache()
    try:
        jax.distributed.initialize(*place, **detection, heartbeat_timeout_seconds=cluster.peer_timeout)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"{what}: this process finds no others ({line})") from error


def _has_tpu() -> bool:
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _asks_kubernetes() -> bool:
    """Tell whether JAX can ask Kubernetes for the other pods of a Job, where nothing else names them."""
    unnamed = launchers.indexed_pod(os.environ) and launchers.found(os.environ) == "none"
    return unnamed and importlib.util.find_spec("kubernetes") is not None


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


def require_same(what: str, own: Mapping[str, Any]) -> None:
    """Raise `UsageError` on all processes where one has other values than process 0; they are as JSON holds them."""
    if jax.process_count() == 1:
        return
    said = [json.loads(one) for one in gather(json.dumps([socket.gethostname(), own]))]
    (host, first), wrong = said[0], []
    for rank, (other, values) in enumerate(said):
        names = [name for name in {**first, **values} if values.get(name) != first.get(name)]
        shown = [f"{name} {values.get(name)}, not {first.get(name)}" for name in names[:SHOWN]]
        more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
        if names:
            wrong.append(f"process {rank} on {other} has {', '.join([*shown, *more])}")
    if wrong:
        raise UsageError(f"the processes have other {what} than process 0 on {host}: {'; '.join(wrong)}")


def require_shared(directory: Location) -> None:
    """Raise `UsageError` on all processes where one does not see in a directory what process 0 writes there.

    Without this they would wait for each other's part of the first checkpoint. A network file system may show a new
    file late: a process looks for it for `PATIENCE` seconds.
    """
    if jax.process_count() == 1:
        return
    file, first = directory / TOKEN, jax.process_index() == 0
    token = gather(secrets.token_hex(8) if first else "")[0]
    together(lambda: file.write_text(token) if first else None)
    seen, until = _reads(file, token), time.monotonic() + PATIENCE
    while not seen and time.monotonic() < until:
        time.sleep(0.5)
        seen = _reads(file, token)
    hosts = [json.loads(said) for said in gather(json.dumps([socket.gethostname(), seen]))]
    if first:
        file.unlink(missing_ok=True)
    if blind := [f"process {rank} on {host}" for rank, (host, one) in enumerate(hosts) if not one]:
        raise UsageError(
            f"{', '.join(blind)} cannot see what process 0 on {hosts[0][0]} writes to {directory}: the processes of a "
            "run need a --workdir on a file system that all of them share, or gs://BUCKET/PATH"
        )


def _reads(file: Location, token: str) -> bool:
    try:
        return file.read_text() == token
    except OSError:
        return False


def warn(text: str) -> None:
    """Warn the user, once for all processes."""
    if jax.process_index() == 0:
        warnings.warn(text, stacklevel=3)


class Stops:
    """The requests to stop that any process of a run has heard."""

    def __init__(self, requests: Requests, layout: Layout) -> None:
        """Ask `requests` on each process of a layout."""
        self._requests, self._votes = requests, Votes(layout)

    def asked(self) -> bool:
        """Tell whether there is one; all processes ask at the same places, and hear the same at each."""
        return self._votes.stop(self._requests.reason is not None)

    @property
    def by(self) -> str:
        """Who asked, in words."""
        return self._requests.reason or "another process of the run"


class Votes:
    """A vote on stopping, whose outcome all processes know at the same step without waiting for each other.

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
