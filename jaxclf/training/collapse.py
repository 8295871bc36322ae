"""Measure neural collapse: how a split's features lie about their class means, and these about the head's matrix.

NC1 to NC4 are the properties of Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of
deep learning training", PNAS 117 (2020), arXiv 2008.08186. All is computed in float64 from sums over images, in memory
O(k d + d^2) for k classes and d features, however many images there are.

A class without an image has no mean: k counts the others, here and in every formula.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int
from scipy.special import entr

from jaxclf.models.heads import Head

MEASURES = ("nc1", "cdnv", "nc2_norm", "nc2_angle", "nc3", "nc4", "effective_rank", "dead")
"""Names of the measures, in the order of reports."""
EPS = float(np.finfo(np.float64).eps)
PARALLEL = 0.999
"""Cosine between a head's answer and that of its matrix from which on the two are the same but for rounding."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over images; `+` gives those of both sets of images."""

    counts: Int[np.ndarray, " k"]
    """Images of each class."""
    sums: Float64[np.ndarray, "k d"]
    """Sum of each class's features."""
    squares: Float64[np.ndarray, " k"]
    """Sum of their squared norms."""
    outer: Float64[np.ndarray, "d d"]
    """Sum of h h^T over the features h of all images."""
    largest: Float64[np.ndarray, " d"]
    """Largest absolute value of each feature."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_classes: int) -> "Moments":
        """Return the sums of some images."""
        features = features.astype(np.float64)
        sums, squares = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
        np.add.at(sums, labels, features)
        np.add.at(squares, labels, np.square(features).sum(1))
        return cls(
            counts=np.bincount(labels, minlength=num_classes),
            sums=sums,
            squares=squares,
            outer=features.T @ features,
            largest=np.abs(features).max(0, initial=0.0),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
            outer=self.outer + other.outer,
            largest=np.maximum(self.largest, other.largest),
        )

    @property
    def seen(self) -> Bool[np.ndarray, " k"]:
        """Classes that have an image."""
        return self.counts > 0

    @property
    def means(self) -> Float64[np.ndarray, "s d"]:
        """Class means, of the s classes that have an image."""
        return self.sums[self.seen] / self.counts[self.seen, None]


def measures(moments: Moments, weight: Float[np.ndarray, "k d"] | None = None) -> dict[str, float]:
    """Return the measures by name, all but nc4, which takes a second pass over the images (`nearest_classes`).

    With the class means m_c, their mean m and the rows w_c of the head's matrix:

        nc1             tr(S_w S_b^+) / k                                        0: features are their class means
        cdnv            see `class_distance_normalised_variance`                 0: likewise
        nc2_norm        std_c |m_c - m| / mean_c |m_c - m|                       0: equal norms
        nc2_angle       mean over c != c' of |cos(m_c - m, m_c' - m) + 1/(k-1)|  0: the angles of a simplex
        nc3             | M / |M| - W / |W| |, rows m_c - m and w_c, Frobenius   0: W is the means, but for a factor
        effective_rank  see `effective_rank`
        dead            share of the features that are zero for all images

    S_w is the mean over images of (h - m_c)(h - m_c)^T and S_b the mean over classes of (m_c - m)(m_c - m)^T, so every
    class weighs the same in m and S_b, and every image in S_w. nc3 cannot reach 0 where W's own rows are not centred.

    A measure that is not defined is left out: nc3 without a `weight`, all about the means where they coincide.
    """
    means = moments.means
    centred = means - means.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "nc1": within_over_between(moments),
            "cdnv": class_distance_normalised_variance(moments),
            "nc2_norm": _norm_variation(centred, _rounding(means)),
            "nc2_angle": _angle_deviation(centred, _rounding(means)),
            "nc3": np.nan if weight is None else _distance(centred, weight[moments.seen], _rounding(means)),
            "effective_rank": effective_rank(moments),
            "dead": float((moments.largest == 0).mean()),
        }
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def within_over_between(moments: Moments) -> float:
    """Return tr(S_w S_b^+) / k (NC1 of Papyan et al.); NaN where all class means coincide.

    With the singular values s and right singular vectors v of the centred means M [k d], S_b = M^T M / k, so it is the
    sum of v^T S_w v / s^2: S_b^+ need not be formed. M has rank k - 1 at most; what is left is rounding.
    """
    means, counts = moments.means, moments.counts[moments.seen]
    _, values, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    kept = (values > _rounding(means)) & (np.arange(len(values)) < len(means) - 1)
    within = (moments.outer - (means.T * counts) @ means) / counts.sum()
    spread = ((axes @ within) * axes).sum(1)
    return float(np.maximum(spread[kept], 0.0) @ values[kept] ** -2.0) if kept.any() else np.nan


def class_distance_normalised_variance(moments: Moments) -> float:
    """Return the mean over pairs of classes of (V_c + V_c') / (2 |m_c - m_c'|^2), V_c the mean of |h - m_c|^2.

    Infinite where two class means coincide. Source: Galanti, György and Hutter, "On the role of neural collapse in
    transfer learning", ICLR 2022, arXiv 2112.15121.
    """
    means, seen = moments.means, moments.seen
    centred = means - means.mean(0)
    norms = np.square(centred).sum(1)
    variances = moments.squares[seen] / moments.counts[seen] - np.square(means).sum(1)
    variances = np.maximum(variances, 0.0)
    # Where the squared distance is what rounding leaves of the squared norms, the means coincide.
    least = EPS * max(means.shape) * norms.sum() + _rounding(means) ** 2

    def ratio(products: np.ndarray, own: slice) -> np.ndarray:
        distances = norms[own, None] + norms - 2 * products
        return np.where(distances > least, (variances[own, None] + variances) / (2 * distances), np.inf)

    with np.errstate(divide="ignore", invalid="ignore"):
        return _mean_over_pairs(centred, ratio)


def effective_rank(moments: Moments) -> float:
    """Return exp(-sum p log p), p the singular values of the features' covariance over their sum; from 1 to d.

    NaN where all features are equal. Source: Roy and Vetterli, "The effective rank: A measure of effective
    dimensionality", EUSIPCO 2007.
    """
    count = moments.counts.sum()
    mean, second = moments.sums.sum(0) / count, moments.outer / count
    values = np.linalg.eigvalsh(second - np.outer(mean, mean))
    values = np.where(values > EPS * len(mean) * np.trace(second), values, 0.0)  # smaller ones are rounding
    return float(np.exp(entr(values / values.sum()).sum())) if values.any() else np.nan


def nearest_classes(moments: Moments, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """Return the class whose mean is nearest to each image's features; among equals the first."""
    means = moments.means
    centre = means.mean(0)
    centred, shifted = means - centre, features.astype(np.float64) - centre
    distances = np.square(centred).sum(1) - 2 * shifted @ centred.T  # [n s], but for each image's own squared norm
    return np.flatnonzero(moments.seen)[distances.argmin(1)]


def head_weight(head: Head, variables: Mapping[str, Any], width: int) -> Float[np.ndarray, "k d"] | None:
    """Return the matrix W that a head on `width` features applies, up to a positive factor; None if it has none.

    A head has one if its logits y(h) are s W h + b, where the factor s > 0 may hang on the length of h: a linear layer,
    and one behind features that are normalised. The columns of W are (y(e) - y(-e)) / 2 for the unit vectors e, so
    signs and learned scales are in it, and one more vector shows whether W gives the head's answer: it does not for a
    head that maps features to others and normalises those.
    """
    with jax.default_matmul_precision("highest"):
        weight = np.asarray(_odd_part(head, variables, jnp.eye(width)), np.float64).T
        probe = np.random.default_rng(0).standard_normal((1, width))
        answer = np.asarray(_odd_part(head, variables, jnp.asarray(probe, jnp.float32)), np.float64)[0]
    told = weight @ probe[0]
    return weight if told @ answer > PARALLEL * np.linalg.norm(told) * np.linalg.norm(answer) else None


@functools.partial(jax.jit, static_argnums=0)
def _odd_part(head: Head, variables: Mapping[str, Any], features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Return half of what the logits change by from -h to h: without a bias."""
    answers: Any = [head.apply(variables, part) for part in (features, -features)]
    return (answers[0] - answers[1]) / 2


def _rounding(means: Float64[np.ndarray, "k d"]) -> float:
    """Return the length below which a difference of means is rounding."""
    return EPS * max(means.shape) * float(np.linalg.norm(means))


def _norm_variation(centred: Float64[np.ndarray, "k d"], least: float) -> float:
    norms = np.linalg.norm(centred, axis=1)
    return float(norms.std() / norms.mean()) if norms.max() > least else np.nan


def _angle_deviation(centred: Float64[np.ndarray, "k d"], least: float) -> float:
    """Return the mean of |cos + 1/(k-1)|; NaN where a mean has no direction."""
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    if norms.min() <= least:
        return np.nan
    cosine = 1 / (len(centred) - 1)
    return _mean_over_pairs(centred / norms, lambda products, own: np.abs(products + cosine))


def _distance(centred: Float64[np.ndarray, "k d"], weight: Float[np.ndarray, "k d"], least: float) -> float:
    sizes = np.linalg.norm(centred), np.linalg.norm(weight)
    if sizes[0] <= least or not sizes[1]:
        return np.nan
    return float(np.linalg.norm(centred / sizes[0] - weight / sizes[1]))


def _mean_over_pairs(rows: Float64[np.ndarray, "k d"], score: Callable[[np.ndarray, slice], np.ndarray]) -> float:
    """Return the mean over pairs of different rows of a score of their products; NaN for a single row.

    `score` takes products [b k] and which b rows they are of. No more than d rows at a time: k^2 may be more than k d.
    """
    (count, width), total = rows.shape, 0.0
    if count < 2:
        return np.nan
    for start in range(0, count, width):
        own = slice(start, min(start + width, count))
        values = score(rows[own] @ rows.T, own)
        values[np.arange(len(values)), np.arange(start, own.stop)] = 0.0
        total += values.sum()
    return float(total / (count * (count - 1)))
