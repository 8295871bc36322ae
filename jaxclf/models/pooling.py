"""From the last feature map [n i j d] to one vector of features [n d] (thesis, section 5.6)."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.errors import UsageError, unknown
from jaxclf.models.layers import as_input, torch_default, uniform

Pool = Callable[..., jax.Array]


def average(x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
    """Global average pool (GAP)."""
    return x.mean((1, 2))


def maximum(x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
    """Global max pool; equal maxima share the gradient (torch's amax; its MaxPool2d gives it all to the first)."""
    return x.max((1, 2))


@dataclasses.dataclass(frozen=True)
class Power:
    """(mean of x^p)^(1/p): p = 1 is the average, p -> infinity the maximum.

    x is meant to be at least 0, as behind a ReLU; what is negative counts as 0. The slope of x^p (p < 1) and of the
    root (p > 1) is infinite at 0; both are given as 0 there, as a ReLU's is.

    >>> Power(0.5)(jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1))
    Array([[1.]], dtype=float32)
    """

    exponent: float = 2.0

    def __call__(self, x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
        """Pool. The pool of c x is c times that of x, so the powers are taken of x / max, where none can overflow."""
        top = jax.lax.stop_gradient(x.max((1, 2), keepdims=True))
        top = jnp.where(top > 0, top, 1.0)  # [n 1 1 d]
        ratio = x / top
        positive = ratio > 0
        # Each power sees 1 where its slope would be infinite: where() alone would leave 0 * inf in the gradient.
        powers = jnp.where(positive, jnp.power(jnp.where(positive, ratio, 1.0), self.exponent), 0.0)
        mean = powers.mean((1, 2))
        root = jnp.power(jnp.where(mean > 0, mean, 1.0), 1 / self.exponent)
        return jnp.where(mean > 0, top[:, 0, 0] * root, 0.0)


class SoftAttention(nn.Module):
    """Weighted sum over positions; the weights are the softmax of 1x1 conv, tanh, 1x1 conv to one number.

    Names and initialisation of the reference's `attention` (two Conv1d with bias over the flattened positions).
    """

    units: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "n i j d"]) -> Float[Array, "n d"]:
        """Pool."""
        width = x.shape[-1]
        flat = x.reshape(x.shape[0], -1, width)  # [n ij d]
        score = jnp.tanh(_linear(self.units, width, "attention_0")(flat))
        score = _linear(1, self.units, "attention_2")(score)  # [n ij 1]
        return (jax.nn.softmax(score, axis=1) * flat).sum(1)


def _linear(features: int, fan_in: int, name: str) -> nn.Dense:
    """Return torch's Linear(fan_in, features)."""
    bias = uniform(fan_in**-0.5)
    return nn.Dense(features, kernel_init=torch_default, bias_init=bias, promote_dtype=as_input, name=name)


@dataclasses.dataclass(frozen=True)
class PoolEntry:
    """One line of the table."""

    build: Callable[..., Pool]
    option: str | None = None
    """The one option of `create_model` that belongs to it, given to `build`; left out, the pool's own default holds."""


POOLS: dict[str, PoolEntry] = {
    "average": PoolEntry(lambda: average),
    "max": PoolEntry(lambda: maximum),
    "power": PoolEntry(Power, "pool_power"),
    "attention": PoolEntry(SoftAttention, "pool_units"),
}


def create_pool(name: str, *, pool_power: float | None = None, pool_units: int | None = None) -> Pool:
    """Build a pool; `UsageError` for unknown names, options of another pool, and values out of range."""
    if name not in POOLS:
        raise unknown("pool", name, POOLS)
    entry = POOLS[name]
    given = {"pool_power": pool_power, "pool_units": pool_units}
    for option, value in given.items():
        if value is not None and option != entry.option:
            owner = next(other for other, candidate in POOLS.items() if candidate.option == option)
            raise UsageError(
                f"pool {name} has no option {option!r} (pool {owner} has); its options: {entry.option or 'none'}"
            )
    if pool_power is not None and not 0 < pool_power < math.inf:
        raise UsageError(f"pool_power is {pool_power} but must be above 0 and finite")
    if pool_units is not None and pool_units < 1:
        raise UsageError(f"pool_units is {pool_units} but must be at least 1")
    value = given.get(entry.option or "")
    return entry.build() if value is None else entry.build(value)
