"""Which values a config's fields may have, as far as that needs no knowledge of data or models."""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

from jaxclf.config import Config, Loader, Watching
from jaxclf.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is good, and what is allowed."""


def _at_least(least: float) -> Rule:
    return lambda value: least <= value < math.inf, f"at least {least}" + (" and finite" if least == 0 else "")


def _below_one(value: float) -> bool:
    return 0 <= value < 1


COUNT = _at_least(1)
WEIGHT = _at_least(0)
SHARE: Rule = (_below_one, "from 0 to below 1")
PROBABILITY: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0 and finite")
RULES: dict[str, Rule] = {
    "data.classes": _at_least(2),
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.validation": SHARE,
    "data.image_size": COUNT,
    "data.resize": COUNT,
    "augment.crop_scale": (
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1,
        "two shares of the area, above 0 to 1, the smaller first",
    ),
    "augment.crop_ratio": (
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < math.inf,
        "two ratios of width to height, above 0, the smaller first",
    ),
    "augment.pad": _at_least(0),
    "augment.rand_augment": (
        lambda value: len(value) == 2 and value[0] >= 0 and 0 <= value[1] <= 30,
        "operations, at least 0, and a magnitude from 0 to 30",
    ),
    "augment.jitter": (
        lambda value: len(value) == 4 and min(value) >= 0 and value[3] <= 0.5,
        "brightness, contrast, saturation and hue, at least 0, hue at most 0.5",
    ),
    "augment.lighting": WEIGHT,
    "augment.erasing": PROBABILITY,
    "augment.mixup": WEIGHT,
    "augment.cutmix": WEIGHT,
    "augment.test_crop": COUNT,
    "model.pool_power": POSITIVE,
    "model.pool_units": COUNT,
    "model.dropout": SHARE,
    "model.ghost_batch": COUNT,
    "loss.label_smoothing": SHARE,
    "loss.l1": WEIGHT,
    "loss.l2": WEIGHT,
    "loss.so": WEIGHT,
    "loss.dso": WEIGHT,
    "optim.lr": POSITIVE,
    "optim.momentum": SHARE,
    "optim.dampening": PROBABILITY,
    "optim.betas": (lambda value: len(value) == 2 and all(map(_below_one, value)), "two numbers from 0 to below 1"),
    "optim.alpha": SHARE,
    "optim.eps": WEIGHT,
    "optim.accumulator": WEIGHT,
    "optim.weight_decay": WEIGHT,
    "optim.clip_norm": POSITIVE,
    "optim.accumulate": COUNT,
    "optim.ema": SHARE,
    "optim.ema_every": COUNT,
    "optim.milestones": (
        lambda value: list(value) == sorted(set(value)) and min(value, default=1) > 0,
        "strictly increasing, from 1",
    ),
    "optim.gamma": WEIGHT,
    "optim.step_size": POSITIVE,
    "optim.power": POSITIVE,
    "optim.warmup": WEIGHT,
    "optim.warmup_start": PROBABILITY,
    "run.epochs": COUNT,
    "run.seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
    "run.eval_every": COUNT,
    "run.checkpoint_every": COUNT,
    "run.recalibrate": _at_least(0),
    "run.steps_per_dispatch": COUNT,
    "run.replicas": COUNT,
    "run.max_loss": POSITIVE,
    "run.rollbacks": _at_least(0),
}
"""By field; a field that is None is left to whom it belongs to."""


def validate(config: Config) -> None:
    """Check every field's range; all faults are listed in one `UsageError`."""
    faults = [*_out_of_range(config), *_unknown_words(config), *_contradictions(config)]
    if faults:
        raise UsageError("; ".join(faults))


def validate_loader(loader: Loader) -> None:
    """Check the numbers of processes and threads; `UsageError`."""
    if loader.workers < 0 or (loader.threads is not None and loader.threads < 1):
        raise UsageError(
            f"loader.workers is {loader.workers} and loader.threads {loader.threads}, but they must be at least 0 and 1"
        )


def validate_watching(watching: Watching) -> None:
    """Check the heartbeat, the steps of the profile and W&B's project; all faults are listed in one `UsageError`."""
    faults = []
    if not 0 <= watching.heartbeat < math.inf:
        faults.append(f"heartbeat is {watching.heartbeat} but must be at least 0 and finite")
    if watching.profile is not None and not profiled_steps(watching.profile):
        faults.append(f"profile is {watching.profile!r} but must be START:STOP, steps from 1, START below STOP")
    if watching.wandb is not None and not re.fullmatch(r"[^/\\#?%:]{1,128}", watching.wandb):
        faults.append(
            f"wandb is {watching.wandb!r} but must be a project name, 128 characters at most, none of /\\#?%:"
        )
    if faults:
        raise UsageError("; ".join(faults))


def profiled_steps(profile: str) -> range:
    """Return the steps that START:STOP names, empty if it names none.

    >>> profiled_steps("100:110"), profiled_steps("0:5"), profiled_steps("7")
    (range(100, 110), range(0, 0), range(0, 0))
    """
    match = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", profile)
    return range(*map(int, match.groups())) if match else range(0)


def _out_of_range(config: Config) -> Iterator[str]:
    for name, (good, allowed) in RULES.items():
        section, field = name.split(".")
        value = getattr(getattr(config, section), field)
        if value is not None and not good(value):
            yield f"{name} is {value!r} but must be {allowed}"


def _unknown_words(config: Config) -> Iterator[str]:
    """Check each field that is one of a few words: a recipe, being Python, can write any."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for name, hint in typing.get_type_hints(type(part)).items():
            if typing.get_origin(hint) is typing.Literal:
                value, allowed = getattr(part, name), typing.get_args(hint)
                if value not in allowed:
                    yield f"{section.name}.{name} is {value!r} but must be one of {', '.join(allowed)}"


def _contradictions(config: Config) -> Iterator[str]:
    """Check fields that are wrong beside others."""
    optim, augment, loss = config.optim, config.augment, config.loss
    if optim.nesterov and (optim.momentum == 0 or optim.dampening > 0):
        yield "optim.nesterov is True but must be off without momentum and with dampening"
    if optim.schedule == "hyperrule" and (optim.warmup or optim.warmup_start):
        yield f"optim.warmup is {optim.warmup} but must be 0 for hyperrule, which has a warm-up of its own"
    run = config.run
    if run.parallel == "jit" and (run.replicas is not None or run.replica_statistics != "average"):
        given = f"run.replicas is {run.replicas} and run.replica_statistics {run.replica_statistics!r}"
        yield f"{given}, but they must be None and 'average' unless run.parallel is 'pmap'"
    if optim.name == "lbfgs" and optim.accumulate > 1:
        yield f"optim.accumulate is {optim.accumulate} but must be 1 for lbfgs"
    if loss.name == "mse" and loss.label_smoothing > 0:
        yield f"loss.label_smoothing is {loss.label_smoothing} but must be 0 for mse"
    if config.data.resize is not None and config.data.resize < (config.data.image_size or 1):
        yield f"data.resize is {config.data.resize} but must be at least data.image_size {config.data.image_size}"
    if augment.test_crop is not None and not augment.test.endswith("crop"):
        yield f"augment.test_crop is {augment.test_crop} but must be None unless augment.test is five_crop or ten_crop"
