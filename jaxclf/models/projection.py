"""From one activation back to the pixels: which ones it depends on, and what in them it answers to.

Both are the gradient's way back through the network with some operations replaced: the network's program, as JAX
traces it, is run with other functions in their place.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclf.models import taps
from jaxclf.models.classifier import Classifier

Rules = Mapping[str, Callable[..., jax.Array]]
"""What stands for an operation, by its name: (parameters of the operation, its arguments) -> its result."""
TOGETHER = 16
"""Positions whose receptive fields are found in one compiled call."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def deconvolve(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    layer: str,
    channels: Int[Array, " n"],
    positions: Int[Array, "n 2"],
) -> Float[Array, "n h w c"]:
    """Return the projection of one activation of each image, of a channel at a position (row, column) of a layer.

    All other activations of the layer are set to zero, and the layers before it undone, from the last to the first: a
    max pool puts each value where the maximum came from, a ReLU passes what is positive of the signal itself (whatever
    the activation was), a convolution applies its filters transposed. What the paper's networks do not have goes back
    by its gradient: BatchNorm (a scale there), sums, average pools, and other activations than ReLU and ReLU6.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, arXiv 1311.2901,
    section 2.1. The result has the activation's scale, and both signs. Raises `UsageError` for an unknown layer.
    """

    def answer(images: Float[Array, "n h w c"]) -> Float[Array, "n i j d"]:
        return taps.tap(model, variables, images, (layer,)).outputs[layer]

    output, pull = jax.vjp(replaced(answer, images, DECONVOLUTION), images)
    at = (jnp.arange(len(images)), positions[:, 0], positions[:, 1], channels)
    return pull(jnp.zeros_like(output).at[at].set(output[at]))[0]


def receptive_field(
    model: Classifier,
    variables: Mapping[str, Any],
    shape: tuple[int, int, int],
    layer: str,
    positions: Int[np.ndarray, "n 2"],
) -> Int[np.ndarray, "n 4"]:
    """Return the boxes (y0, x0, y1, x1), half-open, of an image's pixels that positions of a layer's output depend on.

    They are cut at the edges of the image, whose shape is (h, w, c). A mean over all positions inside of the network,
    as in squeeze-and-excitation, makes them the whole image. They are where the gradient is not 0 in a network without
    ReLUs, whose max pools are sums; what the product of the layers' numbers is too small for, is not found.
    """
    found = []
    for start in range(0, len(positions), TOGETHER):
        part = positions[start : start + TOGETHER]
        padded = np.concatenate([part, np.repeat(part[:1], TOGETHER - len(part), 0)])
        found.append(np.asarray(_depended_on(model, layer, shape, variables, padded))[: len(part)])
    reached = np.concatenate(found)  # [n h w]
    (y0, y1), (x0, x1) = (_ends(np.asarray(reached.any(axis))) for axis in (2, 1))
    return np.stack([y0, x0, y1, x1], -1)


def _ends(reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first place of each of [n length] that is true, and one after the last."""
    return reached.argmax(1), reached.shape[1] - reached[:, ::-1].argmax(1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _depended_on(
    model: Classifier, layer: str, shape: tuple[int, int, int], variables: Any, positions: Int[Array, "n 2"]
) -> jax.Array:
    """Return which pixels [n h w] have a gradient."""
    image = jnp.zeros((1, *shape))

    def answer(image: Float[Array, "1 h w c"]) -> Float[Array, "1 i j d"]:
        return taps.tap(model, variables, image, (layer,)).outputs[layer]

    output, pull = jax.vjp(replaced(answer, image, LINEAR), image)
    # Numbers that no sum over channels cancels; the same at each run.
    signal = jax.random.normal(jax.random.key(0), output.shape[3:], output.dtype)
    one = jax.vmap(lambda at: pull(jnp.zeros_like(output).at[0, at[0], at[1]].set(signal))[0][0])
    return (one(positions) != 0).any(-1)


def replaced(function: Callable[[Any], jax.Array], x: Any, rules: Rules) -> Callable[[Any], jax.Array]:
    """Return a function of one array, for arrays of x's shape, with the operations replaced that rules name."""
    program = jax.make_jaxpr(function)(x)
    return lambda x: _run(program, [x], rules)[0]


def _run(program: jex.ClosedJaxpr, arguments: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a program, equation by equation."""
    inner = program.jaxpr
    values = dict(zip((*inner.constvars, *inner.invars), (*program.consts, *arguments), strict=True))
    for equation in inner.eqns:
        inputs = [one.val if isinstance(one, jex.Literal) else values[one] for one in equation.invars]
        name, parameters = _operation(equation)
        if name in rules:
            outputs = [rules[name](parameters, *inputs)]
        elif equation.primitive.name in ("jit", "pjit"):
            outputs = _run(parameters["jaxpr"], inputs, rules)
        else:
            known = {one: values[one] for one in equation.invars if not isinstance(one, jex.Literal)}
            alone = jex.Jaxpr((), list(known), equation.outvars, [equation], debug_info=inner.debug_info)
            outputs = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*known.values())
        values.update(zip(equation.outvars, outputs, strict=True))
    return [one.val if isinstance(one, jex.Literal) else values[one] for one in inner.outvars]


def _operation(equation: jex.JaxprEqn) -> tuple[str, Mapping[str, Any]]:
    """Return the name of an operation and its parameters: of one with a gradient of its own, what it consists of."""
    if equation.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        inner = equation.params["call_jaxpr"].jaxpr.eqns
        if len(inner) == 1:
            return inner[0].params.get("name", inner[0].primitive.name), inner[0].params
    return equation.primitive.name, equation.params


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectify(relu: Callable[[Any], jax.Array], x: jax.Array) -> jax.Array:
    """Return relu(x), whose gradient is the positive part of the gradient for it."""
    return relu(x)


_rectify.defvjp(lambda relu, x: (relu(x), None), lambda _, __, gradient: (jax.nn.relu(gradient),))


def _sum_pool(parameters: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Return the sums over the windows of a max pool."""
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, strides, parameters["padding"])


DECONVOLUTION: Rules = {
    "relu": lambda _, x: _rectify(jax.nn.relu, x),
    "relu6": lambda _, x: _rectify(jax.nn.relu6, x),
}
LINEAR: Rules = {"relu": lambda _, x: x, "relu6": lambda _, x: x, "reduce_window_max": _sum_pool}
