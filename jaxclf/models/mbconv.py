"""The inverted residual block of MobileNetV2 and V3, MnasNet and EfficientNet: one block, three sources' names of it.

Sources: Sandler et al. 2018 (arXiv 1801.04381), Howard et al. 2019 (1905.02244), Tan and Le 2019 (1905.11946).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.layers import BatchNorm, SqueezeExcite, conv, squeeze_excite, tf_padding

Activation = Callable[[Any], Any]
Norm = Callable[..., BatchNorm]


class Names(NamedTuple):
    """What a reference calls the layers of a block: a convolution and its BatchNorm, three times, and the squeeze."""

    expand: tuple[str, str]
    depthwise: tuple[str, str]
    project: tuple[str, str]
    squeeze: tuple[str, str, str] = ("", "", "")
    """Module of the two convolutions, empty where they stand in the block itself, and their own names."""


class Squeeze(NamedTuple):
    """Squeeze-and-excitation (Hu et al. 2018): the block's width to `features`, `activation`, back, `gate`."""

    features: int
    activation: Activation
    gate: Activation


def torchvision_names(expanded: bool, squeezed: bool) -> Names:
    """Return the names in torchvision 0.28, where what a block has is numbered.

    >>> torchvision_names(expanded=False, squeezed=True).project
    ('block_2_0', 'block_2_1')
    """
    depthwise = int(expanded)
    pairs = [(f"block_{place}_0", f"block_{place}_1") for place in (0, depthwise, depthwise + 1 + squeezed)]
    return Names(pairs[0], pairs[1], pairs[2], (f"block_{depthwise + 1}", "fc1", "fc2"))


def conv_norm(
    x: Float[Array, "n h w c"],
    train: bool,
    features: int,
    kernel: int,
    names: tuple[str, str],
    *,
    norm: Norm = BatchNorm,
    stride: int = 1,
    groups: int = 1,
    tf: bool = False,
) -> Float[Array, "n i j k"]:
    """Apply a convolution for ceil(size / stride) outputs and its BatchNorm, in the compact method that calls it.

    `tf` pads as TensorFlow does, the odd pixel last; else each side gets half of the kernel.
    """
    padding = tf_padding(x.shape[1:3], kernel, stride) if tf else kernel // 2
    x = conv(features, kernel, stride=stride, padding=padding, groups=groups, name=names[0])(x)
    return norm(name=names[1])(x, train)


class MBConv(nn.Module):
    """x [n h w c] -> 1x1 to `width`, depthwise, squeeze, 1x1 to `features` without activation: [n i j k].

    A block whose width is that of its input has no first convolution. A block that changes neither size nor channels
    has a shortcut.
    """

    width: int
    features: int
    stride: int
    kernel: int
    names: Callable[[bool, bool], Names]
    """Of whether the block has its first convolution, and its squeeze."""
    norm: Norm = BatchNorm
    activation: Activation = jax.nn.relu6
    squeeze: Squeeze | None = None
    tf: bool = False
    stochastic_depth: float = 0.0
    """Share of the images that pass by the shortcut alone in training (Huang et al. 2016, arXiv 1603.09382)."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; `train` needs an rng named "dropout" where `stochastic_depth` is not 0."""
        expanded = self.width != x.shape[-1]
        names = self.names(expanded, self.squeeze is not None)
        layer = functools.partial(conv_norm, train=train, norm=self.norm)
        y = self.activation(layer(x, features=self.width, kernel=1, names=names.expand)) if expanded else x
        y = layer(
            y,
            features=self.width,
            kernel=self.kernel,
            names=names.depthwise,
            stride=self.stride,
            groups=self.width,
            tf=self.tf,
        )
        y = self.activation(y)
        if self.squeeze is not None:
            module, first, second = names.squeeze
            given: dict[str, Any] = {**self.squeeze._asdict(), "names": (first, second)}
            y = SqueezeExcite(**given, name=module)(y) if module else squeeze_excite(y, **given)
        y = layer(y, features=self.features, kernel=1, names=names.project)
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return x + nn.Dropout(self.stochastic_depth, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


def divisible(channels: float, by: int = 8) -> int:
    """Round to a multiple of `by` that is no more than a tenth below (Howard et al. 2017, their slim code).

    >>> [divisible(channels) for channels in (35.2, 18, 3)]
    [32, 24, 8]
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded if rounded >= 0.9 * channels else rounded + by
