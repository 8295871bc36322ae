"""Progressive shrinking of elastic networks: the settings and the size of images that a step trains. Pure.

Sources: Cai et al. 2020 (arXiv 1908.09791), whose code at f03b267 adds up the gradients of its random settings; Yu and
Huang 2019 (arXiv 1903.05134) for the sandwich rule, largest, smallest and random ones, and for teaching by the largest
as it is at the step, where Cai et al. keep the weights that their first phase ended with.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxclf.config import Config, ElasticConfig
from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone
from jaxclf.models.backbones import OWN
from jaxclf.models.backbones.once_for_all import OnceForAll
from jaxclf.models.classifier import Classifier
from jaxclf.models.elastic import AXES, Places, variables_of

SIZE_STREAM = 3
"""Word of numpy's seeds that keeps the draws of sizes apart from order and examples (data/order.py)."""


def check(config: Config, model: Classifier) -> None:
    """Raise `UsageError` where a config trains settings that its network does not have."""
    given, body = config.elastic, model.backbone
    if given.start is None:
        return
    if not (isinstance(body, OnceForAll) and body.elastic):
        able = ", ".join(name for name, one in OWN.items() if one.module is OnceForAll)
        raise UsageError(
            f"elastic asks for smaller settings, but model.backbone {config.model.backbone} has none; elastic are "
            f"{able}, without model.kernels, model.expansions and model.depths"
        )
    for axis in AXES:
        starts, choices = getattr(given, axis), getattr(body.choices, axis)
        if len(starts) >= len(choices):
            raise UsageError(
                f"elastic.{axis} has {len(starts)} epochs, but {config.model.backbone} has {len(choices) - 1} smaller "
                f"choices: {', '.join(map(str, choices[1:]))}"
            )
        if late := [start for start in starts if start >= config.run.epochs]:
            raise UsageError(f"elastic.{axis} has epoch {late[0]}, but run.epochs is {config.run.epochs}")


def settings(given: ElasticConfig, body: Backbone, key: jax.Array, epoch: Int[Array, ""]) -> list[Any]:
    """Return the smaller settings of a step, as the collection `setting`: the smallest so far and the random ones."""
    if given.start is None:
        return []
    assert isinstance(body, OnceForAll)
    reached = [(epoch >= jnp.asarray(getattr(given, axis), jnp.int32)).sum(dtype=jnp.int32) for axis in AXES]
    blocks, stages = len(body.setting.kernels), len(body.setting.depths)
    least = Places(*(jnp.full(n, place, jnp.int32) for place, n in zip(reached, (blocks, blocks, stages), strict=True)))
    drawn = [least]
    for number in range(given.random):
        keys = jax.random.split(jax.random.fold_in(key, number), len(AXES))
        parts = zip(keys, least, strict=True)
        drawn.append(Places(*(jax.random.randint(one, most.shape, 0, most + 1) for one, most in parts)))
    return [variables_of(body.choices, places) for places in drawn]


def size_of(config: Config, step: int) -> int | None:
    """Return the side of a step's images, a function of (run.seed, step); None: as they are.

    >>> from jaxclf.config import Config, ElasticConfig
    >>> [size_of(Config(elastic=ElasticConfig(sizes=(24, 28, 32))), step) for step in range(6)]
    [32, 24, 24, 32, 32, 24]
    """
    sizes = config.elastic.sizes
    return int(np.random.default_rng((config.run.seed, step, SIZE_STREAM)).choice(sizes)) if sizes else None
