"""Variables that cost no compiling, for tests where it does not matter how a network starts."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxclf.training.step import draw_fixed


def drawn(module: nn.Module, *image_shape: int) -> dict[str, Any]:
    """Return variables of a module for images [h w c] that tell every array from every other; its fixed matrices."""
    shapes: Any = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), np.float32))
    random = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    if "batch_stats" in values:
        values["batch_stats"] = jax.tree.map(np.abs, values["batch_stats"])
    return values | ({"fixed": draw_fixed(shapes["fixed"], 0)} if "fixed" in shapes else {})
