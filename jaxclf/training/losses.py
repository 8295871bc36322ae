"""Losses of examples, regularisers of parameters, and metrics as sums with counts.

Metrics are sums so that any batching of a data set gives the same quotient. Two of them are called loss: in training it
is what is minimised, without the regularisers, which are reported apart; on test images it is always the plain
cross-entropy of the labels, so that runs under different losses can be compared.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from jaxclf.config import MARGINS, UNSMOOTHED, LossConfig
from jaxclf.errors import UsageError
from jaxclf.models.heads import Head, Linear
from jaxclf.models.initialisation import conv_paths

Tree = Any
Sums = dict[str, jax.Array]
REGULARISERS = ("l1", "l2", "so", "dso")
"""Fields of `LossConfig` that are weights of regularisers, in the order of reports."""


def zeros(*, terms: tuple[str, ...] = ()) -> Sums:
    """Return empty sums: `loss` (nats), `top1`, `top5`, `count` (examples) and, over steps, one per regulariser."""
    floats, integers = ("loss", *terms), ("top1", "top5", "count")
    return {name: jnp.zeros((), jnp.float32) for name in floats} | {name: jnp.zeros((), jnp.int32) for name in integers}


def example_losses(
    config: LossConfig, logits: Float[Array, "n k"], targets: Float[Array, "n k"], scale: float = 1.0
) -> Float[Array, " n"]:
    """Return the loss of each example, without regularisers; its mean over the batch is torch's loss.

    With targets t (one-hot, or mixed labels that sum to 1) smoothed to u = (1 - e) t + e / k, e = label_smoothing:

        cross_entropy  -sum_k u log softmax(x)                                     CrossEntropyLoss(label_smoothing=e)
        binary         -mean_k [u log sigmoid(x) + (1 - u) log(1 - sigmoid(x))]    BCEWithLogitsLoss, given u
        mse            mean_k (x - t)^2                                            MSELoss
        dot_regression sum_k t (x - 1)^2 / 2                                       DR of Yang et al. (2022)
        cosine         sum_k t (1 - c)^2
        cosface        cross_entropy of s (c - m t)                                Wang et al. (2018)
        arcface        cross_entropy of s cos(arccos(c) + m t)                     Deng et al. (2019)

    The cosines c are x / s, with s the `scale` of `cosine_scale`, and m is the margin. Margins go by t, not by u:
    smoothing says what the network should answer, not which classes the image shows. Of a mixed label each class has
    the share m t of the margin, so that a share of 1 is the loss of that label alone.

    Under binary the smoothed share is spread over the classes too, so its labels still sum to 1; smoothing each class
    towards 1/2 by itself would be another loss. dot_regression and cosine say nothing of the classes that are not the
    label's: smoothing would draw all of them towards 1. Mixed labels share them out.

    Raises:
        UsageError: label smoothing with mse, dot_regression and cosine.
    """
    classes, smoothing = logits.shape[1], config.label_smoothing
    if config.name in UNSMOOTHED:
        if smoothing:
            raise UsageError(f"loss.label_smoothing is {smoothing} but must be 0 for {config.name}")
        if config.name == "mse":
            return jnp.square(logits - targets).mean(1)
        if config.name == "cosine":
            return (targets * jnp.square(1 - logits / scale)).sum(1)
        return (targets * jnp.square(logits - 1)).sum(1) / 2
    smoothed = (1 - smoothing) * targets + smoothing / classes if smoothing else targets
    if config.name in MARGINS:
        logits = _with_margin(config, logits, targets, scale)
    if config.name != "binary":
        return -(smoothed * jax.nn.log_softmax(logits)).sum(1)
    # Two softplus instead of one less x * s: no digits cancel where a class is as certain as it should be.
    return (smoothed * jax.nn.softplus(-logits) + (1 - smoothed) * jax.nn.softplus(logits)).mean(1)


def _with_margin(
    config: LossConfig, logits: Float[Array, "n k"], targets: Float[Array, "n k"], scale: float
) -> Float[Array, "n k"]:
    """Return the logits of cosface and arcface.

    Where an angle and its margin pass pi, cos(angle + m) would rise again: there it is cos(angle) - m sin(m), as in
    insightface with easy_margin off. The sine's slope at a cosine of +-1 is infinite; here it is zero.
    """
    margin = targets * (MARGINS[config.name] if config.margin is None else config.margin)
    if config.name == "cosface":
        return logits - scale * margin
    square = (scale - logits) * (scale + logits)  # keeps digits that s^2 - x^2 would lose
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    widened = logits * jnp.cos(margin) - sine * jnp.sin(margin)
    return jnp.where(logits > -scale * jnp.cos(margin), widened, logits - scale * margin * jnp.sin(margin))


def cosine_scale(config: LossConfig, head: Head) -> float:
    """Return the s of a head whose logits are s times cosines, if the loss is one of cosines; else 1.

    Raises:
        UsageError: the loss is one of cosines, but the logits are none, or the loss can be had for nothing. A learned
            scale undoes a margin. cosine and dot_regression say nothing of the classes that are not the label's, so a
            learned matrix ends with one row for all of them, and features without a norm where all logits are 1.
    """
    alone = config.name in ("cosine", "dot_regression")
    if not alone and config.name not in MARGINS:
        return 1.0
    linear, faults = isinstance(head, Linear), []
    if not linear or head.normalise not in ("both", "features" if config.name == "dot_regression" else "both"):
        faults.append(f"does not normalise {'features' if config.name == 'dot_regression' else 'features and rows'}")
    if head.bias:
        faults.append("has a bias")
    if linear and head.learn_scale:
        faults.append("learns its scale")
    if linear and head.matrix is None and alone:
        faults.append("learns its matrix")
    if faults:
        raise UsageError(
            f"loss.name is {config.name!r} but the head {', '.join(faults)}; choose model.head "
            f"{'etf_dr' if alone else config.name}, or another linear head that learns no scale"
            f"{' and no matrix' if alone else ''}, with model.head_normalise both and model.bias False"
        )
    return getattr(head, "scale", None) or 1.0


def regulariser_names(config: LossConfig) -> tuple[str, ...]:
    """Return the names of the regularisers whose weight is not 0.

    >>> regulariser_names(LossConfig(dso=0.025, l1=1e-5))
    ('l1', 'dso')
    """
    return tuple(name for name in REGULARISERS if getattr(config, name))


def regularisers(config: LossConfig, params: Tree, *, decayed: Tree, last_conv: str) -> dict[str, Float[Array, ""]]:
    """Return the weighted regularisers by name, only those whose weight is not 0.

    l1 is the weight times sum |p|, l2 the weight times sum p^2 / 2, whose gradient is that of torch's weight_decay,
    both over the parameters p where `decayed` (a tree of bools like `params`) holds. so and dso are `orthogonality`
    summed over the backbone's last convolution, whose path below `backbone` is `last_conv`, or over all of them
    (`config.orthogonalise`).
    """
    chosen = [p for p, counts in zip(jax.tree.leaves(params), jax.tree.leaves(decayed), strict=True) if counts]
    measures = {
        # Not abs: its gradient in JAX is 1 at 0, where torch's is 0 and where BatchNorm's biases start.
        "l1": lambda: [(p * jnp.sign(p)).sum() for p in chosen],
        "l2": lambda: [jnp.square(p).sum() / 2 for p in chosen],
        "so": lambda: [orthogonality(kernel, double=False) for kernel in _kernels(config, params, last_conv)],
        "dso": lambda: [orthogonality(kernel, double=True) for kernel in _kernels(config, params, last_conv)],
    }
    # The Python zero takes the parameters' own dtype.
    return {name: getattr(config, name) * jnp.asarray(sum(measures[name](), 0.0)) for name in regulariser_names(config)}


def _kernels(config: LossConfig, params: Tree, last_conv: str) -> list[jax.Array]:
    """Return the kernels that so and dso are about."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    return [flat[path] for path in conv_paths(params, config.orthogonalise, last_conv)]


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


def metric_sums(
    logits: Float[Array, "n k"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    each: Float[Array, " n"] | None = None,
) -> Sums:
    """Sum loss and hits over the examples where `mask` holds.

    The loss is that of `each` example where it is given, in training what `example_losses` returned; else the plain
    cross-entropy of the labels, whatever was minimised.

    An example's rank is the number of classes before its own, by logit and, among equals, by index, as argmax orders
    them: a Hadamard head past its width gives whole classes equal logits, and they must not all count as hits.
    A logit that is NaN comes before every number, so that a row with NaN has no top-1 hit, and one of NaN alone no hit.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = (~(logits <= own) | ((logits == own) & earlier)).sum(1)  # whatever is compared with NaN is false
    return {
        "loss": jnp.where(mask, cross_entropy(logits, labels) if each is None else each, 0.0).sum(),
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
