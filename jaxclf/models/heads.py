"""The last layer, learned, fixed or absent: features [n d] -> logits [n k].

Every head also takes a feature map [n i j d] and answers at each position; those class maps average to the logits.
One, the 3x3 convolution, needs the map and stands before the pool (`before_pool`).
What is fixed is a variable of the `fixed` collection, named as in matrices.py. Source: thesis section 3 and its
appendix; thesis.md section 1 has the formulas.
"""

import dataclasses
import functools
import inspect
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models.layers import as_input, fixed_matrix, torch_default, uniform
from jaxclf.models.matrices import distinct_rows, largest_cosine, matrix
from jaxclf.registry import Registry


class HeadWarning(UserWarning):
    """A head that can be built but cannot classify as well as its size suggests."""


class Head(nn.Module):
    """Common fields of every head."""

    num_classes: int
    bias: bool
    seed: int = 0
    """Seed of a random fixed matrix."""

    before_pool = False
    """Takes the feature map and gives class maps, which are pooled; the others take pooled features."""

    def add_bias(self, logits: Float[Array, "n *ij k"], bound: float) -> Float[Array, "n *ij k"]:
        """Add the bias, if the head has one, drawn from U(+-bound)."""
        if not self.bias:
            return logits
        logits, bias = as_input(logits, self.param("bias", uniform(bound), (self.num_classes,)))
        return logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class Learned(Head):
    """y = W h + b, torch's Linear."""

    @nn.compact
    def __call__(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        """Return logits."""
        width = x.shape[-1]
        x, kernel = as_input(x, self.param("kernel", torch_default, (width, self.num_classes)))
        return self.add_bias(x @ kernel, width**-0.5)


class Orthogonal(Head):
    """y = W h + b, W fixed and semi-orthogonal."""

    @nn.compact
    def __call__(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        """Return logits."""
        width = x.shape[-1]
        x, weight = as_input(x, fixed_matrix(self, "orthogonal", self.num_classes, width, self.seed))
        return self.add_bias(x @ weight.T, width**-0.5)


class Hadamard(Head):
    """y = -s H h / (|h| + 1e-8) + b, as the reference code computes it; the norm is that of the pooled features."""

    normalise: bool = True
    """False gives the printed equation 3.6, y = s H h + b: no norm, no minus sign."""

    @nn.compact
    def __call__(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        """Return logits."""
        bound = self.num_classes**-0.5
        scale = self.param("scale", nn.initializers.constant(bound), (1,))
        weight = fixed_matrix(self, "hadamard", self.num_classes, x.shape[-1], self.seed)
        x, scale, weight = as_input(x, scale, weight)
        if self.normalise:
            pooled = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
            norm = jnp.sqrt(jnp.square(pooled).sum(-1, keepdims=True))
            x, scale = x / (norm + 1e-8), -scale
        return self.add_bias((x @ weight.T) * scale.reshape((1,) * x.ndim), bound)


class Identity(Head):
    """y = the first k features: the last convolution's channels are the classes."""

    @nn.compact
    def __call__(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        """Return logits."""
        return self.add_bias(x[..., : self.num_classes], x.shape[-1] ** -0.5)


class Conv3x3(Head):
    """Class maps = conv3x3(f) without padding; their pool is y: spatial features instead of a vector (section 5.6)."""

    before_pool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n i j d"]) -> Float[Array, "n i-2 j-2 k"]:
        """Return the class maps. `UsageError` for feature maps smaller than 3x3."""
        height, width, features = x.shape[1:]
        if min(height, width) < 3:
            raise UsageError(
                f"head conv3x3 takes feature maps of 3x3 and larger; got {height}x{width}: give larger images, or a "
                "backbone with a larger last map"
            )
        x, kernel = as_input(x, self.param("kernel", torch_default, (3, 3, features, self.num_classes)))
        maps = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(0, 0), (0, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return self.add_bias(maps, (9 * features) ** -0.5)


@dataclasses.dataclass(frozen=True)
class HeadEntry:
    """One line of the table."""

    module: Callable[..., Head]
    matrix: str | None
    """Its fixed matrix (matrices.py); None for a learned one."""
    bias: bool = True
    """Whether it learns a bias when nobody says."""

    @classmethod
    def of(cls, found: Any) -> "HeadEntry":
        """Return an entry as it is, and a head class as one that learns its matrix. Raises `TypeError` for the rest."""
        if not isinstance(found, HeadEntry) and not (inspect.isclass(found) and issubclass(found, Head)):
            raise TypeError(f"it is {found!r} but must be a subclass of jaxclf.models.heads.Head, or a HeadEntry")
        return found if isinstance(found, HeadEntry) else cls(found, None)


OWN: dict[str, HeadEntry] = {
    "learned": HeadEntry(Learned, None),
    "orthogonal": HeadEntry(Orthogonal, "orthogonal"),
    "hadamard": HeadEntry(Hadamard, "hadamard"),
    "hadamard_printed": HeadEntry(functools.partial(Hadamard, normalise=False), "hadamard"),
    "identity": HeadEntry(Identity, "identity", bias=False),
    "conv3x3": HeadEntry(Conv3x3, None),
}


HEADS = Registry("head", "jaxclf.heads", OWN, HeadEntry.of)


def list_heads() -> list[str]:
    """List the names of all heads, ours and those of entry points."""
    return HEADS.names()


def head_matrix(name: str, num_classes: int, features: int, seed: int = 0) -> np.ndarray:
    """Return the fixed matrix [k d] of a head, float64.

    Raises `UsageError` for an unknown head, for one that learns its matrix, and for an impossible (k, d).

    >>> head_matrix("hadamard", 2, 4)
    array([[ 1.,  1.,  1.,  1.],
           [ 1., -1.,  1., -1.]])
    """
    entry = HEADS.resolve(name)
    if entry.matrix is None:
        fixed = [other for other, candidate in OWN.items() if candidate.matrix]
        raise UsageError(f"head {name!r} learns its matrix; heads with a fixed one: {', '.join(fixed)}")
    _check_possible(name, num_classes, features)
    return matrix(entry.matrix, num_classes, features, seed)


def create_head(name: str, num_classes: int, features: int, *, bias: bool | None = None, seed: int = 0) -> Head:
    """Build a head for k classes on d features.

    Raises `UsageError` where it cannot work and warns (`HeadWarning`) where it works badly, with the number that
    matters: the distinct rows of a Hadamard matrix past its width, the largest cosine between rows of a cut one.
    """
    entry = HEADS.resolve(name)
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise UsageError(f"num_classes is {num_classes!r} but must be a whole number, at least 2")
    _check_possible(name, num_classes, features)
    if entry.matrix == "hadamard":
        _warn_hadamard(num_classes, features)
    return entry.module(num_classes=num_classes, bias=entry.bias if bias is None else bias, seed=seed)


def _check_possible(name: str, num_classes: int, features: int) -> None:
    if name == "identity" and num_classes > features:
        others = ", ".join(other for other in OWN if other != name)
        raise UsageError(
            f"identity gives each class a feature of its own, but there are {num_classes} classes and {features} "
            f"features; end the backbone in maps={num_classes}, or use a head that can: {others}"
        )


def _warn_hadamard(num_classes: int, features: int) -> None:
    rows = matrix("hadamard", num_classes, features)
    distinct, overlap = distinct_rows(rows), round(largest_cosine(rows) * features)  # rows of +-1: a whole number
    if distinct < num_classes:
        text = f"only {distinct} of its {num_classes} rows are distinct, so at most {distinct} classes can be predicted"
    elif overlap:
        text = f"cut to {features} columns, its rows are not orthogonal: largest cosine {overlap}/{features}"
        text += f" = {overlap / features:.3f}"
    else:
        return
    warnings.warn(f"hadamard head with {num_classes} classes on {features} features: {text}", HeadWarning, stacklevel=4)
