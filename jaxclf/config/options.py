"""Options of a command that change no number of a run, so that none of them is part of a `Config`."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

from jaxclf.config.fields import Bound, Count, Natural, Probability, Weight, at_least


def profiled_steps(profile: str) -> range:
    """Return the steps that START:STOP names, empty if it names none.

    >>> profiled_steps("100:110"), profiled_steps("0:5"), profiled_steps("7")
    (range(100, 110), range(0, 0), range(0, 0))
    """
    match = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", profile)
    return range(*map(int, match.groups())) if match else range(0)


Steps = Annotated[str, Bound(lambda text: len(profiled_steps(text)) > 0, "START:STOP, steps from 1, START below STOP")]
Shots = Annotated[tuple[int, ...], Bound(lambda shots: min(shots, default=1) > 0, "numbers of images, from 1")]
Project = Annotated[
    str,
    Bound(
        lambda name: re.fullmatch(r"[^/\\#?%:]{1,128}", name) is not None,
        "a project name, 128 characters at most, none of /\\#?%:",
    ),
]


@dataclasses.dataclass(frozen=True)
class Loader:
    """The readers of a streamed set; no field changes a pixel, so none of them is part of a `Config`."""

    workers: Natural = 0
    """Processes that read, decode and crop; 0: threads of this process, which is faster on few cores."""
    threads: Count | None = None
    """Threads, in each process where there are some; None: as many as there are cores for it."""


Launcher = Literal["auto", "none", "tpu", "slurm", "ompi", "torchrun", "jax", "skypilot", "jobset", "kubernetes"]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The devices and processes of a run, which change no recipe (run.parallel says where they do)."""

    devices: int | None = None
    """Devices of each process; None: all. On CPU as many virtual ones are made."""
    launcher: Launcher = "auto"
    """Who started the processes. auto: what the environment says; none: this process is alone."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no launcher says it; with --processes and --process."""
    processes: int | None = None
    """Processes in all."""
    process: int | None = None
    """Number of this one, from 0."""
    deterministic: bool = False
    """Leave out the GPU operations whose sums may end with other bits each time (XLA_FLAGS
    --xla_gpu_exclude_nondeterministic_ops), so that a resumed run is exact; a CPU has none."""
    peer_timeout: int = 100
    """Seconds without a sign of life after which a process is taken for lost, and the others end."""


@dataclasses.dataclass(frozen=True)
class Watching:
    """The reports of a run while it goes on; no field changes a number, so none of them is part of a `Config`."""

    heartbeat: Weight = 60.0
    """Seconds between two lines with speed, step times and share of time spent waiting for data, which are also in
    WORKDIR/heartbeat.json; 0: none."""
    profile: Steps | None = None
    """START:STOP, a trace of steps START to STOP - 1 in WORKDIR/profile; they count from 1, as in metrics.jsonl."""
    tensorboard: bool = False
    """Write event files for TensorBoard into WORKDIR/tensorboard (extra `tensorboard`)."""
    wandb: Project | None = None
    """Weights & Biases project that the run is sent to (extra `wandb`)."""


@dataclasses.dataclass(frozen=True)
class Probing:
    """What features are probed with beside a linear classifier; no field is part of a `Config`."""

    neighbours: Count = 20
    """Training images that vote on a test image."""
    shots: Shots = (1, 5, 10)
    """Training images a class, of which few-shot accuracies are measured; none: no such."""
    draws: Annotated[int, at_least(2)] = 20
    """Draws of these images, each a function of the seed."""
    seed: Natural = 0
    """Seed of the draws."""


@dataclasses.dataclass(frozen=True)
class Searching:
    """The evolution of settings of an elastic network; no field is part of a `Config`."""

    population: Annotated[int, at_least(4)] = 20
    """Settings of a generation, half of them mutated and half crossed from the best quarter of all so far."""
    generations: Natural = 5
    """Generations after the first, which is drawn at random."""
    mutation: Probability = 0.1
    """Probability that a number of a setting is drawn anew."""
    recalibrate: Count = 20
    """Training batches that BatchNorm's statistics of a setting are averaged over before it is evaluated."""
    seed: Natural = 0
    """Seed of the evolution."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to run a table: its rows, the means, the place."""

    workdir: Path
    """Directory of the runs and the rendered table, a path or gs://BUCKET/PATH (extra `gcs`)."""
    jobs: int | None = None
    """Runs that train at the same time; None is one, or what an existing Ray cluster has room for. local: by row, each
    process on its share of the cores."""
    rows: tuple[str, ...] = ()
    """Labels of the rows to run; empty runs all."""
    render: bool = True
    """Write the rendered files at the end."""
    executor: Literal["local", "ray"] = "local"
    """local: train in this process, or in --jobs of them; ray: on workers of a Ray cluster, whose lost runs others take
    over (extra `ray`)."""
    address: str | None = None
    """ray: HOST:PORT of a cluster that this machine is part of, or auto for the one that runs here; None starts one on
    this machine."""
    cpus: int | None = None
    """ray: CPUs of a run and threads that XLA computes with; None is what a run of this process would have, so that
    results equal its own to the bit, and one CPU beside a GPU."""
    gpus: int | None = None
    """ray: GPUs of a run; None is one where the cluster has any."""
    stack: bool = False
    """local: train runs that differ in seeds alone in one program, as many as the device has room for, and say what
    that gains."""
