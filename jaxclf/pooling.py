"""From the last feature map to one vector of features (thesis, section 5.6)."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.backbones.layers import torch_default, uniform
from jaxclf.config import UsageError, unknown


def average(x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
    """Global average pool (GAP)."""
    return x.mean((1, 2))


def maximum(x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
    """Global max pool."""
    return x.max((1, 2))


def power(x: Float[Array, "n i j d"], exponent: float) -> Float[Array, "n d"]:
    """(mean of x^p)^(1/p): p = 1 is the average, p -> infinity the maximum. x must not be negative.

    The root's slope is infinite at 0, so a channel that is 0 everywhere gives 0 with gradient 0.
    """
    mean = jnp.power(x, exponent).mean((1, 2))
    positive = mean > 0
    return jnp.where(positive, jnp.power(jnp.where(positive, mean, 1.0), 1 / exponent), 0.0)


class SoftAttention(nn.Module):
    """Weighted sum over positions, the weights a softmax of 1x1 conv, tanh, 1x1 conv: [n i j d] -> [n d]."""

    units: int

    @nn.compact
    def __call__(self, x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
        """Pool."""
        width = x.shape[-1]
        flat = x.reshape(x.shape[0], -1, width)  # [n ij d]
        hidden = nn.Dense(self.units, kernel_init=torch_default, bias_init=uniform(width**-0.5), name="attention_0")(
            flat
        )
        score = nn.Dense(1, kernel_init=torch_default, bias_init=uniform(self.units**-0.5), name="attention_2")(
            jnp.tanh(hidden)
        )
        return (jax.nn.softmax(score, axis=1) * flat).sum(1)
