"""Losses and metrics as sums with counts, so that any batching of a data set gives the same quotient."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Sums = dict[str, jax.Array]


def zeros(*, regularised: bool = False) -> Sums:
    """Return empty sums: `loss` (nats), `top1`, `top5`, `count` (examples) and, over steps, `regulariser`."""
    floats = ("loss", "regulariser") if regularised else ("loss",)
    integers = ("top1", "top5", "count")
    return {name: jnp.zeros((), jnp.float32) for name in floats} | {name: jnp.zeros((), jnp.int32) for name in integers}


def orthogonality(kernel: Float[Array, "h w i o"], *, double: bool) -> Float[Array, ""]:
    """Return the distance of a convolution from an orthogonal one: SO, or DSO with `double` (thesis, section 5.6).

    With W = the kernel as out x (in * kh * kw):

        SO  = |W^T W - I|^2                      W^T W is in*kh*kw square: inputs of the convolution against each other
        DSO = |W^T W - I|^2 + |W W^T - I|^2      W W^T is out x out: filters against each other

    in Frobenius norms. For W m x n the two squares differ by the constant n - m: both contain |W W^T|^2 - 2 |W|^2.
    So only the smaller Gram matrix is formed, the gradient of DSO is twice that of SO, and neither can fall below
    |n - m|, if that side is in it.
    """
    weight = kernel.reshape(-1, kernel.shape[-1])  # [n m], W transposed; the order of (kh kw in) changes no product
    n, m = weight.shape
    gram = weight.T @ weight if m <= n else weight @ weight.T
    smaller = jnp.square(gram - jnp.eye(min(n, m), dtype=gram.dtype)).sum()
    return 2 * smaller + abs(n - m) if double else smaller + max(n - m, 0)


def cross_entropy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """Return the softmax cross-entropy of each example, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def metric_sums(logits: Float[Array, "n k"], labels: Int[Array, " n"], mask: Bool[Array, " n"]) -> Sums:
    """Sum loss and hits over the examples where `mask` holds.

    An example's rank is the number of classes before its own, by logit and, among equals, by index, as argmax orders
    them: a Hadamard head past its width gives whole classes equal logits, and they must not all count as hits.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return {
        "loss": jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        "top1": (mask & (rank < 1)).sum(dtype=jnp.int32),
        "top5": (mask & (rank < 5)).sum(dtype=jnp.int32),
        "count": mask.sum(dtype=jnp.int32),
    }


def means(sums: Mapping[str, jax.Array | float]) -> dict[str, float]:
    """Return mean loss and top-1 and top-5 in percent."""
    count = int(sums["count"])
    return {
        "loss": float(sums["loss"]) / count,
        "top1": 100 * int(sums["top1"]) / count,
        "top5": 100 * int(sums["top5"]) / count,
    }
