"""What features [n d] are worth for telling classes apart: three classifiers on them, whatever network they are of.

All is a pure function of arrays in float64, and repeats to the bit. Memory is O(n d), however many test images: what
is larger is computed in slices.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from jaxclf.data.order import held_out
from jaxclf.errors import RunError, UsageError

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Penalties that the linear probe chooses from."""
CHOSEN_ON = 0.2
"""Share of each class's training images that they are chosen on."""
FEWEST = 5
"""Images of a class, of which that share is one."""
TOLERANCE = 1e-5
"""Largest entry of the gradient at which the linear probe is at its minimum."""
STEPS = 20_000
"""Most steps of L-BFGS."""
TEMPERATURE = 0.07
"""Of the votes of neighbours, as in Wu et al. 2018."""
SHARED = 2**28
"""Multiply-adds of a pass over the features from which BLAS takes several threads; below, they wait for one another."""
SLICE = 2**22
"""Numbers of a matrix between images that are in memory at once: 32 MiB."""


class Labelled(NamedTuple):
    """Images by their features."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    """From 0; the largest is the last class."""

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1


# 1. Linear probe


class LinearProbe(NamedTuple):
    """A linear classifier on standardised features x: the class of the largest W x + b."""

    mean: Float64[np.ndarray, " d"]
    """Of the training features."""
    std: Float64[np.ndarray, " d"]
    """Of the training features; 1 for one that is constant."""
    weight: Float64[np.ndarray, "k d"]
    bias: Float64[np.ndarray, " k"]
    penalty: float

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """Return the class of each image; the first among equals."""
        return (_standardised(features, self.mean, self.std) @ self.weight.T + self.bias).argmax(1)


def linear_probe(train: Labelled, penalties: Sequence[float] = PENALTIES) -> LinearProbe:
    """Fit a linear probe on training images, under the penalty that is best on a held-out fifth of each class.

    Best is the largest share of right answers; of equal ones, the largest penalty. The probe is then fitted on all.
    Source: the protocol of Kornblith, Shlens and Le, "Do better ImageNet models transfer better?", CVPR 2019, arXiv
    1805.08974, appendix A.6, which has a finer and wider grid.

    Raises `UsageError` for a class of fewer than five images.
    """
    require_each(train.labels, FEWEST, "the linear probe")
    chosen = held_out(train.labels.astype(np.int32), CHOSEN_ON)
    kept, judged = (Labelled(train.features[own], train.labels[own]) for own in (~chosen, chosen))
    best, start = (-1.0, 0.0), None
    for penalty in sorted(penalties, reverse=True):
        start = fit_linear(kept, penalty, start=start)
        share = float((start.predict(judged.features) == judged.labels).mean())
        best = max(best, (share, penalty))
    return fit_linear(train, best[1])


def fit_linear(
    train: Labelled, penalty: float, *, start: LinearProbe | None = None, tolerance: float = TOLERANCE
) -> LinearProbe:
    """Fit multinomial logistic regression on features x that have the mean 0 and the standard deviation 1.

    It minimises the mean over images of -log softmax(W x + b)_y, plus penalty / 2 |W|^2, by L-BFGS in float64 from
    `start`, or else from 0, until no entry of the gradient is larger than `tolerance`. The bias is not penalised.
    Raises `RunError` where `STEPS` steps do not lead there, or rounding hides the way, as it does below about 1e-8.
    """
    features = train.features.astype(np.float64)
    mean, std = features.mean(0), features.std(0)
    std = np.where(features.max(0) > features.min(0), std, 1.0)  # of a constant, rounding may leave one above 0
    features = _standardised(features, mean, std)
    shape = (train.num_classes, features.shape[1] + 1)
    first = np.zeros(shape) if start is None else np.column_stack([start.weight, start.bias])
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": STEPS, "maxfun": 2 * STEPS}
    given = (features, train.labels, penalty)
    threads = 1 if features.size * train.num_classes < SHARED else None
    with threadpool_limits(threads, user_api="blas"):
        found = minimize(regression, first.ravel(), given, method="L-BFGS-B", jac=True, options=options)
    if (left := float(np.abs(found.jac).max())) > tolerance:
        raise RunError(
            f"the linear probe at penalty {penalty:g} has a gradient of {left:.1e} after {found.nit:,} steps, above "
            f"{tolerance:g}: {found.message}"
        )
    fitted = found.x.reshape(shape)
    return LinearProbe(mean, std, fitted[:, :-1], fitted[:, -1], penalty)


def regression(
    flat: Float64[np.ndarray, " p"], features: Float64[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], penalty: float
) -> tuple[float, Float64[np.ndarray, " p"]]:
    """Return what `fit_linear` minimises, and its gradient, at [W b], p = k (d + 1) numbers."""
    count, width = features.shape
    weight = flat.reshape(-1, width + 1)
    loss, gradient = 0.0, np.zeros_like(weight)
    for own in _slices(count, len(weight)):
        logits = features[own] @ weight[:, :-1].T + weight[:, -1]  # [s k]
        rows, right = np.arange(len(logits)), labels[own]
        logits -= logsumexp(logits, axis=1, keepdims=True)
        loss -= logits[rows, right].sum()
        errors = np.exp(logits)
        errors[rows, right] -= 1
        gradient[:, :-1] += errors.T @ features[own]
        gradient[:, -1] += errors.sum(0)
    gradient /= count
    gradient[:, :-1] += penalty * weight[:, :-1]
    return float(loss / count + penalty / 2 * np.square(weight[:, :-1]).sum()), gradient.ravel()


def _standardised(
    features: Float[np.ndarray, "n d"], mean: Float64[np.ndarray, " d"], std: Float64[np.ndarray, " d"]
) -> Float64[np.ndarray, "n d"]:
    return (features.astype(np.float64) - mean) / std


# 2. Nearest neighbours


def nearest_neighbours(
    train: Labelled,
    features: Float[np.ndarray, "m d"],
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> Int[np.ndarray, " m"]:
    """Return the class of each image by a vote of its nearest training images.

    The nearest have the largest cosine c of features; each votes for its class with the weight exp(c / temperature).
    Of equally near ones the first in order vote, and of classes with equal votes the first wins. Source: Wu, Xiong, Yu
    and Lin, "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, arXiv 1805.01978,
    section 3.4; with 20 neighbours: Caron et al., "Emerging properties in self-supervised vision transformers", ICCV
    2021, arXiv 2104.14294.

    Raises `UsageError` for more neighbours than training images.
    """
    count, classes = len(train.labels), train.num_classes
    require_neighbours(count, neighbours)
    known, asked = normalised(train.features), normalised(features)
    answers = np.empty(len(asked), np.int64)
    for own in _slices(len(asked), count):
        cosines = asked[own] @ known.T  # [s n]
        nearest = _largest(cosines, neighbours)
        # Divided by exp(1 / temperature), which changes no order.
        votes = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / temperature)
        places = np.arange(len(nearest))[:, None] * classes + train.labels[nearest]
        totals = np.bincount(places.ravel(), votes.ravel(), len(nearest) * classes)
        answers[own] = totals.reshape(-1, classes).argmax(1)
    return answers


def require_neighbours(images: int, neighbours: int) -> None:
    """Raise `UsageError` unless so many training images can have so many neighbours among them."""
    if not 1 <= neighbours <= images:
        raise UsageError(f"neighbours is {neighbours} but must be from 1 to {images:,}, the number of training images")


def _largest(values: Float64[np.ndarray, "s n"], count: int) -> Int[np.ndarray, "s count"]:
    """Return the places of each row's largest values, in order; the first of those that are equal to the smallest."""
    least = np.partition(values, -count, axis=1)[:, -count, None]
    above, equal = values > least, values == least
    missing = count - above.sum(1, keepdims=True)
    return np.nonzero(above | (equal & (equal.cumsum(1) <= missing)))[1].reshape(-1, count)


# 3. Few images a class


def few_shot(train: Labelled, test: Labelled, shots: int, *, draws: int = 20, seed: int = 0) -> list[float]:
    """Return, for each of some draws of `shots` training images a class, the share of test images that are told right.

    An image's class is that of `nearest_means`. Raises `UsageError` as `draw_shots` does.
    """
    shares = []
    for draw in range(draws):
        chosen = draw_shots(train.labels, shots, seed=seed, draw=draw)
        told = nearest_means(Labelled(train.features[chosen], train.labels[chosen]), test.features)
        shares.append(float((told == test.labels).mean()))
    return shares


def draw_shots(labels: Int[np.ndarray, " n"], shots: int, *, seed: int, draw: int) -> Int[np.ndarray, " s"]:
    """Draw `shots` images of each class without replacement, a function of (seed, shots, draw); class by class.

    Raises `UsageError` for a class with fewer.
    """
    require_each(labels, shots, f"a draw of {shots}")
    rng = np.random.default_rng((seed, shots, draw))
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in range(labels.max() + 1)]
    )


def nearest_means(train: Labelled, features: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
    """Return the class whose mean is nearest to each image, of features that are divided by their length.

    The first among equals; every class must have an image. Source: Wang, Chao, Weinberger and van der Maaten,
    "SimpleShot: Revisiting nearest-neighbor classification for few-shot learning", 2019, arXiv 1911.04623, as L2N.
    """
    known, asked = normalised(train.features), normalised(features)
    means = np.zeros((train.num_classes, known.shape[1]))
    np.add.at(means, train.labels, known)
    means /= np.bincount(train.labels)[:, None]
    # The squared distance, but for each image's own squared length.
    return (np.square(means).sum(1) - 2 * asked @ means.T).argmin(1)


def normalised(features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Divide features by their length; zero stays zero."""
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def require_each(labels: Int[np.ndarray, " n"], least: int, what: str, names: Sequence[str] | None = None) -> None:
    """Raise `UsageError` for classes with fewer images than something needs, by their names, or else their numbers."""
    if least < 1:
        raise UsageError(f"{what} must be of at least 1 image a class")
    counts = np.bincount(labels, minlength=0 if names is None else len(names))
    short = np.flatnonzero(counts < least)
    if len(short):
        said = ", ".join(f"{c if names is None else names[c]} has {counts[c]}" for c in short[:10])
        more = f" and {len(short) - 10} more have fewer" if len(short) > 10 else ""
        raise UsageError(f"{what} needs {least} training images of each class, but {said}{more}")


def _slices(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of the rows of a matrix that hold `SLICE` numbers at most, or a row."""
    size = max(1, SLICE // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
