"""Stages of blocks, and what they store for the backward pass: the one place that knows rematerialisation.

A family says of which blocks its stages are. `module`, a backbone or a part of one, has the field `remat`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn

from jaxclf.config import Remat

Block = functools.partial[Any]
"""A module class, whose call takes (x, train), and its fields."""
Stage = Callable[[Any, Any, bool], Any]
"""A function of (module, x, train) that makes its layers inside of `module`."""


def blocks(*given: Block) -> Stage:
    """Return the stage that applies some blocks one after the other; they are made where it is applied.

    Where the module's `remat` is "block", each stores its input alone, and its inside is computed a second time in the
    backward pass (Chen et al. 2016, arXiv 1604.06174). Names, initial values, random numbers and running statistics
    stay as they are.
    """

    def stage(module: Any, x: Any, train: bool) -> Any:
        for one in given:
            made = nn.remat(one.func, static_argnums=(2,)) if module.remat == "block" else one.func
            x = made(*one.args, **one.keywords)(x, train)
        return x

    return stage


def apply_stages(module: Any, stages: Iterable[Stage], x: Any, train: bool, *, remat: Remat | None = None) -> Any:
    """Apply the stages of a module one after the other.

    Where `remat`, the module's own unless given, is "stage", each stores its input alone. Between the passes stages
    store less than blocks, but all of a stage's inside while that is computed again.
    """
    remat = module.remat if remat is None else remat
    for stage in stages:
        one = nn.remat(nn.compact(stage), static_argnums=(2,)) if remat == "stage" else stage
        x = one(module, x, train)
    return x


class Inside(nn.Module):
    """A module that is one stage: x [n h w c] -> [n i j k]."""

    stage: Stage
    remat: Remat = "none"
    """What the stage reads; that of a block, whose layers are no blocks of their own, is "none"."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Apply the stage."""
        return self.stage(self, x, train)


def within(name: str, stage: Stage) -> Stage:
    """Return a stage that makes its layers in a module of its own, whose name is part of every key."""
    return lambda module, x, train: Inside(stage, module.remat, name=name)(x, train)
