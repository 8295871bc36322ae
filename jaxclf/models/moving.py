"""What changes a head in training besides its parameters: class sums of features, and what follows from them.

Two things follow. The rows of `class_mean` move towards the directions of the class means, at every step. The rows of a
fixed matrix are given to classes once, after the first epoch, so that they lie near the class means. Both need sums
alone, and sums of parts of a batch add up: how a batch is split over devices, ghost batches or `optim.accumulate`
changes nothing but rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import linear_sum_assignment


def class_sums(features: Float[Array, "n d"], targets: Float[Array, "n k"]) -> Float[Array, "k d"]:
    """Return the sum of each class's features; an image of several classes (mixup) counts for each by its share."""
    return jnp.einsum("nk,nd->kd", targets, features.astype(targets.dtype), precision=jax.lax.Precision.HIGHEST)


def moved(head: Any, old: Any, sums: Float[Array, "k d"], *, first_epoch: Bool[Array, ""]) -> dict[str, dict[str, Any]]:
    """Return the fields of a training state that a step changes for a head that moves, from the step's class sums.

    They are `head_state` for class means, and `class_sums`, in the first epoch, for rows.
    """
    if head.moves == "means":
        return {"head_state": jax.tree.map(lambda means: moved_means(means, sums, head.momentum), old.head_state)}
    return {"class_sums": jax.tree.map(lambda before: before + jnp.where(first_epoch, sums, 0), old.class_sums)}


def moved_means(means: Float[Array, "k d"], sums: Float[Array, "k d"], momentum: float) -> Float[Array, "k d"]:
    """Return m * means + (1 - m) * the unit vectors along `sums`; a class without a sum keeps its mean."""
    norms = jnp.linalg.norm(sums, axis=1, keepdims=True)
    present = norms > 0
    units = sums / jnp.where(present, norms, 1)
    return jnp.where(present, momentum * means + (1 - momentum) * units, means)


def nearest_rows(weight: Float[np.ndarray, "k d"], sums: Float[np.ndarray, "k d"]) -> Int[np.ndarray, " k"]:
    """Return each class's row, a permutation with the largest sum of cosines between class means and rows.

    A class without a sum is as near to every row as to any other. The Hungarian algorithm, in float64.

    >>> nearest_rows(np.eye(3), np.array([[0.1, 2.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]]))
    array([1, 2, 0], dtype=int32)
    """
    units = []
    for rows in (sums.astype(np.float64), weight.astype(np.float64)):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        units.append(rows / np.where(norms > 0, norms, 1))
    return linear_sum_assignment(units[0] @ units[1].T, maximize=True)[1].astype(np.int32)
