"""Options of a command that change no number of a run, so that none of them is part of a `Config`."""

import dataclasses
import re
from typing import Annotated, Literal

from jaxclf.config.fields import Bound, Count, Natural, Weight


def profiled_steps(profile: str) -> range:
    """Return the steps that START:STOP names, empty if it names none.

    >>> profiled_steps("100:110"), profiled_steps("0:5"), profiled_steps("7")
    (range(100, 110), range(0, 0), range(0, 0))
    """
    match = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", profile)
    return range(*map(int, match.groups())) if match else range(0)


Steps = Annotated[str, Bound(lambda text: len(profiled_steps(text)) > 0, "START:STOP, steps from 1, START below STOP")]
Project = Annotated[
    str,
    Bound(
        lambda name: re.fullmatch(r"[^/\\#?%:]{1,128}", name) is not None,
        "a project name, 128 characters at most, none of /\\#?%:",
    ),
]


@dataclasses.dataclass(frozen=True)
class Loader:
    """What reads a streamed set; no field changes a pixel, so none of them is part of a `Config`."""

    workers: Natural = 0
    """Processes that read, decode and crop; 0: threads of this process, which is faster on few cores."""
    threads: Count | None = None
    """Threads, in each process where there are some; None: as many as there are cores for it."""


Launcher = Literal["auto", "none", "slurm", "ompi", "tpu"]


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
    peer_timeout: int = 100
    """Seconds without a sign of life after which a process is taken for lost, and the others end."""


@dataclasses.dataclass(frozen=True)
class Watching:
    """What is seen of a run while it goes on; no field changes a number, so none of them is part of a `Config`."""

    heartbeat: Weight = 60.0
    """Seconds between two lines with speed, step times and share of time spent waiting for data, which are also in
    WORKDIR/heartbeat.json; 0: none."""
    profile: Steps | None = None
    """START:STOP, a trace of steps START to STOP - 1 in WORKDIR/profile; they count from 1, as in metrics.jsonl."""
    tensorboard: bool = False
    """Write event files for TensorBoard into WORKDIR/tensorboard (extra `tensorboard`)."""
    wandb: Project | None = None
    """Weights & Biases project that the run is sent to (extra `wandb`)."""
