"""ResNeXts for small images (Xie et al. 2017, section 5.2): three stages of bottlenecks with grouped 3x3 convolutions.

Names and layout as in prlz77/ResNeXt.pytorch@39fb8d0, of which bearpaw's file is a copy.

With `maps`, the last block's conv_expand gives that many channels, with a bias and torch's default initialisation, and
the sum is the end: no BatchNorm, no ReLU; the shortcut is zero-padded or centre-cropped in its channels.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, fit_channels, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks, within


class ResNeXtBottleneck(nn.Module):
    """conv1-bn-relu-conv3-bn-relu-conv1-bn plus shortcut, ReLU: x [n h w c] -> [n h/stride w/stride k]."""

    features: int
    stride: int
    middle: int
    """Channels of the 3x3 convolution, all groups together."""
    groups: int
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        y = jax.nn.relu(BatchNorm(name="bn_reduce")(conv(self.middle, 1, name="conv_reduce")(x), train))
        y = conv(self.middle, 3, stride=self.stride, padding=1, groups=self.groups, name="conv_conv")(y)
        y = jax.nn.relu(BatchNorm(name="bn")(y, train))
        if self.maps is not None:
            y = conv(self.maps, 1, fan_in=self.middle, bias=True, init=torch_default, name="conv_expand")(y)
            return y + fit_channels(x, self.maps)
        y = BatchNorm(name="bn_expand")(conv(self.features, 1, name="conv_expand")(y), train)
        if x.shape[-1] != self.features:
            x = Shortcut(self.features, self.stride, name="shortcut")(x, train)
        return jax.nn.relu(x + y)


class Shortcut(nn.Module):
    """conv1-bn: x [n h w c] -> [n h/stride w/stride k]."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the two."""
        x = conv(self.features, 1, stride=self.stride, name="shortcut_conv")(x)
        return BatchNorm(name="shortcut_bn")(x, train)


class CifarResNeXt(Backbone):
    """ResNeXt-(9n + 2), groups x width: images [n h w c] -> maps [n h/4 w/4 k], any channels and size."""

    depth: int
    groups: int
    group_width: int
    """Channels of a group in the first stage."""

    options = ("maps", "remat")
    head_names = ("classifier",)
    stem = "conv__1_3x3"
    image_size = 32

    @property
    def blocks(self) -> int:
        """Blocks in each stage."""
        return (self.depth - 2) // 9

    @property
    def last_conv(self) -> str:
        """Path of the last conv."""
        return f"stage__3/stage__3_bottleneck__{self.blocks - 1}/conv_expand"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1024

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(f"resnext{self.depth}_{self.groups}x{self.group_width}d", images, 1)
        x = conv(64, 3, padding=1, name="conv__1_3x3")(images)
        x = jax.nn.relu(BatchNorm(name="bn__1")(x, train))
        return apply_stages(self, map(self._stage, (1, 2, 3)), x, train)

    def _stage(self, number: int) -> Stage:
        middle, last = self.groups * self.group_width * 2 ** (number - 1), self.blocks - 1
        row = [
            functools.partial(
                ResNeXtBottleneck,
                128 * 2**number,
                2 if number > 1 and index == 0 else 1,
                middle,
                self.groups,
                self.maps if (number, index) == (3, last) else None,
                name=f"stage__{number}_bottleneck__{index}",
            )
            for index in range(self.blocks)
        ]
        return within(f"stage__{number}", blocks(*row))


VARIANTS = {"resnext29_8x64d": Variant(CifarResNeXt, dict(depth=29, groups=8, group_width=64))}
