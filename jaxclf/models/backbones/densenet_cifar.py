"""DenseNet-BC for small images (Huang et al. 2017): three dense blocks of bottleneck layers, compression 1/2.

Names and layout as in bearpaw/pytorch-classification@24f1c45. There is no `maps`: the last feature map is a
concatenation, and a 1x1 conv after it would be the learned classifier under another name (it commutes with the
average pool). The identity head takes the first channels instead, as the thesis does.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, Parts, avg_pool, block, check_size, conv, stage


class Bottleneck(nn.Module):
    """bn-relu-conv1 to 4 x growth, bn-relu-conv3 to growth, behind the channels so far."""

    growth: int
    apart: bool
    """Hand on the channels so far and the new ones as they are; else as one array."""

    @nn.compact
    def __call__(self, parts: Parts, train: bool) -> Parts:
        """Add `growth` channels."""
        x = jnp.concatenate(parts, axis=-1)
        y = jax.nn.relu(BatchNorm(name="bn1")(x, train))
        y = conv(4 * self.growth, 1, name="conv1")(y)
        y = jax.nn.relu(BatchNorm(name="bn2")(y, train))
        y = conv(self.growth, 3, padding=1, name="conv2")(y)
        return (*parts, y) if self.apart else (jnp.concatenate([x, y], axis=-1),)


class Transition(nn.Module):
    """bn-relu-conv1 to half the channels, then a 2x2 average pool."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Halve channels and size."""
        x = jax.nn.relu(BatchNorm(name="bn1")(x, train))
        return avg_pool(conv(x.shape[-1] // 2, 1, name="conv1")(x), 2)


class CifarDenseNet(Backbone):
    """DenseNet-BC(depth, growth): images [n h w c] -> maps [n h/4 w/4 k], any channels and size from 4x4."""

    depth: int
    growth: int

    options = ("remat",)
    stem = "conv1"
    image_size = 32

    @property
    def blocks(self) -> int:
        """Bottleneck layers in each dense block."""
        return (self.depth - 4) // 6

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"dense3_{self.blocks - 1}/conv2"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        channels = 2 * self.growth
        for number in range(3):
            channels = (channels // 2 if number else channels) + self.blocks * self.growth
        return channels

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map, after its BatchNorm and ReLU."""
        check_size(f"densenet_bc_{self.depth}_{self.growth}", images, 4)
        x = conv(2 * self.growth, 3, padding=1, name="conv1")(images)
        for number in (1, 2, 3):
            x = stage(functools.partial(CifarDenseNet._stage, number=number), self.remat)(self, x, train)
        return jax.nn.relu(BatchNorm(name="bn")(x, train))

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, number: int) -> Float[Array, "n i j k"]:
        parts = (x,)
        for index in range(self.blocks):
            layer = block(Bottleneck, self.remat)(self.growth, self.remat == "block", name=f"dense{number}_{index}")
            parts = layer(parts, train)
        x = jnp.concatenate(parts, axis=-1)
        return x if number == 3 else block(Transition, self.remat)(name=f"trans{number}")(x, train)


VARIANTS = {
    f"densenet_bc_{depth}_{growth}": Variant(CifarDenseNet, dict(depth=depth, growth=growth))
    for depth, growth in ((100, 12), (190, 40), (250, 24))
}
