"""The learning rate of every step: names and numbers of OptimConfig -> a function of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxclf.config import OptimConfig
from jaxclf.errors import UsageError

HYPERRULE = {20_000: (100, 200, 300, 400, 500), 500_000: (500, 3_000, 6_000, 9_000, 10_000)}
"""By number of training images (below which): end of the warm-up, drops, end. google-research/big_transfer,
bit_hyperrule.py."""
HYPERRULE_LARGE = (500, 6_000, 12_000, 18_000, 20_000)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """How long a run is."""

    steps_per_epoch: int
    epochs: int
    examples: int
    """Training images."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def learning_rate(config: OptimConfig, timeline: Timeline, step: int) -> float:
    """Return the rate of a step (from 0), in float64.

    With W = round(warmup * steps_per_epoch), the steps i < W of the warm-up take lr * (s + (1 - s) i / W),
    s = warmup_start (torch LinearLR from s to 1). Then the schedule's own time t starts, in epochs: whole ones, or with
    fractions under schedule_every = "step". It runs for T = epochs - W / steps_per_epoch:

        constant     lr                                  multistep    lr * gamma^(number of milestones <= t)
        step         lr * gamma^floor(t / step_size)     exponential  lr * gamma^t
        linear       lr * (1 - t / T)                    polynomial   lr * (1 - t / T)^power
        cosine       lr * (1 + cos(pi t / T)) / 2

    as torch's MultiStepLR, StepLR (step_size rounded to whole steps), ExponentialLR, LambdaLR, PolynomialLR and
    CosineAnnealingLR (eta_min 0) give it after a SequentialLR's warm-up, stepped once an epoch or once a step, after
    the update. So milestones count from the end of the warm-up, and linear has rate lr at step 0 and lr / total at the
    last; megvii's ShuffleNetV2 steps the scheduler before the update, so its rates are those of one step later and its
    last one is zero.

    hyperrule is BiT's, in steps, whatever the number of epochs: by the number of training images (below 20,000, below
    500,000, above) a warm-up lr * i / W of 100, 500, 500 steps, a tenth after each step of (200, 300, 400), (3000,
    6000, 9000), (6000, 12000, 18000), and zero from step 500, 10,000, 20,000 on. A drop comes one step after its number
    (`s < step`), as there. `warmup` and `warmup_start` do not apply to it.

    Steps past the end of the run have the rate of its end, which is zero for linear, polynomial and cosine.

    Raises:
        UsageError: hyperrule with a warm-up.

    >>> config, timeline = OptimConfig(lr=0.5, gamma=0.5, milestones=(2, 3)), Timeline(10, epochs=4, examples=100)
    >>> [learning_rate(config, timeline, step) for step in (0, 19, 20, 29, 30, 39)]
    [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    >>> config = OptimConfig(lr=0.5, schedule="linear", schedule_every="step", warmup=0.4, warmup_start=0.25)
    >>> [learning_rate(config, Timeline(10, epochs=1, examples=100), step) for step in (0, 1, 2, 3, 4, 7)]
    [0.125, 0.21875, 0.3125, 0.40625, 0.5, 0.25]
    """
    return float(learning_rates(config, timeline, np.asarray([step]))[0])


def learning_rates(config: OptimConfig, timeline: Timeline, steps: np.ndarray) -> np.ndarray:
    """Return the rates of some steps, float64; `learning_rate` says which."""
    if config.schedule == "hyperrule":
        return _hyperrule(config, timeline, steps)
    steps = np.minimum(steps, timeline.steps)
    warm = _warm_steps(config, timeline)
    rising = config.warmup_start + (1 - config.warmup_start) * steps / max(warm, 1)
    done = np.maximum(steps - warm, 0)
    if config.schedule_every == "epoch":
        done = done // timeline.steps_per_epoch * timeline.steps_per_epoch
    left = 1 - done / max(timeline.steps - warm, 1)  # a run that ends in its warm-up has no time of the schedule's own
    return config.lr * np.where(steps < warm, rising, _factor(config, done, timeline.steps_per_epoch, left))


def _factor(config: OptimConfig, done: np.ndarray, per_epoch: int, left: np.ndarray) -> np.ndarray:
    """Return the share of `lr` after some steps, with a share `left` of the time to go."""
    epochs = done / per_epoch
    match config.schedule:
        case "multistep":
            return config.gamma ** np.searchsorted(np.asarray(config.milestones, float), epochs, side="right")
        case "step":
            return config.gamma ** (done // max(round(config.step_size * per_epoch), 1))
        case "exponential":
            return config.gamma**epochs
        case "linear":
            return left
        case "polynomial":
            return left**config.power
        case "cosine":
            return (1 + np.cos(np.pi * (1 - left))) / 2
    return np.ones_like(epochs)


def _hyperrule(config: OptimConfig, timeline: Timeline, steps: np.ndarray) -> np.ndarray:
    warm, *drops, end = _hyperrule_steps(config, timeline)
    after = np.searchsorted(drops, steps, side="left")  # drops < step
    return config.lr * np.where(steps < warm, steps / warm, np.where(steps < end, 0.1**after, 0.0))


def _hyperrule_steps(config: OptimConfig, timeline: Timeline) -> tuple[int, ...]:
    if config.warmup or config.warmup_start:
        given = f"optim.warmup {config.warmup} and optim.warmup_start {config.warmup_start}"
        raise UsageError(f"{given} were given but schedule 'hyperrule' has its own warm-up: leave both at 0")
    return next((rule for below, rule in HYPERRULE.items() if timeline.examples < below), HYPERRULE_LARGE)


def _warm_steps(config: OptimConfig, timeline: Timeline) -> int:
    return round(config.warmup * timeline.steps_per_epoch)


def schedule(config: OptimConfig, timeline: Timeline) -> optax.Schedule:
    """Return step (from 0) -> learning rate for use inside jit: `learning_rate` rounded to float32, at every step.

    It reads a table of the rates that differ: an entry for every step of the warm-up and then for every epoch, or, when
    the rate changes at every step, for every step of the run (4 bytes each). A float32 formula would be off by many
    units in the last place where the cosine nears zero.
    """
    if config.schedule == "hyperrule":
        warm, every, last = 0, 1, _hyperrule_steps(config, timeline)[-1]
    else:
        warm, last = _warm_steps(config, timeline), timeline.steps
        every = timeline.steps_per_epoch if config.schedule_every == "epoch" else 1
    steps = np.concatenate([np.arange(warm), np.arange(warm, last + 1, every)])
    table = learning_rates(config, timeline, steps).astype(np.float32)

    def rate(step: jax.typing.ArrayLike) -> Float[Array, ""]:
        step = jnp.minimum(jnp.asarray(step), last)
        return jnp.asarray(table)[jnp.where(step < warm, step, warm + (step - warm) // every)]

    return rate
