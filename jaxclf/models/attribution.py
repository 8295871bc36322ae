"""Where in an image a class is seen: the class maps that the network computes anyway, and maps that gradients make.

>>> METHODS
('maps', 'grad_cam', 'grad_cam_plus_plus', 'gradient')
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclf.errors import UsageError, unknown
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier


def class_maps(
    model: Classifier, variables: Mapping[str, Any], images: Float[Array | np.ndarray, "n h w c"]
) -> Float[Array, "n i j k"]:
    """Return the logits at every position of the last feature map: `Classifier.class_maps`, compiled.

    Under a matrix, learned or fixed, they are the class activation maps of Zhou et al., "Learning deep features for
    discriminative localization", CVPR 2016, with the bias; under identity the last convolution's channels themselves
    (the thesis, figures 5.2 to 5.4). Under the average pool their mean over (i, j) is the logits.
    """
    return jax.jit(model.apply, static_argnames="method")(variables, jnp.asarray(images), method="class_maps")


def attribute(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "n h w c"],
    classes: Int[np.ndarray, "n t"],
    *,
    method: str = "maps",
    layer: str | None = None,
) -> Float[np.ndarray, "n t i j"]:
    """Return where in each image each of t classes is seen, by a method of `METHODS`.

    maps: the class maps. The others are of gradients: grad_cam and grad_cam_plus_plus at the output of `layer`, a path
    of `taps.layers`, or None for the last feature map that has more than one position; gradient at the image itself.
    A map has the size of that output; only its shape has a meaning, not its scale, save that of class maps, which are
    logits. Each class costs one backward pass, and all of an image's one forward pass.

    Raises `UsageError` for an unknown method or layer, a layer whose output is no feature map, a layer given to a
    method that takes none, and classes that the model does not have.
    """
    require_classes(classes, model.head.num_classes)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    path = require_layer(model, images.shape, method, layer)
    images = jnp.asarray(images)
    if method == "maps":
        found = np.asarray(class_maps(model, variables, images))  # [n i j k]
        return np.moveaxis(np.take_along_axis(found, classes[:, None, None, :], 3), 3, 1)
    return _from_gradients(model, variables, images, classes, method, path)


def require_classes(classes: Int[np.ndarray, "n t"], num_classes: int) -> None:
    """Raise `UsageError` unless all are classes of a model."""
    if odd := sorted({int(one) for one in classes.ravel() if not 0 <= one < num_classes}):
        raise UsageError(f"classes {odd} given, but the model has 0 to {num_classes - 1}")


def require_layer(model: Classifier, shape: tuple[int, ...], method: str, layer: str | None) -> str | None:
    """Return the path of the layer at which a method takes gradients; None: it takes the image's, or none.

    `shape` is that of the images, [n h w c]. Raises `UsageError` as `attribute` does, before anything is compiled.
    """
    if method in ("maps", "gradient"):
        if layer is not None:
            able = ", ".join(name for name in METHODS if name.startswith("grad_cam"))
            raise UsageError(f"layer {layer!r} given with {method}, but only {able} take one")
        return None
    shapes = {path: output.shape for path, output in taps.layers(model, shape).items()}
    if layer is None:
        # The last feature map; of networks whose linear layers are convolutions on one position, what these stand on.
        wide = [path for path, one in shapes.items() if len(one) == 4 and one[1] * one[2] > 1]
        if not wide:
            raise UsageError("no layer of the network has more than one position on this image; give a larger image")
        return wide[-1]
    if layer not in shapes:
        raise unknown("layer", layer, [path for path in shapes if path != taps.LAST])
    if len(shapes[layer]) != 4:
        raise UsageError(f"layer {layer!r} answers with the shape {shapes[layer]}, but must with a map [n i j d]")
    return layer


Method = Callable[[jax.Array, jax.Array], jax.Array]
"""Outputs of a layer [n i j d], gradients of a logit with respect to them -> maps [n i j]."""


def grad_cam(outputs: Float[Array, "n i j d"], gradients: Float[Array, "n i j d"]) -> Float[Array, "n i j"]:
    """Return ReLU(sum_d w_d A_d), w_d the mean gradient over the positions.

    Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV
    2017, arXiv 1610.02391, equations 1 and 2.
    """
    weights = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * outputs).sum(3))


def grad_cam_plus_plus(outputs: Float[Array, "n i j d"], gradients: Float[Array, "n i j d"]) -> Float[Array, "n i j"]:
    """Return ReLU(sum_d w_d A_d), w_d = sum_ij a ReLU(g), a = g^2 / (2 g^2 + g^3 sum_ij A), and 0 where g is 0.

    Source: Chattopadhyay et al., "Grad-CAM++: generalized gradient-based visual explanations for deep convolutional
    networks", WACV 2018, arXiv 1710.11063, equations 5, 6 and 19, for the score exp(logit). Their factor exp(logit),
    one for an image and a class, is left out: it scales the map, and overflows.
    """
    squares = jnp.square(gradients)
    below = 2 * squares + gradients * squares * outputs.sum((1, 2), keepdims=True)
    shares = jnp.where(below == 0, 0, squares / jnp.where(below == 0, 1, below))
    weights = (shares * jax.nn.relu(gradients)).sum((1, 2), keepdims=True)
    return jax.nn.relu((weights * outputs).sum(3))


def gradient(outputs: Float[Array, "n h w c"], gradients: Float[Array, "n h w c"]) -> Float[Array, "n h w"]:
    """Return the largest magnitude of the image's gradient over its channels.

    Source: Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", 2013, arXiv 1312.6034, section 3.1.
    """
    return jnp.abs(gradients).max(3)


OF_GRADIENTS: Mapping[str, Method] = {
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "gradient": gradient,
}
METHODS = ("maps", *OF_GRADIENTS)
"""Names of the methods."""


def _from_gradients(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    classes: Int[np.ndarray, "n t"],
    method: str,
    path: str | None,
) -> Float[np.ndarray, "n t i j"]:
    """Compute one forward pass, and a backward pass for each of the t classes."""
    logits, pull, outputs = _forward(model, path, variables, images)
    chosen = np.eye(logits.shape[1], dtype=logits.dtype)[classes]  # [n t k]
    found = [_backward(OF_GRADIENTS[method], pull, outputs, one) for one in np.moveaxis(chosen, 1, 0)]
    return np.stack([np.asarray(one) for one in found], 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    model: Classifier, path: str | None, variables: Any, images: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n k"], Callable[..., Any], Float[Array, "n i j d"]]:
    """Return the logits, the pass back to what is added to the output of a layer, or to the images, and that output."""
    start = images
    if path is not None:
        start = jnp.zeros(taps.layers(model, images.shape)[path].shape, images.dtype)

    def answer(at: Float[Array, "n ..."]) -> tuple[Any, Any]:
        if path is None:
            return model.apply(variables, at), at
        tapped = taps.tap(model, variables, images, (path,), {path: at})
        return tapped.logits, tapped.outputs[path]

    return jax.vjp(answer, start, has_aux=True)


@functools.partial(jax.jit, static_argnums=0)
def _backward(
    method: Method, pull: Callable[..., Any], outputs: Float[Array, "n i j d"], chosen: Float[Array, "n k"]
) -> Float[Array, "n i j"]:
    return method(outputs, pull(chosen)[0])
