"""The PyTorch twin: one config of jaxclf, trained with torch's modules, autograd, optimiser and scheduler.

Run, from a clone:  python -m tests.parity.torch_twin configs/digits.py --workdir runs/twin [--model.head identity ...]
                    python -m tests.parity.torch_twin experiments/fashion_heads.py --workdir DIR [--rows ...]
It needs PyTorch (the extra `parity`), and torchvision for ImageNet networks. OMP_NUM_THREADS=1 is faster for small
networks on a CPU, and much faster where other work runs beside it.

It is the same experiment as `jaxclf train` with the same arguments: from jaxclf's initial weights of that seed, on the
same batches in the same order, with the same pixels, which jaxclf's own pure functions augment. Only dropout masks
differ. So what differs between the two results is how two implementations of the same steps round; training with
BatchNorm is chaotic, so the runs part after some steps and agree in distribution over seeds.

The directory gets config.json, environment.json (torch's version in it), metrics.jsonl, predictions.npz, result.json
and results.jsonl: one `jaxclf.report.experiment.Record`. Given a table, the lines of all its complete runs are
gathered in one file, its `baseline_results`. There are no checkpoints: a run that was stopped starts again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
import tyro

from benchmarks import torch_networks
from jaxclf.cli.recipe import Fields, RecipeFile, load, must_be_python, override, with_recipe
from jaxclf.cli.result import print_result
from jaxclf.config import Config, LossConfig, OptimConfig
from jaxclf.data import augment, pipeline
from jaxclf.errors import RunError, UsageError
from jaxclf.models.torch_weights import to_torch
from jaxclf.report import tables
from jaxclf.training import losses
from jaxclf.training.evaluation import Evaluation
from jaxclf.training.run_directory import Result, RunDirectory, environment, per_class
from jaxclf.training.setup import Setup, set_up
from jaxclf.training.step import MIXING_STREAM, Program

OPTIMISERS: dict[str, tuple[str, Callable[[OptimConfig], dict[str, Any]]]] = {
    "sgd": ("SGD", lambda c: {"momentum": c.momentum, "dampening": c.dampening, "nesterov": c.nesterov}),
    "rmsprop": ("RMSprop", lambda c: {"alpha": c.alpha, "eps": c.eps, "momentum": c.momentum}),
    "adam": ("Adam", lambda c: {"betas": c.betas, "eps": c.eps}),
    "adamw": ("AdamW", lambda c: {"betas": c.betas, "eps": c.eps}),
    "adamax": ("Adamax", lambda c: {"betas": c.betas, "eps": c.eps}),
    "nadam": ("NAdam", lambda c: {"betas": c.betas, "eps": c.eps}),
    "adagrad": ("Adagrad", lambda c: {"eps": c.eps, "initial_accumulator_value": c.accumulator}),
    "adadelta": ("Adadelta", lambda c: {"rho": c.alpha, "eps": c.eps}),
}
"""optim.name -> torch.optim's class and its arguments; what is None is left to torch's own default."""
SCHEDULES: dict[str, tuple[str, Callable[[OptimConfig, int, int], dict[str, Any]]]] = {
    "constant": ("ConstantLR", lambda c, unit, total: {"factor": 1.0}),
    "multistep": ("MultiStepLR", lambda c, unit, _: {"milestones": [unit * m for m in c.milestones], "gamma": c.gamma}),
    "step": ("StepLR", lambda c, unit, total: {"step_size": round(unit * c.step_size), "gamma": c.gamma}),
    "exponential": ("ExponentialLR", lambda c, unit, total: {"gamma": c.gamma ** (1 / unit)}),
    "linear": ("LambdaLR", lambda c, unit, total: {"lr_lambda": lambda step: 1 - step / total}),
    "cosine": ("CosineAnnealingLR", lambda c, unit, total: {"T_max": total}),
    "polynomial": ("PolynomialLR", lambda c, unit, total: {"total_iters": total, "power": c.power}),
}
"""optim.schedule -> torch's class and its arguments for so many steps an epoch and so many in all."""


def scheduler_of(optim: OptimConfig, optimiser: torch.optim.Optimizer, *, unit: int, total: int) -> Any:
    """Return torch's scheduler, to be stepped `unit` times an epoch and `total` times in all."""
    name, arguments = SCHEDULES[optim.schedule]
    return getattr(torch.optim.lr_scheduler, name)(optimiser, **arguments(optim, unit, total))


def optimiser_of(optim: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return torch's optimiser, with its own defaults for all that the config leaves at None."""
    name, arguments = OPTIMISERS[optim.name]
    given = {key: value for key, value in arguments(optim).items() if value is not None}
    return getattr(torch.optim, name)(groups, lr=optim.lr, weight_decay=optim.weight_decay, **given)


@contextlib.contextmanager
def float32_rates(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Round the rates, as jaxclf's are, which shows when all else is float64; schedulers find what they left."""
    rates = [group["lr"] for group in optimiser.param_groups]
    for group in optimiser.param_groups:
        group["lr"] = float(np.float32(group["lr"]))
    yield
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate


def require_twin(config: Config) -> None:
    """Raise `UsageError` that names every field with which the twin would be another experiment."""
    optim, plain = config.optim, OptimConfig()
    faults = [f"loss.{name}" for name in losses.regulariser_names(config.loss)]
    faults += [] if optim.name in OPTIMISERS else [f"optim.name {optim.name}"]
    faults += [] if optim.schedule in SCHEDULES else [f"optim.schedule {optim.schedule}"]
    if optim.name == "rmsprop" and optim.accumulator:
        faults.append("optim.accumulator above 0 with rmsprop")
    for name in ("freeze", "accumulate", "ema", "schedule_every", "warmup"):
        if getattr(optim, name) != getattr(plain, name):
            faults.append(f"optim.{name} {getattr(optim, name)!r}")
    faults += ["run.recalibrate"] if config.run.recalibrate else []
    faults += ["model.weights"] if config.model.weights else []
    if faults:
        raise UsageError(f"the PyTorch twin does not do {', '.join(faults)} yet")


@dataclasses.dataclass(eq=False)
class Twin:
    """A network in training, and what trains it."""

    net: torch.nn.Module
    loss: LossConfig
    scale: float
    """Of the cosines, under losses of cosines."""
    auxiliary: tuple[float, ...]
    """Weights of the losses of auxiliary classifiers, whose logits follow the network's."""
    clip_norm: float | None
    optimiser: torch.optim.Optimizer
    scheduler: Any
    """Stepped after every epoch."""

    def step(self, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take one training step on [n h w c] and [n k]; return the losses [n] and logits [n k] before it."""
        dtype = next(self.net.parameters()).dtype
        self.net.train()
        answers = self.net(torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype))
        logits, *beside = answers if isinstance(answers, tuple) else (answers,)
        wanted = torch.from_numpy(targets).to(dtype)
        each = example_losses(self.loss, logits, wanted, self.scale)
        for weight, other in zip(self.auxiliary, beside, strict=True):
            each = each + weight * example_losses(self.loss, other, wanted, self.scale)
        self.optimiser.zero_grad()
        each.mean().backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        with float32_rates(self.optimiser):
            self.optimiser.step()
        return each.detach().numpy(), logits.detach().numpy()


def example_losses(config: LossConfig, logits: torch.Tensor, targets: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return torch's loss of each example [n]; `scale` is the factor of the cosines in logits."""
    if config.name == "cosine":
        return (targets * (1 - logits / scale) ** 2).sum(1)
    if config.name in ("cosface", "arcface"):
        logits = scale * with_margin(config, logits / scale, targets)
    if config.name in ("cross_entropy", "cosface", "arcface"):
        return F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing, reduction="none")
    if config.name == "mse":
        return F.mse_loss(logits, targets, reduction="none").mean(1)
    if config.name == "dot_regression":
        return (targets * F.mse_loss(logits, torch.ones_like(logits), reduction="none")).sum(1) / 2
    smoothed = (1 - config.label_smoothing) * targets + config.label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(1)


def with_margin(config: LossConfig, cosines: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return cosines [n k] less the margin, or of their angles and the margin, of which a class has its target's share.

    Past pi, an angle's cosine less m sin(m).
    """
    if config.name == "cosface":
        return cosines - (0.35 if config.margin is None else config.margin) * targets
    margin = (0.5 if config.margin is None else config.margin) * targets
    angles = cosines.acos()
    return torch.where(angles + margin < np.pi, (angles + margin).cos(), cosines - margin * margin.sin())


def make_twin(program: Program, net: torch.nn.Module) -> Twin:
    """Give a network the optimiser and the schedule of a program."""
    optim, stem = program.optim, program.model.backbone.stem.replace("_", ".")
    decayed, others = [], []
    for key, value in net.named_parameters():
        (decayed if _decays(optim, key, value, stem) else others).append(value)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimiser = optimiser_of(optim, [group for group in groups if group["params"]])
    scheduler = scheduler_of(optim, optimiser, unit=1, total=program.timeline.epochs)
    scale = losses.cosine_scale(program.loss, program.model.head)
    # torchvision's GoogLeNet answers with the deepest first
    auxiliary = tuple(one.weight for one in reversed(program.model.backbone.auxiliary_trained))
    return Twin(net, program.loss, scale, auxiliary, optim.clip_norm, optimiser, scheduler)


def _decays(optim: OptimConfig, key: str, value: torch.Tensor, stem: str) -> bool:
    if optim.decay == "all" or value.ndim < 2:
        return optim.decay == "all"
    depthwise = value.ndim == 4 and value.shape[1] == 1 and value[0, 0].numel() > 1 and key != f"{stem}.weight"
    return not (optim.decay == "not_depthwise" and depthwise)


@functools.partial(jax.jit, static_argnums=0)
def batch_of(program: Program, seed: jax.Array, step: jax.Array, *given: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return pixels [n h w c] and targets [n k] of a step, as jaxclf.training.step.train_step makes them.

    Given are the images, their labels, the step's rows of them and its examples' numbers.
    """
    (images, labels, rows, examples), key = given, jax.random.key(seed)
    epoch_key = jax.random.fold_in(key, step // program.timeline.steps_per_epoch)
    batch = augment.augment(program.augment, images, rows, epoch_key, program.mean, program.std, examples=examples)
    mixing = jax.random.fold_in(jax.random.fold_in(key, MIXING_STREAM), step)
    return augment.mix(program.augment, batch, jax.nn.one_hot(labels[rows], program.model.head.num_classes), mixing)


def start(setup: Setup) -> Twin:
    """Return the twin of a run before its first step, with jaxclf's initial weights."""
    model, state = setup.program.model, setup.init_state()
    net = torch_networks.build(setup.config.model, model, setup.data.image_shape)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(model, state.variables).items()})
    torch.manual_seed(setup.config.run.seed)  # of dropout
    return make_twin(setup.program, net)


def train(config: Config, workdir: Path, label: str, say: Callable[[str], None] = print) -> Result:
    """Train the twin of a config and write its results into a directory.

    Raises `UsageError` where the twin does not do what the config asks for, and where the directory has a result or
    a run of jaxclf already; `RunError` when the loss is no number any more.
    """
    require_twin(config)
    for name in ("result.json", "checkpoints"):
        if (workdir / name).exists():
            raise UsageError(f"{workdir} has {name} already; choose another --workdir")
    with set_up(config) as setup, RunDirectory(workdir, config) as directory:
        twin = start(setup)
        facts = environment() | {"implementation": "torch", "torch": torch.__version__}
        directory.write("environment.json", json.dumps(facts, indent=2) + "\n")
        rows, timed = [], []
        for epoch in range(config.run.epochs):
            rows.append(_epoch(setup, twin, epoch, timed))
            directory.write_rows(rows)
            say("  ".join(f"{name} {value:.5g}" for name, value in rows[-1].items() if value is not None))
        test = evaluate(setup, twin.net, "test")
        directory.write_predictions(test.labels, test.predictions)
        images, seconds = np.sum(timed[1:], axis=0) if timed[1:] else (0, 1)  # the first step warms up
        result = _result(setup, twin.net, test, float(images / seconds), directory.path)
        record = tables.record_of(label, config.run.seed, result, rows=rows, environment=facts)
        directory.write("results.jsonl", json.dumps(dataclasses.asdict(record)) + "\n")
        directory.write("result.json", result.to_json())
    return result


def batches(setup: Setup, epoch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield step, labels, pixels and targets of an epoch's batches."""
    program, first = setup.program, epoch * setup.order.steps_per_epoch
    seed = jnp.asarray(setup.config.run.seed, jnp.uint32)
    for step, batch in enumerate(setup.data.train_batches(setup.order, first, 1), first):
        given = (batch.images, batch.labels, batch.rows[0], batch.examples[0])
        made = batch_of(program, seed, jnp.asarray(step), *given)
        pixels, targets = (np.array(part) for part in made)
        yield step, np.asarray(batch.labels)[batch.rows[0]], pixels, targets


def _epoch(setup: Setup, twin: Twin, epoch: int, timed: list[tuple[int, float]]) -> dict[str, Any]:
    """Train for an epoch, time its steps; return its row of metrics, as a run of jaxclf writes it."""
    sums, rate, step = losses.zeros(), twin.optimiser.param_groups[0]["lr"], 0
    for step, labels, pixels, targets in batches(setup, epoch):
        begin = time.perf_counter()
        each, logits = twin.step(pixels, targets)
        timed.append((len(labels), time.perf_counter() - begin))
        if not np.isfinite(each).all():
            raise RunError(f"step {step + 1}: loss is not finite (lr {rate:g})")
        sums = jax.tree.map(jnp.add, sums, _sums(logits, labels, each))
    twin.scheduler.step()
    run, split = setup.config.run, pipeline.evaluated(setup.data)
    due = epoch + 1 == run.epochs or (epoch + 1) % run.eval_every == 0
    train, held_out = losses.means(sums), evaluate(setup, twin.net, split).metrics if due else {}
    row = {"epoch": epoch + 1, "step": step + 1, "lr": rate}
    row |= {f"train_{name}": train[name] for name in ("loss", "top1")}
    return row | {f"{split}_{name}": held_out.get(name) for name in ("loss", "top1", "top5")}


def _sums(logits: np.ndarray, labels: np.ndarray, each: np.ndarray | None = None) -> losses.Sums:
    arrays = (jnp.asarray(logits), jnp.asarray(labels), jnp.ones(len(labels), bool))
    return losses.metric_sums(*arrays, None if each is None else jnp.asarray(each))


def evaluate(setup: Setup, net: torch.nn.Module, split: str) -> Evaluation:
    """Evaluate on a split, each image counted once; BatchNorm's running statistics."""
    config, logits, labels, faults = setup.config, [], [], []
    net.eval()
    for batch in setup.data.eval_batches(split, min(config.data.eval_batch_size, setup.data.sizes[split])):
        rows = batch.rows[batch.mask]
        shown = [_pixels(setup.program, view) for view in augment.views(config.augment, batch.images[rows])]
        with torch.no_grad():
            logits.append(np.mean([net(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy() for pixels in shown], 0))
        labels.append(np.asarray(batch.labels)[rows])
        faults += batch.faults
    whole, truth = np.concatenate(logits), np.concatenate(labels)
    return Evaluation(losses.means(_sums(whole, truth)), truth, whole.argmax(1).astype(np.int32), tuple(faults))


def _pixels(program: Program, images: jax.Array) -> np.ndarray:
    return np.array(augment.normalise(images, program.mean, program.std))


def _result(setup: Setup, net: torch.nn.Module, test: Evaluation, images_per_second: float, path: Path) -> Result:
    state = net.state_dict()
    buffers = {name: value.numel() for name, value in net.named_buffers() if not name.endswith("num_batches_tracked")}
    statistics = sum(count for name, count in buffers.items() if name.rpartition(".running_")[1])
    digest = hashlib.sha256(b"".join(key.encode() + value.numpy().tobytes() for key, value in state.items()))
    return Result(
        top1=test.metrics["top1"],
        top5=test.metrics["top5"],
        loss=test.metrics["loss"],
        per_class=per_class(test.labels, test.predictions, len(setup.data.class_names)),
        step=setup.program.timeline.steps,
        parameters={
            "trainable": sum(value.numel() for value in net.parameters()),
            "fixed": sum(buffers.values()) - statistics,
            "statistics": statistics,
        },
        sha256=digest.hexdigest(),
        images_per_second=images_per_second,
        workdir=str(path),
    )


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train the PyTorch twin of one config."""

    recipe: RecipeFile
    """A file with get_config() -> Config, as in configs/."""
    workdir: Path
    """The directory of the results."""
    label: str | None = None
    """The table's row that this is a run of; None is the name of the head."""
    config: Fields = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class TableArguments:
    """Train the PyTorch twins of a table's runs that are not complete, and gather their results.

    Fields of the config (--data.data-dir DIR ...) override those of every run.
    """

    experiment: RecipeFile
    """A file with get_table() -> Table, as in experiments/."""
    workdir: Path
    """Directory of the runs and of results.jsonl, the table's baseline_results."""
    rows: tuple[str, ...] = ()
    """Labels of the rows to train; empty trains all."""


def train_table(args: Sequence[str]) -> None:
    """Train the twins of a table, one after another; results.jsonl has those of all complete runs."""
    chosen, overrides = tyro.cli(TableArguments, prog="torch_twin", args=args, return_unknown_args=True)
    table = load(chosen.experiment, "get_table")()
    everything = tables.jobs(table, chosen.workdir, lambda config: override(config, overrides, prog="torch_twin"))
    wanted = {row.label for row in tables.select(table, chosen.rows).rows}
    for job in everything:
        if job.row.label in wanted and not job.done:
            result = train(job.config, job.directory, job.row.label, say=lambda text: None)
            print(f"{job.row.label}, seed {job.seed}: test top-1 {result.top1:.2f} %", flush=True)
    lines = [(job.directory / "results.jsonl").read_text() for job in everything if job.done]
    (chosen.workdir / "results.jsonl").write_text("".join(lines))
    print(f"{chosen.workdir / 'results.jsonl'}: {len(lines)} of {len(everything)} runs")


def train_one(args: Sequence[str]) -> None:
    """Train the twin of one config."""
    chosen: Any = tyro.cli(with_recipe(Arguments, args), prog="torch_twin", args=args)
    must_be_python(chosen.recipe)
    print_result(train(chosen.config, chosen.workdir, chosen.label or chosen.config.model.head))


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr that says what was wrong."""
    file = next((Path(arg) for arg in args if arg.endswith(".py")), None)
    try:
        whole = file is not None and file.is_file() and "def get_table(" in file.read_text()
        (train_table if whole else train_one)(args)
    except (UsageError, RunError, OSError) as error:
        print(f"torch_twin: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
