"""Layers in other forms than XLA's own where those are slow: the same functions, by platform where platforms differ.

Each form is chosen when a program is lowered, so a program for one platform holds nothing of another's. `python
benchmarks/layers.py` times each layer in both forms; what `stored` gains shows in a whole training step alone.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt8

Convolution = Callable[[jax.Array, jax.Array], jax.Array]
Sides = tuple[tuple[int, int], tuple[int, int]]


def wide(x: jax.Array) -> jax.Array:
    """Return x in float32 where it is narrower."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k l m d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n i j d"]:
    """Return lax.conv_general_dilated with Flax's arguments for it, whose dimensions are NHWC, HWIO and NHWC.

    For CPUs, 1x1 convolutions are compiled as matrix products, and depthwise ones as a sum of k * l shifted products;
    XLA's convolutions take several times as long there. For NVIDIA's GPUs, convolutions of images, c <= 4, with a
    stride are compiled as ones without of what each step holds, for which cuDNN uses its matrix units. All else is
    compiled as it is; where it has no groups, its input is `kept`.
    """

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    groups, (height, width) = options.get("feature_group_count", 1), strides
    dilated = {*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())} - {1}
    form: Convolution
    if groups == 1 and kernel.shape[:2] == (1, 1) and not dilated and not np.any(padding):
        platform, form = "cpu", functools.partial(product, strides=strides, precision=options.get("precision"))
    elif groups == kernel.shape[3] > 1 and kernel.shape[2] == 1 and not dilated:
        platform, form = "cpu", functools.partial(shifted, strides=strides, padding=padding)
    elif groups == 1 and height == width > 1 and x.shape[-1] <= 4 and not dilated:
        platform, form = "cuda", functools.partial(space_to_depth, stride=height, padding=padding, options=options)
    else:
        return plain(kept(x, kernel), kernel) if groups == 1 else plain(x, kernel)
    # Computed again in the backward pass, so that it stores what the convolution does: its two arguments.
    form = jax.checkpoint(form, prevent_cse=False)
    return jax.lax.platform_dependent(x, kernel, default=plain, **{platform: form})


def product(x: jax.Array, kernel: jax.Array, strides: Sequence[int], precision: Any) -> jax.Array:
    """Return the convolution with a kernel [1 1 c d], as a matrix product."""
    taken = x[:, :: strides[0], :: strides[1]]
    rows = taken.reshape(-1, taken.shape[-1])  # XLA takes several times as long for a gradient over three axes
    return jnp.matmul(rows, kernel[0, 0], precision=precision).reshape(*taken.shape[:3], -1)


def shifted(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Return the depthwise convolution with a kernel [k l 1 c], as a sum of shifted products."""
    padded = jnp.pad(wide(x), [(0, 0), *padding, (0, 0)])
    taps = wide(kernel).reshape(*kernel.shape[:2], 1, 1, 1, -1)
    rows, columns = (
        range(0, size - length + 1, stride)
        for size, length, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    products = [
        padded[:, i : i + rows[-1] + 1 : strides[0], j : j + columns[-1] + 1 : strides[1]] * taps[i, j]
        for i, j in np.ndindex(*kernel.shape[:2])
    ]
    return functools.reduce(jnp.add, products).astype(x.dtype)


def space_to_depth(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Sequence[tuple[int, int]], options: dict[str, Any]
) -> jax.Array:
    """Return the convolution with a stride s, as one without of the s * s positions that each step holds.

    Kernel and channels are filled up with zeros, to multiples of s and of 4; cuDNN's fast kernels take no others.
    """
    s, (n, *shape, c), (*sides, _, d) = stride, x.shape, kernel.shape
    channels = -(-c // 4) * 4
    counts = [-(-side // s) for side in sides]
    starts = [
        (size + low + high - side) // s + count
        for size, side, (low, high), count in zip(shape, sides, padding, counts, strict=True)
    ]  # of x in steps of s: outputs + counts - 1
    zero = jnp.zeros((), x.dtype)
    ends = [(low, s * many - size - low, 0) for size, (low, _), many in zip(shape, padding, starts, strict=True)]
    x = jax.lax.pad(x, zero, [(0, 0, 0), *ends, (0, channels - c, 0)])
    x = x.reshape(n, starts[0], s, starts[1], s, channels).transpose(0, 1, 3, 2, 4, 5)
    fill = [(0, s * count - side) for count, side in zip(counts, sides, strict=True)]
    kernel = jnp.pad(kernel, [*fill, (0, channels - c), (0, 0)])
    kernel = kernel.reshape(counts[0], s, counts[1], s, channels, d).transpose(0, 2, 1, 3, 4, 5)
    x, kernel = x.reshape(*x.shape[:3], -1), kernel.reshape(*counts, -1, d)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(0, 0)] * 2, **options)


def batch_norm(
    x: Float[Array, "n h w c"], weight: Float[ArrayLike, " c"], bias: Float[ArrayLike, " c"], eps: float
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """Return x normalised over (n, h, w), and the mean and the biased variance, which carry no gradient.

    Statistics are float32 for narrower inputs; the variance is taken in two passes, as torch does.
    """
    return _batch_norm(x, weight, bias, eps)


def stored(x: jax.Array, beside: Float[Array, " c"]) -> jax.Array:
    """Return x, which a CPU's program computes once.

    XLA fuses what makes an array into each of its uses on a CPU, and so computes it again for each. It does not look
    into a conditional. This one's condition always holds, for any bits of `beside`, a small array that is the same on
    all devices; where it did not, NaN would tell.
    """
    bits = jax.lax.bitcast_convert_type(beside[0], f"uint{8 * beside.dtype.itemsize}")
    always = jax.lax.population_count(bits) <= 64
    return jax.lax.cond(always, lambda x: x, lambda x: jnp.full_like(x, jnp.nan), x)


@jax.custom_jvp
def kept(x: jax.Array, beside: jax.Array) -> jax.Array:
    """Return x; on a CPU `stored`, where it is differentiated.

    A convolution's gradient for its kernel reads x transposed, for which XLA computes all that made x again there.
    """
    return x


@kept.defjvp
def _kept_tangent(given: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> Any:
    x, beside = given
    x = jax.lax.platform_dependent(x, beside.reshape(-1), cpu=stored, default=lambda x, _: x)
    return x, tangents[0]


def _channels(values: ArrayLike) -> Float[ArrayLike, "1 1 1 c"]:
    return jnp.reshape(values, (1, 1, 1, -1))


def _normalised(x: jax.Array, weight: ArrayLike, bias: ArrayLike, eps: float) -> tuple[Any, Any]:
    values = wide(x)
    mean = values.mean((0, 1, 2))
    centred = values - _channels(mean)
    var = jnp.square(centred).mean((0, 1, 2))
    rate = jax.lax.rsqrt(var + eps)
    y = centred * _channels(rate * weight) + _channels(bias)
    return (y.astype(x.dtype), mean, var), (x, weight, mean, rate)


def _batch_norm_gradient(eps: float, kept: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients for x, weight and bias, from sums over the batch that one pass takes.

    JAX derives a sum that needs the others and a pass of its own. It is zero but for the rounding of the mean, which
    `rest` takes out here.
    """
    (x, weight, mean, rate), dy = kept, wide(gradients[0])
    count = x.size // x.shape[-1]
    centred = wide(x) - _channels(mean)
    bias_gradient, along, rest = dy.sum((0, 1, 2)), (dy * centred).sum((0, 1, 2)), centred.sum((0, 1, 2)) / count
    weight_gradient = (along - rest * bias_gradient) * rate
    slope = weight_gradient * rate / count
    level = bias_gradient / count - rest * slope
    dx = ((dy - _channels(level) - centred * _channels(slope)) * _channels(rate * weight)).astype(x.dtype)
    dx = jax.lax.platform_dependent(dx, mean, cpu=stored, default=lambda dx, _: dx)
    return dx, weight_gradient, bias_gradient


_batch_norm: Any = jax.custom_vjp(
    lambda x, weight, bias, eps: _normalised(x, weight, bias, eps)[0], nondiff_argnums=(3,)
)
_batch_norm.defvjp(_normalised, _batch_norm_gradient)


def max_pool(x: Float[Array, "n h w c"], window: int, stride: int, sides: Sides) -> Float[Array, "n i j c"]:
    """Return the maximum of each window of x, padded by `sides` of both axes; the first maximum gets the gradient.

    XLA scatters it. CPUs and NVIDIA's GPUs gather it instead, in a fraction of the time and always in the same order.
    """
    return _max_pool(x, window, stride, sides)


def _maxima(x: jax.Array, window: int, stride: int, sides: Sides) -> jax.Array:
    padding: Any = sides  # Flax's annotation knows the strings alone
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def _max_pool_forward(x: jax.Array, window: int, stride: int, sides: Sides) -> tuple[jax.Array, jax.Array]:
    return _maxima(x, window, stride, sides), x


def _max_pool_gradient(window: int, stride: int, sides: Sides, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    def scattered(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _maxima(x, window, stride, sides), x)[1](dy)[0]

    gathered = functools.partial(_gathered, window, stride, sides)
    return (jax.lax.platform_dependent(x, dy, cpu=gathered, cuda=gathered, default=scattered),)


def _gathered(window: int, stride: int, sides: Sides, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the gradient for x: each position takes from the windows whose first maximum it is.

    Positions that are equal modulo the stride lie alike in their windows, so they are computed together.
    """
    places = [(i, j) for i in range(window) for j in range(window)]
    first = _first_maximum(x, places, stride, sides, dy.shape[1:3])
    (n, *shape, c), zero = x.shape, jnp.zeros((), dy.dtype)
    steps = [-(-(size + low) // stride) for size, (low, _) in zip(shape, sides, strict=True)]
    phases = []
    for phase in itertools.product(range(stride), repeat=2):
        total = jnp.zeros((n, *steps, c), dy.dtype)
        for number, place in enumerate(places):
            if all(at % stride == own for at, own in zip(place, phase, strict=True)):
                part = jnp.where(first == jnp.uint8(number), dy, zero)
                ends = [
                    (at // stride, many - at // stride - size, 0)
                    for at, many, size in zip(place, steps, dy.shape[1:3], strict=True)
                ]
                total += jax.lax.pad(part, zero, [(0, 0, 0), *ends, (0, 0, 0)])
        phases.append(total)
    dx = jnp.stack(phases, axis=3).reshape(n, *steps, stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(n, steps[0] * stride, steps[1] * stride, c)
    low = [side[0] for side in sides]
    return dx[:, low[0] : low[0] + shape[0], low[1] : low[1] + shape[1]]


def _first_maximum(
    x: jax.Array, places: Sequence[tuple[int, int]], stride: int, sides: Sides, shape: Sequence[int]
) -> UInt8[Array, "n i j c"]:
    """Return the number of the place of each window's first maximum."""
    padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0)])
    rows, columns = (stride * (many - 1) + 1 for many in shape)
    best, *others = (padded[:, i : i + rows : stride, j : j + columns : stride] for i, j in places)
    number = jnp.zeros(best.shape, jnp.uint8)
    for index, one in enumerate(others, 1):
        above = one > best
        best, number = jnp.where(above, one, best), jnp.where(above, jnp.uint8(index), number)
    return number


_max_pool: Any = jax.custom_vjp(_maxima, nondiff_argnums=(1, 2, 3))
_max_pool.defvjp(_max_pool_forward, _max_pool_gradient)
