"""Images/s and peak memory of this package's training step and of PyTorch's, side by side in one run.

Run:  python benchmarks/train_step.py [--networks resnet32 ...] [--precisions float32 ...] [--variants jaxclf ...]
          [--rounds 5] [--seconds 8] [--limit 600] [--huge-pages] [--json FILE]

It takes the extra `parity` and, for ImageNet networks, torchvision 0.28.0 (`make full` has both); torch.compile on a
CPU takes a C++ compiler too. The machine should do nothing else: see `load_average` in the JSON. Where JAX finds a GPU,
all runs there, in each of three precisions; on a CPU float32 alone, which is what a CPU trains in:

    float32    no TF32: jax_default_matmul_precision "highest"; torch's allow_tf32 off for matmuls and for cuDNN
    tf32       GPU: JAX's default; torch's allow_tf32 on for both
    bfloat16   model.dtype bfloat16; torch.autocast(bfloat16); parameters, BatchNorm and loss float32 on both sides

The step: uint8 images that are on the device already, the same batch each time, are normalised; forward pass with batch
statistics, cross-entropy, backward pass, SGD with momentum 0.9 and weight decay 1e-4 on everything. Nothing is
augmented and nothing dropped out. Ours is `jaxclf.training.parallel.train_steps` as `jaxclf train` calls it, so it also
gathers its batch, sums metrics and looks for infinities. torch's networks are those of torch_networks.py
(torchvision's own for ImageNet), its optimiser is SGD(fused=True), its normalisation one multiplication and one
addition, each the fastest form that torch has; on a GPU cuDNN may try its algorithms (cudnn.benchmark). The variants:

    jaxclf, jaxclf_8_steps    one step in a compiled call, which is the default on CPU; GPU: eight, its default
    jaxclf_cores              CPU: every core is a device (`jaxclf train --devices N`), and they share each batch
    torch_eager               images and weights in NCHW, as modules are made
    torch_channels_last       images and weights in NHWC
    torch_compile             torch.compile of everything up to the loss, in NHWC
    torch_cuda_graphs         GPU: the same with mode="reduce-overhead"

Before anything is timed, all start from one file of weights and take the same first steps. Who has another number of
parameters than jaxclf or other losses (in float32 by more than 1e-4, and 1 % of what the loss has moved since the first
step, whose rounding it amplifies) is said to differ and is not timed. Each is a process of its own, because torch's
threads slow others down while they wait for work. Those of one network and precision live at the same time and are
measured in turn, round by round, every second round backwards; the others are stopped (SIGSTOP) meanwhile. A
measurement warms up and then takes steps until its time is over, without waiting for single ones. A ratio is taken
within a round, to the fastest of torch's that round; above 1 is faster than torch. Medians and ranges are over the
rounds. Compiling is not timed. What ends, or does not answer within the limit, is named with its reason in the table.

Memory is the peak of a process. On a GPU it is that of the framework's allocator since the process started, so with
what the choice of algorithms took. On a CPU it is the resident memory while training, less that before the network was
made, so with what compiling left behind. --huge-pages gives both sides glibc's tunable hugetlb=1, as jaxclf's command
line gives it to itself; otherwise neither has it.

Exit code: 0; 1 where something could not be measured; 2 for arguments that cannot work.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tyro
from input_pipeline import end_process, environment, import_torchvision, ratios
from input_pipeline import spread as spread_of

# Nothing of jaxclf up here: it imports JAX, and the environment that JAX reads is set first.

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
"""The rate is small, so that the first steps can be compared and a batch seen a thousand times does no harm."""
TOLERANCES = {"float32": 1e-4, "tf32": 2e-3, "bfloat16": 1e-2}
"""Precision -> relative distance of losses (measured on a CPU, ResNet-8: 2e-7 in float32, 3e-4 in bfloat16)."""
MOVED = 0.01
"""Share of the loss's move since the first step that is added to that (ResNet-50's torch layouts differ by 0.006)."""
CHECKED = 2
"""First steps whose losses are compared; as many as one call takes, where one takes more."""
PARTS = 10
"""Number of parts of a measurement; the clock is read after each."""
TUNABLE = "glibc.malloc.hugetlb=1"
VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "NPROC", "XLA_FLAGS")
"""Environment variables on which speed depends."""


class Network(NamedTuple):
    """A network's images, classes and batch."""

    side: int
    classes: int
    batch: Mapping[str, int]
    """Images in a batch by platform."""


NETWORKS = {
    "resnet32": Network(32, 100, {"cpu": 128, "gpu": 128}),
    "densenet_bc_100_12": Network(32, 100, {"cpu": 64, "gpu": 64}),
    "resnet18": Network(224, 1000, {"cpu": 16, "gpu": 128}),
    "resnet50": Network(224, 1000, {"cpu": 8, "gpu": 64}),
    "mobilenet_v2": Network(224, 1000, {"cpu": 16, "gpu": 128}),
    "shufflenet_v2_x0_5": Network(224, 1000, {"cpu": 16, "gpu": 128}),
    "resnet8": Network(32, 100, {"cpu": 32, "gpu": 32}),
}
"""The thesis's networks, each at the batch of its recipe or what fits; resnet8 is for --quick."""
SUITE = tuple(name for name in NETWORKS if name != "resnet8")


class Variant(NamedTuple):
    """A way to train."""

    side: str
    """jaxclf or torch."""
    platforms: tuple[str, ...] = ("cpu", "gpu")
    """Where it is measured unless variants are named."""
    steps: int = 1
    """In one compiled call."""
    channels_last: bool = False
    mode: str | None = None
    """The mode of torch.compile; None does not compile."""
    cores: bool = False
    """Whether every core of a CPU is a device."""


VARIANTS = {
    "jaxclf": Variant("jaxclf"),
    "jaxclf_8_steps": Variant("jaxclf", ("gpu",), steps=8),
    "jaxclf_cores": Variant("jaxclf", ("cpu",), cores=True),
    "torch_eager": Variant("torch"),
    "torch_channels_last": Variant("torch", channels_last=True),
    "torch_compile": Variant("torch", channels_last=True, mode="default"),
    "torch_cuda_graphs": Variant("torch", ("gpu",), channels_last=True, mode="reduce-overhead"),
}
PRECISIONS = {"cpu": ("float32",), "gpu": ("float32", "tf32", "bfloat16")}
"""Platform -> what is measured unless precisions are named."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure images/s and peak memory of jaxclf's training step and of PyTorch's."""

    networks: tuple[str, ...] = SUITE
    """Names of the networks."""
    precisions: tuple[str, ...] | None = None
    """float32, tf32, bfloat16; None: float32 on a CPU, all on a GPU."""
    variants: tuple[str, ...] | None = None
    """Names of the variants; None takes all that make sense on the device."""
    batch_size: int | None = None
    """Images in a batch; None: each network's own."""
    rounds: int = 5
    """Times that everyone is measured."""
    seconds: float = 8.0
    """Seconds of each measurement, which takes at least one step."""
    limit: float = 600.0
    """Seconds in which a process has to be compiled and ready, and beyond `seconds` those for a measurement."""
    huge_pages: bool = False
    """glibc.malloc.hugetlb=1 for every process."""
    json: Path | None = None
    """Write every round, the ratios and the environment to this file, after each network and precision anew."""
    quick: bool = False
    """One small network and one short round: does it run at all?"""


class Contestant(NamedTuple):
    """The network, variant and precision that one process trains."""

    network: str
    variant: str
    precision: str
    platform: str
    batch: int
    checked: int
    """First steps whose losses are reported."""
    weights: str
    """File to start from."""

    @property
    def key(self) -> str:
        """Its name in the whole run."""
        return f"{self.network}, {self.precision}: {self.variant}"


class Training(Protocol):
    """A network in training on a fixed batch."""

    steps: int
    """In a call."""
    parameters: int
    """Trainable numbers."""

    def run(self, calls: int) -> None:
        """Make calls, and wait until the last one is done."""
        ...

    def loss(self) -> float:
        """Return the mean loss over the steps since this was asked last; torch's: of the last step."""
        ...

    def device_memory(self) -> int | None:
        """Return the peak bytes of the device's allocator since the process started; None on a CPU."""
        ...


def batch_of(contestant: Contestant) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n h w c] and labels int32 [n]."""
    network, rng = NETWORKS[contestant.network], np.random.default_rng(0)
    images = rng.integers(0, 256, (contestant.batch, network.side, network.side, 3), np.uint8)
    return images, rng.integers(0, network.classes, contestant.batch, np.int32)


def program_of(name: str, precision: str) -> Any:
    """Return jaxclf's program of a network."""
    from jaxclf.config import AugmentConfig, Config, LossConfig, OptimConfig
    from jaxclf.models.classifier import build
    from jaxclf.training.schedules import Timeline
    from jaxclf.training.step import Program

    config = Config(model=model_config(name, precision))
    optim = OptimConfig(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    model, timeline = build(config, NETWORKS[name].classes, seed=0), Timeline(1, 1, 1)
    still = AugmentConfig(pad=0, flip=False)
    return Program(model, optim, timeline, LossConfig(), still, MEAN, STD)


def model_config(name: str, precision: str) -> Any:
    """Return the fields of a network; without dropout, or no two losses would be the same."""
    from jaxclf.config import ModelConfig

    return ModelConfig(name, dropout=0.0, dtype="bfloat16" if precision == "bfloat16" else "float32")


def write_weights(name: str, file: Path) -> None:
    """Write jaxclf's initial weights of seed 0 as a PyTorch state dict."""
    from jaxclf.models.torch_weights import to_torch
    from jaxclf.training.step import init_state

    program, side = program_of(name, "float32"), NETWORKS[name].side
    weights: Any = to_torch(program.model, init_state(program, (side, side, 3), 0, 0).variables)
    np.savez(file, **weights)


def read_weights(contestant: Contestant) -> dict[str, np.ndarray]:
    """Return the state dict to start from."""
    with np.load(contestant.weights) as file:
        return dict(file)


# Ours


class JaxTraining:
    """`jaxclf.training.parallel.train_steps` on a fixed batch."""

    def __init__(self, contestant: Contestant) -> None:
        """Put weights and batch on the device."""
        import jax

        from jaxclf.devices.layout import over_devices
        from jaxclf.models.torch_weights import load_torch
        from jaxclf.training.run_directory import cores
        from jaxclf.training.step import init_state

        variant = VARIANTS[contestant.variant]
        if variant.cores:
            jax.config.update("jax_num_cpu_devices", cores())
        layout = over_devices(None if variant.cores else 1)
        if contestant.platform == "gpu":
            precise = "highest" if contestant.precision == "float32" else "default"
            jax.config.update("jax_default_matmul_precision", precise)
        self.steps = variant.steps
        program = program_of(contestant.network, contestant.precision)
        self._program = dataclasses.replace(program, spread=layout.spread(training=True))
        images, labels = batch_of(contestant)
        # Everything of a state but the weights is zero before the first step, momentum too.
        shapes = jax.eval_shape(lambda: init_state(self._program, images.shape[1:], 0, 0))
        state = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
        loaded = load_torch(self._program.model, read_weights(contestant))
        self._state = layout.whole(state.replace(params=loaded["params"], batch_stats=loaded["batch_stats"]))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        rows = np.tile(np.arange(contestant.batch, dtype=np.int32), (self.steps, 1))
        self._batch = layout.whole((images, labels, rows))

    def run(self, calls: int) -> None:
        """Make calls, and wait until the last one is done."""
        import jax

        from jaxclf.training.parallel import train_steps

        for _ in range(calls):
            self._state = train_steps(self._program, self._state, *self._batch)
        jax.block_until_ready(self._state)

    def loss(self) -> float:
        """Return the mean loss over the steps since this was asked last."""
        from jaxclf.training import losses

        found = losses.means(self._state.sums)["loss"]
        self._state = self._state.replace(sums=losses.zeros())
        return found

    def device_memory(self) -> int | None:
        """Return the peak bytes of the device's allocator since the process started; None on a CPU."""
        import jax

        found = jax.devices()[0].memory_stats()
        return None if found is None else found["peak_bytes_in_use"]


# torch's


class TorchTraining:
    """A PyTorch loop over a fixed batch."""

    steps = 1

    def __init__(self, contestant: Contestant) -> None:
        """Put weights and batch on the device."""
        import torch

        variant = VARIANTS[contestant.variant]
        self._torch: Any = torch
        self._device = _torch_device(contestant, variant)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self._net = _torch_net(contestant).to(self._device, memory_format=layout).train()
        self.parameters = sum(parameter.numel() for parameter in self._net.parameters())
        rule: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "fused": True}
        self._optimiser = torch.optim.SGD(self._net.parameters(), **rule)
        images, labels = (torch.from_numpy(array).to(self._device) for array in batch_of(contestant))
        self._images, self._labels = images.permute(0, 3, 1, 2).contiguous(memory_format=layout), labels.long()
        # (x / 255 - mean) / std = x * scale + shift
        mean, std = (torch.tensor(values, device=self._device).reshape(3, 1, 1) for values in (MEAN, STD))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._narrow = contestant.precision == "bfloat16"
        self._forward = self._loss_of if variant.mode is None else torch.compile(self._loss_of, mode=variant.mode)
        self._loss: Any = None

    def _loss_of(self, images: Any, labels: Any) -> Any:
        torch = self._torch
        with torch.autocast(self._device, torch.bfloat16, enabled=self._narrow):
            logits = self._net((images * self._scale).add_(self._shift))
            return torch.nn.functional.cross_entropy(logits, labels)

    def run(self, calls: int) -> None:
        """Make calls, and wait until the last one is done."""
        for _ in range(calls):
            self._loss = self._forward(self._images, self._labels)
            self._optimiser.zero_grad()
            self._loss.backward()
            self._optimiser.step()
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def loss(self) -> float:
        """Return the loss of the last call."""
        return float(self._loss.detach())

    def device_memory(self) -> int | None:
        """Return the peak bytes of the device's allocator since the process started; None on a CPU."""
        return None if self._device == "cpu" else self._torch.cuda.max_memory_allocated()


def _torch_device(contestant: Contestant, variant: Variant) -> str:
    """Set torch's switches and return its name of the device."""
    import torch

    from jaxclf.errors import UsageError

    if contestant.platform == "cpu":
        if variant.mode == "reduce-overhead":
            raise UsageError(f"{contestant.variant} needs a GPU")
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError(f"JAX has a GPU, but this build of torch ({torch.__version__}) has none")
    # Not torch.backends' newer fp32_precision: torch.compile reads these, and fails where only the others were set.
    torch.set_float32_matmul_precision("highest" if contestant.precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = contestant.precision != "float32"
    torch.backends.cudnn.benchmark = True
    return "cuda"


def _torch_net(contestant: Contestant) -> Any:
    import torch

    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # or torch_networks could not, beside a CPU build of torch
    modules = importlib.import_module("torch_networks")
    network, config = NETWORKS[contestant.network], model_config(contestant.network, contestant.precision)
    model = program_of(contestant.network, contestant.precision).model
    net = modules.build(config, model, (network.side, network.side, 3))
    net.load_state_dict({key: torch.from_numpy(value) for key, value in read_weights(contestant).items()})
    return net


SIDES: dict[str, Callable[[Contestant], Training]] = {"jaxclf": JaxTraining, "torch": TorchTraining}


# The processes


def first_losses(training: Training, checked: int) -> list[float]:
    """Take the first steps; return the mean loss over each call."""
    found = []
    for _ in range(math.ceil(checked / training.steps)):
        training.run(1)
        found.append(training.loss())
    return found


def rate(training: Training, batch: int, seconds: float) -> dict[str, float]:
    """Return images/s, milliseconds of a step, how many were timed, and the loss after them.

    Raises `RunError` where that loss is no number.
    """
    from jaxclf.errors import RunError

    training.run(1)  # the process has just been woken
    begin = time.perf_counter()
    training.run(1)
    part = max(1, int(seconds / PARTS / (time.perf_counter() - begin)))
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        training.run(part)
        calls += part
    steps = calls * training.steps
    if not math.isfinite(loss := training.loss()):
        raise RunError(f"the loss is {loss} after {steps} timed steps")
    return {"images_per_second": steps * batch / passed, "step_ms": 1000 * passed / steps, "steps": steps, "loss": loss}


def resident_bytes(name: str) -> int:
    """Return VmRSS, the resident memory of this process, or VmHWM, its peak, see proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def serve(contestant: Contestant) -> int:
    """Be a contestant: answer each number of seconds on a line of stdin with what was measured, as JSON on stdout."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # see Process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    side = VARIANTS[contestant.variant].side
    for name in ("jaxclf.training.step", "torch") if side == "torch" else ("jaxclf.training.step",):
        importlib.import_module(name)
    before = resident_bytes("VmRSS")
    training = SIDES[side](contestant)
    facts = {"parameters": training.parameters, "first_losses": first_losses(training, contestant.checked)}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        measured: dict[str, Any] = rate(training, contestant.batch, float(line))
        device = training.device_memory()
        measured["memory_bytes"] = resident_bytes("VmHWM") - before if device is None else device
        print(json.dumps(measured), file=answers, flush=True)
    return 0


class Process:
    """A contestant in a process of its own, which runs only while it is measured."""

    facts: dict[str, Any]
    """The message of a process that is ready."""

    def __init__(self, contestant: Contestant, *, limit: float, huge_pages: bool) -> None:
        """Start it, wait until its first steps are taken, and stop it; `RunError` where that takes longer."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._limit = limit
        environment = os.environ | ({"GLIBC_TUNABLES": TUNABLE} if huge_pages else {})
        # A process group, but no session: if this process dies, the system wakes a stopped group with SIGHUP and
        # SIGCONT, and it finds its stdin closed.
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", json.dumps(contestant._asdict())],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors},
            **{"text": True, "process_group": 0, "env": environment},
        )
        try:
            begin = time.perf_counter()
            self.facts = self._answer(limit) | {"start_seconds": time.perf_counter() - begin}
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> dict[str, float]:
        """Return what it measures in so many seconds; `RunError` where it ends or takes longer than it may."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the answer will say
            os.write(self._process.stdin.fileno(), f"{seconds}\n".encode())
        return self._answer(self._limit + seconds)

    def _answer(self, limit: float) -> Any:
        from jaxclf.errors import RunError

        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise RunError(f"not done after {limit:g} s")
        if not (line := self._process.stdout.readline()):
            raise RunError(f"ended with {self._process.wait()}: {self._last_words()}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        return json.loads(line)

    def _last_words(self) -> str:
        """Return the first line of the last exception, or else the last line."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip() and not line.startswith(" ")]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt): ", line)]
        return (raised or lines or ["it said nothing"])[-1]

    def close(self) -> None:
        """Let it end by itself, or else kill it."""
        with self._errors:
            end_process(self._process)


# The rounds


def difference(own: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> str | None:
    """Say how two that are ready do not train the same; None where they do.

    Where one reports means over more steps, they are compared with the means of the other's.
    """
    if own["parameters"] != other["parameters"]:
        return f"has {own['parameters']:,} parameters instead of {other['parameters']:,}"
    count = min(len(own["first_losses"]), len(other["first_losses"]))
    ours, theirs = (np.reshape(facts["first_losses"], (count, -1)).mean(1) for facts in (own, other))
    allowed = tolerance * np.abs(theirs) + MOVED * np.abs(theirs - theirs[0])
    if not (np.abs(ours - theirs) <= allowed).all():  # NaN is not
        return f"has the first losses {ours.tolist()} instead of {theirs.tolist()}"
    return None


def measure(group: Sequence[Contestant], chosen: Arguments) -> list[dict[str, Any]]:
    """Return a row for each of those that are compared: facts, rounds, and why it failed if it did."""
    from jaxclf.errors import RunError

    rows = [{**one._asdict(), "failed": None, "rounds": []} for one in group]
    with contextlib.ExitStack() as stack:
        live: list[tuple[dict[str, Any], Process]] = []
        for one, row in zip(group, rows, strict=True):
            print(f"starting {one.key}", file=sys.stderr)
            try:
                process = Process(one, limit=chosen.limit, huge_pages=chosen.huge_pages)
            except RunError as error:
                row["failed"] = str(error)
                continue
            stack.callback(process.close)
            row |= process.facts
            first = live[0][0] if live else row
            row["failed"] = difference(row, first, TOLERANCES[one.precision])
            live += [] if row["failed"] else [(row, process)]
        for number in range(chosen.rounds):
            print(f"round {number + 1} of {chosen.rounds}, {group[0].network}, {group[0].precision}", file=sys.stderr)
            for row, process in live[:: 1 if number % 2 == 0 else -1]:
                try:
                    row["rounds"].append(process.measure(chosen.seconds))
                except RunError as error:
                    row["failed"] = str(error)
            live = [(row, process) for row, process in live if not row["failed"]]
    return rows


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a group with medians and ranges, and ratios to the fastest of torch's; none for who failed."""

    def column(row: Mapping[str, Any]) -> list[float]:
        return [one["images_per_second"] for one in row["rounds"]]

    rivals = [column(row) for row in rows if VARIANTS[row["variant"]].side == "torch" and not row["failed"]]
    found = []
    for row in rows:
        if not row["failed"]:
            row = {**row, "images_per_second": spread_of(column(row))}
            row["memory_bytes"] = max(one["memory_bytes"] for one in row["rounds"])
            row |= {"to_torch": spread_of(ratios(column(row), rivals))} if rivals else {}
        found.append(row)
    return found


# The report

HEAD = ("network", "precision", "batch", "variant", "images/s", "ratio to torch's fastest", "peak memory")


def table_row(row: Mapping[str, Any]) -> str:
    """Return a row of the Markdown table."""
    cells = [str(row[name]) for name in HEAD[:4]]
    if row["failed"]:
        return f"| {' | '.join(cells)} | {row['failed'].replace('|', '/')} | | |"
    digits = 0 if row["images_per_second"]["median"] >= 100 else 1
    cells += [_cell(row["images_per_second"], digits), _cell(row["to_torch"], 2) if "to_torch" in row else "-"]
    return f"| {' | '.join(cells)} | {row['memory_bytes'] / 2**30:.2f} GiB |"


def _cell(values: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{values[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def facts_of_the_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    found = environment() | {"variables": {name: os.environ.get(name) for name in VARIABLES}}
    for one in importlib.metadata.distributions():
        if re.match(r"(jax-cuda|nvidia-cudnn|triton)", name := one.name):
            found[name] = one.version
    return found


def require_measurable(chosen: Arguments, platform: str) -> None:
    """Raise `UsageError` for arguments that cannot work."""
    from jaxclf.errors import UsageError, unknown

    if platform not in PRECISIONS:
        raise UsageError(f"JAX's device is a {platform}, where PyTorch is not compared; it must be cpu or gpu")
    if importlib.util.find_spec("torch") is None:
        raise UsageError("the comparison needs PyTorch: pip install -e '.[parity]'")
    for kind, given, allowed in (
        ("network", chosen.networks, NETWORKS),
        ("precision", chosen.precisions, set(TOLERANCES) - ({"tf32"} if platform == "cpu" else set())),
        ("variant", chosen.variants, VARIANTS),
    ):
        if given is not None and not given:
            raise UsageError(f"no {kind} is given")
        for name in given or ():
            if name not in allowed:
                raise unknown(kind, name, allowed)
    good = {
        "batch_size": chosen.batch_size is None or chosen.batch_size >= 2,
        "rounds": chosen.rounds >= 1,
        "seconds": 0 < chosen.seconds < math.inf,
        "limit": 0 < chosen.limit < math.inf,
    }
    if wrong := [f"{name} is {getattr(chosen, name)}" for name in good if not good[name]]:
        raise UsageError(f"{', '.join(wrong)}; batch_size must be 2 or more, rounds 1 or more, the others above 0")


def groups(chosen: Arguments, platform: str, weights: Path) -> Iterator[list[Contestant]]:
    """Yield those that are compared with each other."""
    own = tuple(name for name, one in VARIANTS.items() if platform in one.platforms)
    variants = own if chosen.variants is None else chosen.variants
    checked = max(CHECKED, *(VARIANTS[name].steps for name in variants))
    for name in chosen.networks:
        batch, file = chosen.batch_size or NETWORKS[name].batch[platform], str(weights / f"{name}.npz")
        for precision in chosen.precisions or PRECISIONS[platform]:
            yield [Contestant(name, variant, precision, platform, batch, checked, file) for variant in variants]


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure everything, print rows as they are known, and return the report."""
    machine = facts_of_the_machine()
    require_measurable(chosen, machine["platform"])
    if chosen.quick:
        chosen = dataclasses.replace(chosen, networks=("resnet8",), rounds=1, seconds=0.5)
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "json"}
    report: dict[str, Any] = {"environment": machine, "settings": settings, "rows": []}
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * 4}{'---:|' * 3}")
    with tempfile.TemporaryDirectory() as temporary:
        for group in groups(chosen, machine["platform"], Path(temporary)):
            if not Path(group[0].weights).exists():
                write_weights(group[0].network, Path(group[0].weights))
            rows = compare(measure(group, chosen))
            print("\n".join(map(table_row, rows)), flush=True)
            report["rows"] += rows
            if chosen.json is not None:
                chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, 1 where something could not be measured, 2 after one line on stderr."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX; the processes inherit it
    from jaxclf.errors import RunError, UsageError

    try:
        report = run(tyro.cli(Arguments, prog="train_step.py", args=args))
    except (UsageError, RunError, OSError) as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    return 1 if any(row["failed"] for row in report["rows"]) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(Contestant(**json.loads(sys.argv[2]))))
    sys.exit(main(sys.argv[1:]))
