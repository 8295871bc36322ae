"""Train many runs as tasks of a Ray cluster; what a lost worker had is trained again, from where it stopped.

One run is one task in a process of its own. A worker that sees the driver's directory trains in it, so a second
worker goes on from the first one's last checkpoint. One that does not (machines without a common file system) trains
in a directory of its own, jaxclf-UID/... in its temporary directory, and sends the finished one back. There a run goes
on only on that machine, and what a failed run had stays.

Results equal the serial ones to the bit on processors of the driver's kind: a run computes with as many XLA threads as
one on the driver would, or with `cpus`, whatever the worker has, and under the driver's JAX_* and XLA_* variables.
environment.json, written by the worker, records what a result may depend on besides. Data sets are read by the
worker's own paths. Accelerators other than GPUs are not asked for.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import platform
import shutil
import socket
import sys
import tarfile
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf.config import Config
from jaxclf.devices.preemption import Requests
from jaxclf.errors import RunError, Stopped, UsageError, one_line
from jaxclf.storage import Location, absolute, location
from jaxclf.training.loop import train
from jaxclf.training.run_directory import cores
from jaxclf.training.setup import set_up

LOSSES = 5
"""A run that loses this many workers is given up: it may be what ends them, as one that needs too much memory is."""
POLL = 0.5
"""Seconds between two looks at whether somebody asked to stop."""
REACH_SECONDS = 10
"""How long the head of a cluster may take to accept a connection; Ray itself would try for minutes."""
CACHE = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
"""Settings of JAX that keep compiled programs; each run is a new process and would compile again."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A config to train and the directory to train it in."""

    name: str
    config: Config
    directory: Location
    """On the driver."""


@dataclasses.dataclass(frozen=True)
class RayCluster:
    """A cluster, and the share of it that one run takes."""

    address: str | None = None
    """HOST:PORT of an existing one, or "auto" for the one of this machine; None starts one here, until the end."""
    jobs: int | None = None
    """Runs that train at the same time; None is one on a cluster of our own, and what there is room for elsewhere."""
    cpus: int | None = None
    """CPUs of a run and XLA threads that it computes with; None is those of a run on the driver, and one CPU with
    GPUs."""
    gpus: int | None = None
    """GPUs of a run; None is one where the cluster has any."""

    @property
    def threads(self) -> int:
        """XLA threads of a run."""
        return self.cpus or int(os.environ.get("NPROC") or cores())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The answer of a worker about one run."""

    host: str
    seconds: float
    warnings: tuple[str, ...]
    top1: float = 0.0
    error: str | None = None
    """The error of a run that another attempt would not mend."""
    stopped: str | None = None
    """The request that stopped this worker; another one can go on."""
    archive: np.ndarray | None = None
    """The finished directory, tar as uint8 [bytes], where the worker did not see the driver's."""


def train_on_ray(runs: Sequence[Run], workdir: Location, cluster: RayCluster) -> None:
    """Train the runs, a line for each; their directories are below `workdir`.

    Raises `UsageError` without Ray, for a cluster that cannot be reached and for a fault of the first config;
    `RunError` that names the runs that failed, after all others are complete; and of these `Stopped` after SIGTERM,
    SIGINT or a maintenance notice, when the workers have ended.
    """
    ray = _require_ray()
    with _connected(ray, cluster), _token(workdir) as token:
        options = _options(ray, cluster)
        if fault := _first(ray, options, runs[0].config):
            raise UsageError(fault)
        limit = cluster.jobs or (len(runs) if cluster.address else 1)
        with Requests() as requests:
            failed = _train_all(ray, ray.remote(max_retries=0, **options)(_work), runs, limit, token, requests)
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}; their messages are above")


def _require_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs Ray, which is not installed: pip install 'jaxclf[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, cluster: RayCluster) -> Iterator[None]:
    """Connect to the cluster; at the end, interrupted or not, the processes of all runs are gone."""
    where: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        slots = (cluster.jobs or 1) * cluster.threads
        where = {"address": "local", "num_cpus": slots, "include_dashboard": False}
    elif cluster.address != "auto":
        _reach(cluster.address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        with warnings.catch_warnings():
            # JAX warns of forks beside its threads; what Ray forks touches nothing of JAX and becomes another program.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types
        text = one_line(error)
        if cluster.address is None:
            raise RunError(f"Ray did not start on this machine: {text}") from error
        text += " (where a token is asked for, RAY_AUTH_MODE=token must be set)"
        raise UsageError(f"--address {cluster.address}: no Ray cluster can be joined there: {text}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise `UsageError` for an address that is none or where nothing listens."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UsageError(f"--address is {address!r} but must be HOST:PORT of a Ray cluster, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: no Ray cluster can be reached there ({error})") from error


@contextlib.contextmanager
def _token(workdir: Location) -> Iterator[str]:
    """Write a file by which a worker knows that it sees this directory; yield its path."""
    token = absolute(workdir) / f".ray-{uuid.uuid4().hex}"
    workdir.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        yield str(token)
    finally:
        token.unlink(missing_ok=True)


def _options(ray: Any, cluster: RayCluster) -> dict[str, Any]:
    """Return what a task takes and the environment that its process starts in."""
    gpus = cluster.gpus
    if gpus is None:
        gpus = int(os.environ.get("JAX_PLATFORMS") != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1)
    cpus = cluster.cpus or (1 if gpus else cluster.threads)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        have = " or ".join(f"{machine.get('CPU', 0):g} and {machine.get('GPU', 0):g}" for machine in machines)
        text = f"a run takes {cpus} CPUs and {gpus} GPUs (--cpus, --gpus) of one machine, but there are {have}"
        if cluster.address is None:
            raise UsageError(text)
        _say(f"warning: {text}; waiting for a larger machine to join")
    variables = {} if gpus else {"JAX_PLATFORMS": "cpu"}
    variables |= {f"JAX_{name.upper()}": str(jax.config.values[f"jax_{name}"]) for name in CACHE if _is_set(name)}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    # numpy's sums, in matrices, are split like XLA's; Ray would set OMP_NUM_THREADS to the task's CPUs.
    variables |= {"NPROC": str(cluster.threads), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores()))}
    # A process for each run: JAX keeps a GPU's memory until its process ends.
    return {"num_cpus": cpus, "num_gpus": gpus, "max_calls": 1, "runtime_env": {"env_vars": variables}}


def _is_set(name: str) -> bool:
    return jax.config.values[f"jax_{name}"] is not None


def _first(ray: Any, options: dict[str, Any], config: Config) -> str | None:
    """Return what a worker finds wrong with a config before it compiles: said once if all runs share it.

    The driver does not look itself: JAX would take the memory of its GPU.
    """
    try:
        return ray.get(ray.remote(**options)(_find_fault).remote(config.to_json()))
    except ray.exceptions.RayError as error:
        raise RunError(f"no worker could start; is jaxclf installed where they run? {_last_line(error)}") from error


def _find_fault(config: str) -> str | None:
    """Return what is wrong with a config, as JSON, before anything is compiled."""
    try:
        set_up(Config.from_json(config)).data.close()
    except UsageError as error:
        return str(error)
    return None


def _train_all(ray: Any, task: Any, runs: Sequence[Run], limit: int, token: str, requests: Requests) -> list[str]:
    """Train the runs, `limit` at a time, and return the names of those that failed; `Stopped` once that is asked."""
    errors = ray.exceptions
    gone = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError)
    waiting, running, losses, failed = collections.deque(runs), {}, collections.Counter(), []
    while waiting or running:
        while waiting and len(running) < limit:
            run = waiting.popleft()
            directory = str(absolute(run.directory))
            running[task.remote(run.config.to_json(), directory, token, _is_begun(run.directory))] = run
        done, _ = ray.wait(list(running), timeout=POLL)
        if requests.reason:  # no exception from inside Ray, whose own code may lose it
            raise Stopped(f"stopped by {requests.reason}; the same command goes on from the last checkpoints")
        if not done:
            continue
        [ended] = done
        run = running.pop(ended)
        outcome, lost, fault = None, None, None
        try:
            outcome = ray.get(ended)
            lost = outcome.stopped
        except gone as error:
            lost = type(error).__name__
        except errors.RayError as error:
            fault = f"unexpected: {error}"
        if lost:
            losses[run.name] += 1
            if losses[run.name] < LOSSES:
                waiting.append(run)
                _say(f"{run.name}: its worker was lost ({lost}); another takes the run over")
                continue
            fault = f"{LOSSES} workers were lost, the last by {lost}; Ray's logs say why"
        elif outcome is not None:
            fault = _finish(run, outcome)
        if fault:
            failed.append(run.name)
            _say(f"{run.name}: {fault}")
    return failed


def _is_begun(directory: Location) -> bool:
    """Tell whether there is anything of a run in a directory."""
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def _finish(run: Run, outcome: Outcome) -> str | None:
    """Bring a run's directory home and say how it ended; return the error of one that failed."""
    for text in outcome.warnings:
        _say(f"warning: {run.name}: {text}")
    if outcome.error is not None:
        return f"{outcome.error} (on {outcome.host})"
    if outcome.archive is not None:
        try:
            _unpack(outcome.archive, run.directory)
        except OSError as error:
            return f"the run of {outcome.host} could not be written to {run.directory}: {error.strerror}"
    said = f"{run.name}: test top-1 {outcome.top1:.2f} % after {outcome.seconds:.1f} s on {outcome.host}"
    print(said, flush=True)
    return None


def _work(config: str, directory: str, token: str, begun: bool) -> Outcome:
    """Train one run, in a worker.

    `config` is JSON, `directory` the driver's, `token` a file in it that whoever sees it can see, `begun` whether the
    driver has something of the run: without seeing that, it is not trained anew beside it.
    """
    start, host, home = time.perf_counter(), platform.node(), location(directory)
    ended: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        try:
            parsed, seen = Config.from_json(config), location(token).exists()
            if begun and not seen:
                raise UsageError(
                    f"{home} holds a begun run that this machine cannot see; finish it with --executor local"
                )
            place = home if seen else _scratch(directory, config)
            ended["top1"] = train(parsed, place, quiet=True).top1
            if not seen:
                ended["archive"] = _pack(place)
                shutil.rmtree(place)
        except Stopped as error:
            ended["stopped"] = str(error)
        except (UsageError, RunError, OSError) as error:
            ended["error"] = str(error)
    texts = tuple(str(warning.message) for warning in caught)
    return Outcome(host, time.perf_counter() - start, texts, **ended)


def _scratch(directory: str, config: str) -> Path:
    """Return the worker's own directory of a run, always the same one, so that a second attempt goes on there."""
    own = Path(tempfile.gettempdir()) / f"jaxclf-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    return own / hashlib.sha256(f"{directory}\n{config}".encode()).hexdigest()[:16]


def _pack(directory: Path) -> np.ndarray:
    """Return a run directory as a tar, uint8 [bytes], without its lock."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(directory, ".", filter=lambda member: None if member.name == "./lock" else member)
    return np.frombuffer(file.getbuffer(), np.uint8)


def _unpack(archive: np.ndarray, directory: Location) -> None:
    """Write a packed run directory, whole or not at all; `OSError` where there is one that is not empty."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as part:
        with tarfile.open(fileobj=io.BytesIO(archive.data)) as tar:
            tar.extractall(Path(part) / "run", filter="data")
        (Path(part) / "run").rename(directory)


def _last_line(error: Exception) -> str:
    """Return the last line of an error that holds another's traceback."""
    return str(error).strip().splitlines()[-1]


def _say(text: str) -> None:
    print(f"jaxclf: {text}", file=sys.stderr, flush=True)
