"""The layers that every backbone is made of, with PyTorch's meaning and PyTorch's parameter names.

Convolution kernels are Flax's HWIO under the name `kernel`; everything else is named as PyTorch names it, so that a
joined path is a PyTorch key (torch_weights.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float

from jaxclf.errors import UsageError
from jaxclf.models import fast_layers
from jaxclf.models.matrices import matrix

Initializer = Callable[..., Any]

he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
"""U(+-sqrt(6 / fan_in)), torch's kaiming_uniform_(nonlinearity="relu"): the thesis's default."""
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(+-1 / sqrt(fan_in)): what torch's Conv2d and Linear start from."""


def as_input(*arrays: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Bring what a layer computes with to one type: that of its input, the first, where that is narrower than float32.

    Parameters are float32, and Linen's own rule would widen a bfloat16 input to them. The classifier narrows the images
    (`Classifier.dtype`), and every layer above them follows; nothing else says what the type is. The signature is that
    of Linen's `promote_dtype`, so that Linen's layers take it too.
    """
    given = arrays[0].dtype
    return promote_dtype(*arrays, dtype=given if given.itemsize < 4 else dtype, inexact=inexact)


def uniform(bound: float) -> Initializer:
    """Return the initialiser U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def check_groups(layer: str, groups: int, *channels: int) -> None:
    """Raise `UsageError` unless a layer's number of groups divides each of its numbers of channels."""
    if groups < 1 or any(one % groups for one in channels):
        given, common = " and ".join(map(str, dict.fromkeys(channels))), math.gcd(*channels)
        able = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
        raise UsageError(
            f"{layer} cannot part {given} channels into {groups} groups; numbers of groups that can: {able}"
        )


class Conv(nn.Conv):
    """Linen's convolution, computed `as_input`; `UsageError` for groups that do not divide the channels."""

    promote_dtype: Callable[..., Any] = as_input

    @nn.nowrap  # no scope of its own, which would repeat the name
    def __call__(self, inputs: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Convolve."""
        check_groups(f"convolution {self.name}", self.feature_group_count, inputs.shape[-1], self.features)
        return super().__call__(inputs)


def conv(
    features: int,
    kernel: int | tuple[int, int],
    *,
    fan_in: int = 0,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    init: Initializer = he_uniform,
    name: str,
) -> Conv:
    """Return torch's Conv2d of the same arguments: float32 parameters, computed `as_input`.

    `kernel` is a side or (height, width). `padding` is the same number on every side, or (low, high) of each axis.
    `fan_in` = in / groups * height * width is needed with a bias.
    """
    if bias and not fan_in:
        raise ValueError(f"conv {name}: a bias is drawn from fan_in, which was not given")
    return Conv(
        features,
        (kernel, kernel) if isinstance(kernel, int) else kernel,
        strides=stride,
        padding=[(padding, padding)] * 2 if isinstance(padding, int) else padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
        conv_general_dilated=fast_layers.convolution,
        use_bias=bias,
        kernel_init=init,
        bias_init=uniform(fan_in**-0.5) if bias else nn.initializers.zeros,
        name=name,
    )


class StandardisedConv(nn.Module):
    """A convolution whose kernel, when applied, has mean 0 and variance 1 in each output channel, without a bias.

    (w - mean) / sqrt(var + eps): Qiao et al. 2019, arXiv 1903.10520. With `scale` it is a scaled one, which has a bias:
    that times gain scale / sqrt(fan_in), whose gain [k] is learned (Brock et al. 2021, arXiv 2101.08692; timm's form).
    """

    features: int
    size: int
    stride: int = 1
    padding: int | Sequence[tuple[int, int]] = 0
    groups: int = 1
    eps: float = 1e-6
    scale: float | None = None
    gain: float = 1.0
    """What the gain starts from."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Standardise the kernel, in float32, and apply it."""
        check_groups(f"convolution {self.name}", self.groups, x.shape[-1], self.features)
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", he_uniform, shape)
        kernel -= kernel.mean((0, 1, 2), keepdims=True)
        kernel *= jax.lax.rsqrt(jnp.square(kernel).mean((0, 1, 2), keepdims=True) + self.eps)
        bias = None
        if self.scale is not None:
            gain = self.param("gain", nn.initializers.constant(self.gain), (self.features,))
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).reshape(1, 1, 1, -1)
            kernel *= (gain * (self.scale * math.prod(shape[:3]) ** -0.5)).reshape(1, 1, 1, -1)
        x, kernel, bias = as_input(x, kernel, bias)
        sides = [(self.padding, self.padding)] * 2 if isinstance(self.padding, int) else self.padding
        options: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": self.groups}
        y = fast_layers.convolution(x, kernel, (self.stride, self.stride), sides, **options)
        return y if bias is None else y + bias


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d: biased variance in the output, unbiased variance in the running average.

    Flax's own layer keeps the biased one, which is off by n / (n - 1) and shows in short runs and small maps.
    Statistics are float32 for narrower inputs too; the variance is taken in two passes, as torch does.
    """

    momentum: float = 0.1
    """Share of the new batch in the running average (torch's meaning; Flax's is one minus this)."""
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, kept: Bool[Array, " c"] | None = None
    ) -> Float[Array, "n h w c"]:
        """Normalise over (n, h, w); `train` uses the batch's statistics and updates the running ones.

        Running statistics of channels that are not `kept` stay as they are; None keeps all. Where the collection
        `batch_moments` is mutable, it gets the batch's own statistics, under the same names.
        """
        shape = (x.shape[-1],)
        weight = self.param("weight", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "running_mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "running_var", jnp.ones, shape)
        if not train:
            scale = jax.lax.rsqrt(running_var.value + self.eps) * weight
            center, scale, bias = (one.reshape(1, 1, 1, -1) for one in (running_mean.value, scale, bias))
            return ((fast_layers.wide(x) - center) * scale + bias).astype(x.dtype)
        y, mean, var = fast_layers.batch_norm(x, weight, bias, self.eps)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(f"BatchNorm in training needs more than one value per channel; got {x.shape}")
            unbiased = var * (count / (count - 1))
            moments = (("running_mean", running_mean, mean), ("running_var", running_var, unbiased))
            for name, running, moment in moments:
                new = running.value + self.momentum * (moment - running.value)
                running.value = new if kept is None else jnp.where(kept, new, running.value)
                self.sow("batch_moments", name, moment, init_fn=lambda: jnp.zeros(shape), reduce_fn=jnp.add)
        return y


class GroupNorm(nn.Module):
    """torch.nn.GroupNorm: over the positions and the channels of each group, one image at a time."""

    groups: int = 32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalise; statistics are float32 for narrower inputs too."""
        n, h, w, c = x.shape
        check_groups(f"GroupNorm {self.name}", self.groups, c)
        weight = self.param("weight", nn.initializers.ones, (c,)).reshape(1, 1, 1, c)
        bias = self.param("bias", nn.initializers.zeros, (c,)).reshape(1, 1, 1, c)
        wide = fast_layers.wide(x)
        grouped = wide.reshape(n, h, w, self.groups, c // self.groups)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        var = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (normal * weight + bias).astype(x.dtype)


def squeeze_excite(
    x: Float[Array, "n h w c"],
    features: int,
    *,
    activation: Callable[[Any], Any] = jax.nn.relu,
    gate: Callable[[Any], Any] = jax.nn.sigmoid,
    bias: bool = True,
    names: Sequence[str] = ("fc1", "fc2"),
) -> Float[Array, "n h w c"]:
    """Return x times gate(conv1(activation(conv1(mean of x over h, w)))), in the compact method that calls it.

    The convolutions, to `features` channels and back, have these names. Source: Hu et al. 2018, arXiv 1709.01507.
    """
    wide = x.shape[-1]
    y = conv(features, 1, fan_in=wide, bias=bias, name=names[0])(x.mean((1, 2), keepdims=True))
    return x * gate(conv(wide, 1, fan_in=features, bias=bias, name=names[1])(activation(y)))


class SqueezeExcite(nn.Module):
    """`squeeze_excite` in a module of its own."""

    features: int
    activation: Callable[[Any], Any] = jax.nn.relu
    gate: Callable[[Any], Any] = jax.nn.sigmoid
    bias: bool = True
    names: tuple[str, str] = ("fc1", "fc2")

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Weigh the channels."""
        options: Any = {"activation": self.activation, "gate": self.gate, "bias": self.bias, "names": self.names}
        return squeeze_excite(x, self.features, **options)


def local_response_norm(
    x: Float[Array, "n h w c"], size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float[Array, "n h w c"]:
    """torch.nn.LocalResponseNorm: x / (k + alpha mean(x^2))^beta, the mean over `size` neighbouring channels.

    Channels that do not exist count as zeros. Source: Krizhevsky et al. 2012, section 3.3.
    """
    window, sides = (1, 1, 1, size), [(0, 0)] * 3 + [(size // 2, (size - 1) // 2)]
    wide = fast_layers.wide(x)
    sums = jax.lax.reduce_window(jnp.square(wide), np.zeros((), wide.dtype), jax.lax.add, window, (1,) * 4, sides)
    return (wide * (k + alpha / size * sums) ** -beta).astype(x.dtype)


def max_pool(
    x: Float[Array, "n h w c"], window: int, *, stride: int | None = None, padding: int = 0, ceil: bool = False
) -> Float[Array, "n i j c"]:
    """Torch's MaxPool2d(window, stride, padding, ceil_mode=ceil); the stride is the window unless given."""
    stride = stride or window
    height, width = (_sides(size, window, stride, padding, ceil) for size in x.shape[1:3])
    return fast_layers.max_pool(x, window, stride, (height, width))


def avg_pool(
    x: Float[Array, "n h w c"],
    window: int,
    *,
    stride: int | None = None,
    padding: int = 0,
    ceil: bool = False,
    count_padding: bool = True,
) -> Float[Array, "n i j c"]:
    """Torch's AvgPool2d(window, stride, padding, ceil_mode=ceil, count_include_pad=count_padding).

    The stride is the window unless given. What `ceil` adds beyond the padding is never counted.
    """
    stride = stride or window
    sides: Any = [_sides(size, window, stride, padding, ceil) for size in x.shape[1:3]]
    sums = nn.pooling.pool(x, 0.0, jax.lax.add, (window, window), (stride, stride), sides)
    counts = [
        _counted(size, window, stride, padding if count_padding else 0, padding, places)
        for size, places in zip(x.shape[1:3], sums.shape[1:3], strict=True)
    ]
    if all((count == window).all() for count in counts):
        return sums / window**2
    return sums / jnp.asarray(np.multiply.outer(*counts)[None, :, :, None], sums.dtype)


def _sides(size: int, window: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    """Return what is padded before and after an axis; a window that `ceil` adds begins before the high padding."""
    if not ceil:
        return padding, padding
    places = -(-(size + 2 * padding - window) // stride) + 1
    if (places - 1) * stride >= size + padding:
        places -= 1
    return padding, max((places - 1) * stride + window - size - padding, padding)


def _counted(size: int, window: int, stride: int, counted: int, padding: int, places: int) -> np.ndarray:
    """Return how many entries of an axis each window divides by, `counted` of the padding's on each side among them."""
    starts = np.arange(places) * stride - padding
    return np.minimum(starts + window, size + counted) - np.maximum(starts, -counted)


def adaptive_avg_pool(x: Float[Array, "n h w c"], height: int, width: int) -> Float[Array, "n i j c"]:
    """Torch's AdaptiveAvgPool2d: bin i of an axis of n positions is floor(i n / bins) to ceil((i + 1) n / bins)."""
    for axis, bins in ((1, height), (2, width)):
        size = x.shape[axis]
        bounds = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
        parts = [jax.lax.slice_in_dim(x, *one, axis=axis).mean(axis, keepdims=True) for one in bounds]
        x = parts[0] if bins == 1 else jnp.concatenate(parts, axis)
    return x


def tf_padding(size: tuple[int, ...], kernel: int, stride: int) -> list[tuple[int, int]]:
    """Return TensorFlow's padding SAME: (low, high) zeros of each axis for ceil(size / stride) outputs.

    >>> tf_padding((224, 225), kernel=3, stride=2)
    [(0, 1), (1, 1)]
    """
    totals = [max((-(-length // stride) - 1) * stride + kernel - length, 0) for length in size]
    return [(total // 2, total - total // 2) for total in totals]


def fixed_matrix(module: nn.Module, name: str, rows: int, columns: int, seed: int) -> Float[Array, "k d"]:
    """Return the matrix `name` of matrices.py as `module`'s variable of that name in the `fixed` collection.

    It is no parameter: no gradient, no optimiser slot, no decay, without a mask anywhere.
    """
    return module.variable("fixed", name, lambda: jnp.asarray(matrix(name, rows, columns, seed), jnp.float32)).value


class FixedConv(nn.Module):
    """A 1x1 convolution whose weights are a fixed matrix [k d]: x [n h w d] -> [n h w k]."""

    matrix: str
    features: int
    seed: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h w k"]:
        """Multiply every position by the matrix."""
        x, weight = as_input(x, fixed_matrix(self, self.matrix, self.features, x.shape[-1], self.seed))
        return x @ weight.T


def fit_channels(x: Float[Array, "n h w c"], features: int) -> Float[Array, "n h w k"]:
    """Zero-pad or centre-crop the channels to `features`, half on each side; an odd difference goes last."""
    front = (features - x.shape[-1]) // 2 if features >= x.shape[-1] else -((x.shape[-1] - features) // 2)
    back = features - x.shape[-1] - front
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + [(front, back, 0)])


def check_size(name: str, x: jax.Array, smallest: int) -> None:
    """Raise `UsageError` for images [n h w c] that a backbone without padding cannot take."""
    if x.ndim != 4:
        raise UsageError(f"{name} takes images [n h w c]; got an array of shape {x.shape}")
    if min(x.shape[1:3]) < smallest:
        raise UsageError(f"{name} takes images of {smallest}x{smallest} and larger; got {x.shape[1]}x{x.shape[2]}")
