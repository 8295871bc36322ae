"""Images for which a layer of a network answers the same: what the layer keeps of an image."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32

from jaxclf.config import OptimConfig
from jaxclf.errors import UsageError
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier
from jaxclf.tools.activations import require_maps
from jaxclf.training.rules import rule_of

POWER = 6
"""alpha of Mahendran and Vedaldi's norm, section 3.1."""


class Inverted(NamedTuple):
    """What `invert` found."""

    images: Float32[np.ndarray, "n h w c"]
    """Inputs of the network."""
    losses: Float32[np.ndarray, "s n"]
    """What is minimised, before each step."""
    distances: Float32[np.ndarray, " n"]
    """|f(x) - f0|^2 / |f0|^2 of the images."""


def invert(
    model: Classifier,
    variables: Mapping[str, Any],
    target: Float[Array | np.ndarray, "n i j d"],
    layer: str,
    shape: tuple[int, int, int],
    *,
    steps: int = 200,
    seed: int = 0,
    rate: float = 0.05,
    bound: float = 1e-3,
    variation: float = 0.1,
) -> Inverted:
    """Find images x of a shape (h, w, c) whose outputs f(x) of a layer are a target f0, by gradient descent from noise.

    For each image, |f(x) - f0|^2 / |f0|^2 + `bound` mean(x^6) + `variation` V(x) is minimised; V is the mean over
    positions and channels of the squared differences to the neighbours below and on the right. Steps are Adam's, whose
    rate falls from `rate` to 0 along a cosine. The same arguments give the same images.

    Source: Mahendran and Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015, arXiv
    1412.0035, section 3; they take momentum, sums in place of means, and other weights for each layer. Raises
    `UsageError` for an unknown layer, a target that is not of its shape, is zero or not finite, and `steps` below 1.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps} but must be at least 1")
    target = np.asarray(target, np.float32)
    shapes = taps.layers(model, (len(target), *shape))
    require_maps(shapes, [layer])
    if target.shape != shapes[layer].shape:
        raise UsageError(
            f"the target has the shape {target.shape}, but layer {layer!r} answers with {shapes[layer].shape}"
        )
    norms = np.square(target, dtype=np.float64).sum((1, 2, 3)).astype(np.float32)
    if not np.isfinite(norms).all() or not norms.all():
        raise UsageError(f"the target's squared norms are {norms.tolist()}, but must be finite and above 0")
    rule = rule_of(OptimConfig("adam"), optax.constant_schedule(rate))
    compared = functools.partial(_distances, model, layer, variables, target=jnp.asarray(target), norms=norms)

    @jax.jit
    def step(images: jax.Array, state: optax.OptState, rate: jax.Array) -> tuple[jax.Array, optax.OptState, jax.Array]:
        def total(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = compared(images) + bound * jnp.mean(images**POWER, (1, 2, 3)) + variation * _variation(images)
            return losses.sum(), losses  # no image's gradient depends on another's loss

        (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(images)
        updates: Any
        updates, state = rule.update(gradient, state)
        return images - rate * updates, state, losses

    images = 0.1 * jax.random.normal(jax.random.key(seed), (len(target), *shape))
    state, curve = rule.init(images), []
    for one in rate * (1 + np.cos(np.pi * np.arange(steps, dtype=np.float32) / steps)) / 2:
        images, state, losses = step(images, state, one)
        curve.append(losses)
    return Inverted(np.asarray(images), np.asarray(jnp.stack(curve)), np.asarray(jax.jit(compared)(images)))


def invert_images(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "n h w c"],
    layers: Sequence[str],
    *,
    steps: int = 200,
    seed: int = 0,
) -> dict[str, Inverted]:
    """Return what `invert` finds for each layer's outputs of some images, by layer. Raises `UsageError` as it does."""
    tapped = jax.jit(functools.partial(taps.tap, model, paths=tuple(layers)))(variables, jnp.asarray(images))
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return {
        layer: invert(model, variables, tapped.outputs[layer], layer, shape, steps=steps, seed=seed) for layer in layers
    }


def _distances(
    model: Classifier,
    layer: str,
    variables: Any,
    images: Float[Array, "n h w c"],
    target: Float[Array, "n i j d"],
    norms: Float32[np.ndarray, " n"],
) -> Float[Array, " n"]:
    """Return |f(x) - f0|^2 / |f0|^2."""
    output = taps.tap(model, variables, images, (layer,)).outputs[layer].astype(jnp.float32)
    return jnp.square(output - target).sum((1, 2, 3)) / norms


def _variation(images: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """Return the mean squared difference to the neighbour below, and to that on the right, added."""
    down, right = (jnp.square(jnp.diff(images, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
    return down + right
