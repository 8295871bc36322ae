"""A recipe before anything is trained: a grid over its fields as a table, and its outline as text."""

import itertools
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config, validate
from jaxclf.data import order
from jaxclf.data.datasets import resolve
from jaxclf.data.kinds import Dataset
from jaxclf.errors import UsageError, unknown
from jaxclf.models.classifier import Classifier, build
from jaxclf.models.count import count
from jaxclf.report.experiment import Row, Table
from jaxclf.training.schedules import Timeline, learning_rates

Grid = Mapping[str, Mapping[str, Any]]
"""Field, as section.field -> value as written -> value."""

WORDS = {"None": None, "True": True, "False": False}
"""As the command line writes them elsewhere."""

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 60, 8
"""Characters of the learning-rate curve."""

CHANGES = 12
"""Changes of the rate that an outline lists at most."""


# 1. The grid


def parse_grid(given: Sequence[str], base: Config) -> Grid:
    """Read axes like `optim.lr=0.1,0.01` or `optim.milestones=[9,13],[5,10]`: JSON values, or words without quotes.

    Raises `UsageError` for an axis that is none, a field that is unknown (nearest names first), given twice or
    `run.seed`, and a value that the field cannot hold or that is there twice.

    >>> parse_grid(["model.maps=None,10"], Config())
    {'model.maps': {'None': None, '10': 10}}
    """
    grid: dict[str, dict[str, Any]] = {}
    for axis in given:
        name, equals, text = axis.partition("=")
        if not equals or not text:
            raise UsageError(f"--grid {axis!r} is no axis; write it as section.field=value,value")
        _check_field(name, base)
        if name in grid:
            raise UsageError(f"--grid has {name} twice; give all its values at once")
        grid[name] = {}
        for word in re.findall(r"\[[^\]]*\]|[^,]+", text):
            value = _value(name, word, base)
            if any(value == other and type(value) is type(other) for other in grid[name].values()):
                raise UsageError(f"--grid {axis!r} has the value {value!r} twice")
            grid[name][word] = value
    if not grid:
        raise UsageError("--grid needs an axis, like optim.lr=0.1,0.01")
    return grid


def _check_field(name: str, base: Config) -> None:
    if name == "run.seed":
        raise UsageError("--grid cannot vary run.seed; --seeds 0,1,2 gives every point its seeds")
    sections = base.to_dict()
    names = [f"{section}.{field}" for section, fields in sections.items() for field in fields]
    if name in names:
        return
    section, _, last = name.rpartition(".")
    near = get_close_matches(last, [other.partition(".")[2] for other in names], cutoff=0.7)
    likely = [other for other in names if other.startswith(f"{section}.") or other.partition(".")[2] in near]
    raise unknown("config field", name, likely or names)


def _value(name: str, word: str, base: Config) -> Any:
    """Return the value that the field gets, converted as from JSON."""
    section, field = name.split(".")
    try:
        value = WORDS[word] if word in WORDS else json.loads(word)
    except json.JSONDecodeError:
        value = word
    hint = typing.get_type_hints(type(getattr(base, section)))[field]
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise unknown(name, value, typing.get_args(hint))
    return getattr(getattr(_with(base, {name: value}), section), field)


def _with(base: Config, values: Mapping[str, Any]) -> Config:
    config = base.to_dict()
    for name, value in values.items():
        section, field = name.split(".")
        config[section][field] = value
    return Config.from_dict(config)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds, different integers from 0 on separated by commas.

    >>> parse_seeds("0,1,2")
    (0, 1, 2)
    """
    words = text.split(",")
    if not all(re.fullmatch(r"[0-9]+", word) for word in words) or len(set(map(int, words))) < len(words):
        raise UsageError(f"--seeds is {text!r} but must be different integers, like 0,1,2")
    return tuple(map(int, words))


def sweep_table(name: str, base: Config, grid: Grid, seeds: tuple[int, ...], *, overrides: Sequence[str] = ()) -> Table:
    """Return the table of a grid over `base`: one row a point, the last axis fastest, the first point the baseline.

    `base` is the recipe `name` under `overrides`, which the caption repeats.

    Rows are scored, and the best one is named, on the validation images where every point holds some out, else on the
    test images, of which the table then warns.
    """
    last = [axis.partition(".")[2] for axis in grid]
    titles = [short if last.count(short) == 1 else axis for axis, short in zip(grid, last, strict=True)]
    rows = []
    for words in itertools.product(*grid.values()):
        label = " ".join(f"{title}={word}" for title, word in zip(titles, words, strict=True))
        values = {axis: grid[axis][word] for axis, word in zip(grid, words, strict=True)}
        rows.append(Row(label, "grid", values))
    axes = " x ".join(f"{axis} in {', '.join(values)}" for axis, values in grid.items())
    under = f" under {' '.join(overrides)}" if overrides else ""
    held_out = all(_with(base, row.axes).data.validation > 0 for row in rows)
    return Table(
        name=name,
        title=f"Sweep over {name}",
        caption=f"{axes}; seeds {', '.join(map(str, seeds))}. All other fields are those of the recipe {name}{under}.",
        source="",
        recipe=lambda **values: _with(base, values),
        rows=tuple(rows),
        seeds=seeds,
        score="validation" if held_out else "test",
        select=True,
    )


def check_rows(table: Table) -> None:
    """Raise `UsageError` for the first row whose config cannot work, as far as shapes tell; reads no images."""
    seen = set()
    for row in table.rows:
        config = table.config(row, table.seeds[0])
        try:
            validate(config)
            if (key := (config.data, config.model)) not in seen:
                seen.add(key)
                model, shape = _model(config, resolve(config.data))
                images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
                jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x), images)
        except UsageError as error:
            raise UsageError(f"{row.label}: {error}") from error


def _model(config: Config, dataset: Dataset) -> tuple[Classifier, tuple[int, int, int]]:
    """Return the classifier and the shape (h, w, c) of its images."""
    return build(config, dataset.num_classes, seed=0), dataset.image_shape


# 2. The outline


def timeline(config: Config, dataset: Dataset) -> Timeline:
    """Return the length of the run, as if every class had as many images."""
    data, classes = config.data, dataset.num_classes
    each = dataset.train_examples() / dataset.facts.num_classes
    examples = round(classes * each) - classes * math.floor(each * data.validation)
    steps = order.steps_per_epoch(examples, data.batch_size, data.drop_last)
    if steps < 1:
        raise UsageError(f"data.batch_size {data.batch_size} leaves no whole batch of {examples}")
    return Timeline(steps, config.run.epochs, examples)


def outline(config: Config) -> str:
    """Return a recipe in short: model, parameters, length, and its learning rate drawn over all steps."""
    validate(config)
    dataset = resolve(config.data)
    model, shape = _model(config, dataset)
    when, data, optim = timeline(config, dataset), config.data, config.optim
    total = when.steps_per_epoch * when.epochs
    counted = count(model, shape)
    about = "about " if data.classes is not None or data.validation else ""
    held_out = f" ({data.validation:.3g} of all held out)" if data.validation else ""
    sizes = ", ".join(f"{counted.total(kind):,} {kind}" for kind in ("trainable", "fixed", "statistics"))
    rates = learning_rates(optim, when, np.arange(total)).tolist()
    facts = {
        "model": f"{config.model.backbone}, images {'x'.join(map(str, shape))}",
        "head": f"{config.model.head}, {model.head.num_classes} classes",
        "parameters": sizes,
        "data": f"{data.dataset}, {about}{when.examples:,} training images{held_out}, batches of {data.batch_size}",
        "length": f"{when.epochs:,} epochs of {when.steps_per_epoch:,} steps: {total:,} steps",
        "optimiser": f"{optim.name}, schedule {optim.schedule}",
        "rate": f"first {rates[0]:.4g}, last {rates[-1]:.4g}, maximum {max(rates):.4g}" if rates else "no step",
    }
    if optim.schedule in ("multistep", "step"):
        facts["changes"] = _changes(rates, round(optim.warmup * when.steps_per_epoch))
    lines = [f"{name:<12}{text}" for name, text in facts.items()]
    return "\n".join([*lines, "", *(draw(rates) if rates else []), ""])


def _changes(rates: Sequence[float], start: int) -> str:
    """List the steps after `start` whose rate differs by more than 1 % from that of the step before."""
    pairs = enumerate(itertools.pairwise(rates), 1)
    steps = [step for step, (before, rate) in pairs if step > start and abs(rate - before) > 0.01 * before]
    listed = [f"step {step:,} to {rates[step]:.4g}" for step in steps[:CHANGES]]
    more = [f"{len(steps) - CHANGES} more"] if len(steps) > CHANGES else []
    return ", ".join([*listed, *more]) or "none"


def draw(values: Sequence[float], *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    r"""Draw values from 0 to their maximum as lines of block characters, with an axis; a column is its middle value.

    >>> print(*draw([0.0, 1.0, 2.0, 3.0], width=4, height=2), sep="|\n")
           3 ┤  ▃█|
             ┤ ▅██|
             0  3
    """
    top = max(values)
    middles = [values[min(int((column + 0.5) * len(values) / width), len(values) - 1)] for column in range(width)]
    eighths = [round(8 * height * value / top) if top > 0 else 0 for value in middles]
    lines = []
    for row in reversed(range(height)):
        blocks = "".join(BLOCKS[min(max(level - 8 * row, 0), 8)] for level in eighths)
        lines.append(f"{f'{top:.3g}' if row == height - 1 else '':>8} ┤{blocks}".rstrip())
    last = f"{len(values) - 1:,}"
    return [*lines, f"{'':>9}0{last:>{width - 1}}"]
