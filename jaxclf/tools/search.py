"""Search an elastic network for the best setting within a budget of multiply-accumulates or parameters.

By evolution, as Cai et al. 2020 (arXiv 1908.09791) do, whose code trains a predictor of accuracies first; here each
candidate is evaluated on the validation images, its BatchNorm statistics averaged anew.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxclf.config import Searching, validate
from jaxclf.data.order import Batch
from jaxclf.errors import UsageError
from jaxclf.models.backbones.once_for_all import OnceForAll
from jaxclf.models.classifier import Classifier
from jaxclf.models.count import count
from jaxclf.models.elastic import Choices, Setting, variables_of
from jaxclf.storage import location
from jaxclf.training.evaluation import evaluate_split, recalibrated, restore
from jaxclf.training.run_directory import RunDirectory, read_config
from jaxclf.training.setup import Setup, set_up
from jaxclf.training.step import TrainState

TRIES = 1000
"""Draws of a candidate before the smallest setting takes its place."""


class Cost(NamedTuple):
    """What a network costs."""

    macs: int
    """Multiply-accumulates of an image."""
    parameters: int


class Found(NamedTuple):
    """A setting that was evaluated."""

    setting: Setting
    cost: Cost
    top1: float
    """On the validation images, in percent."""


class Costs:
    """The costs of all settings: sums over blocks, for what a block takes and gives does not depend on the others."""

    def __init__(self, model: Classifier, image_shape: tuple[int, int, int]) -> None:
        """Count an elastic model's blocks for images [h w c]."""
        body = elastic(model)
        self._choices, self._rest = body.choices, Cost(0, 0)
        self._blocks: dict[tuple[int, int], list[Cost]] = {}
        for kernel in body.choices.kernels:
            for expansion in body.choices.expansions:
                part = model.clone(backbone=body.clone(kernels=(kernel,), expansions=(expansion,)))
                counted, number = count(part, image_shape), len(body.setting.kernels)
                own = [Cost(0, 0)] * (number + 1)
                for layer in counted.layers:
                    names = layer.path.split("/")
                    block = int(names[1].removeprefix("blocks_")) if "blocks_" in layer.path else 0
                    own[block] = _sum(own[block], Cost(layer.macs, layer.trainable))
                self._rest, self._blocks[kernel, expansion] = own[0], own[1:]

    def of(self, setting: Setting) -> Cost:
        """Return the cost of a setting."""
        total = self._rest
        for block in setting.blocks():
            total = _sum(total, self._blocks[setting.kernels[block], setting.expansions[block]][block])
        return total


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(one.macs + other.macs, one.parameters + other.parameters)


def elastic(model: Classifier) -> OnceForAll:
    """Return the backbone of a model; `UsageError` if it is no elastic one."""
    body = model.backbone
    if not isinstance(body, OnceForAll) or not body.elastic:
        raise UsageError(f"the run's network is {type(body).__name__} without settings to choose from, not elastic")
    return body


def search(
    workdir: str | os.PathLike[str],
    searching: Searching,
    *,
    macs: int | None = None,
    parameters: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Found]:
    """Return the settings of a run's elastic network that were evaluated within a budget, the best first.

    The result is a function of the run, the budget and `searching`. Raises `UsageError` for a run without validation
    images or of an ordinary network, and for a budget that the smallest setting exceeds.
    """
    validate(searching)
    config = read_config(workdir)
    if (macs is None) == (parameters is None):
        raise UsageError("a search takes one budget: macs or parameters")
    if not config.data.validation:
        raise UsageError(
            f"{location(workdir)} holds no validation images out (data.validation is 0), and test images choose nothing"
        )
    with set_up(config) as setup, RunDirectory(workdir, config, create=False, layout=setup.layout) as directory:
        body = elastic(setup.program.model)
        costs = Costs(setup.program.model, setup.data.image_shape)

        def within(setting: Setting) -> bool:
            cost = costs.of(setting)
            return cost.macs <= macs if macs is not None else cost.parameters <= (parameters or 0)

        least = Setting.of(
            body.choices, len(body.stages), **{axis: own[-1:] for axis, own in body.choices._asdict().items()}
        )
        if not within(least):
            cost = costs.of(least)
            raise UsageError(
                f"the smallest setting takes {cost.macs:,} multiply-accumulates and {cost.parameters:,} parameters, "
                "more than the budget"
            )
        state = restore(setup, directory)

        def top1(setting: Setting) -> float:
            return accuracy(setup, state, setting, searching.recalibrate)

        evolution = Evolution(body.choices, least, searching, within, top1)
        for number, best in enumerate(evolution.run()):
            cost = costs.of(best)
            text = f"{cost.macs:,} multiply-accumulates, {cost.parameters:,} parameters"
            say(f"generation {number}: best {evolution.known[best]:.2f} %, {text}")
        ranked = sorted(evolution.known.items(), key=lambda one: -one[1])
        return [Found(setting, costs.of(setting), value) for setting, value in ranked]


def accuracy(setup: Setup, state: TrainState, setting: Setting, batches: int, split: str = "validation") -> float:
    """Return the top-1 in percent of a setting, its BatchNorm statistics averaged over training batches.

    One compiled program serves all settings.
    """
    body = elastic(setup.program.model)
    given = setup.layout.whole(variables_of(body.choices, setting.places(body.choices)), training=True)

    def read(step: int) -> Iterator[Batch]:
        return setup.data.train_batches(setup.order, step, 1)

    state = recalibrated(setup, state.replace(setting=given), batches, read)
    return evaluate_split(setup, state, split).metrics["top1"]


class Evolution:
    """Mutation and crossover of the best quarter of a population, whose settings are evaluated once each."""

    def __init__(
        self,
        choices: Choices,
        least: Setting,
        searching: Searching,
        within: Callable[[Setting], bool],
        top1: Callable[[Setting], float],
    ) -> None:
        """Search for the highest `top1` among settings that are `within` the budget, as `least` is."""
        self._choices, self._least, self._searching = choices, least, searching
        self._within, self._top1 = within, top1
        self._rng = np.random.default_rng(searching.seed)
        self.known: dict[Setting, float] = {}
        """Top-1 of the settings so far."""

    def run(self) -> Iterator[Setting]:
        """Yield the best setting of the first population and of each generation."""
        size = self._searching.population
        population = [self._drawn(self._random, []) for _ in range(size)]
        for _ in range(self._searching.generations + 1):
            for setting in population:
                if setting not in self.known:
                    self.known[setting] = self._top1(setting)
            ranked = sorted(self.known, key=lambda setting: -self.known[setting])
            yield ranked[0]
            parents = ranked[: max(2, size // 4)]
            half = size // 2
            population = [self._drawn(self._mutated, parents) for _ in range(half)]
            population += [self._drawn(self._crossed, parents) for _ in range(size - half)]

    def _one(self, parents: list[Setting]) -> Setting:
        return parents[self._rng.integers(len(parents))]

    def _drawn(self, draw: Callable[[list[Setting]], Setting], parents: list[Setting]) -> Setting:
        """Return a setting that is within the budget; one that does not come in many draws is the smallest."""
        for _ in range(TRIES):
            if self._within(setting := draw(parents).canonical(self._choices)):
                return setting
        return self._least.canonical(self._choices)

    def _random(self, _: list[Setting]) -> Setting:
        return self._map(self._least, lambda _, own: int(self._rng.choice(own)))

    def _mutated(self, parents: list[Setting]) -> Setting:
        share = self._searching.mutation
        return self._map(
            self._one(parents), lambda old, own: int(self._rng.choice(own)) if self._rng.random() < share else old
        )

    def _crossed(self, parents: list[Setting]) -> Setting:
        one, other = self._one(parents), self._one(parents)
        pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
        return Setting(
            *(
                tuple(a if self._rng.random() < 0.5 else b for a, b in zip(mine, theirs, strict=True))
                for mine, theirs in pairs
            )
        )

    def _map(self, setting: Setting, change: Callable[[int, tuple[int, ...]], int]) -> Setting:
        each = zip(dataclasses.astuple(setting), self._choices, strict=True)
        return Setting(*(tuple(change(old, own) for old in values) for values, own in each))


def flags(setting: Setting) -> str:
    """Return the flags of `jaxclf train` that build a setting's network.

    >>> flags(Setting((3, 5), (4, 4), (1, 2)))
    '--model.kernels 3 5 --model.expansions 4 4 --model.depths 1 2'
    """
    each = dataclasses.asdict(setting).items()
    return " ".join(f"--model.{name} {' '.join(map(str, values))}" for name, values in each)
