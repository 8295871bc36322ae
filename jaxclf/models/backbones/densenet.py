"""ImageNet DenseNets (Huang et al. 2017), layout and names of torchvision 0.28. No `maps`: see densenet_cifar.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.config import Remat
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, Parts, avg_pool, block, check_size, conv, max_pool, stage


class DenseLayer(nn.Module):
    """bn-relu-conv1 to 4 x growth, bn-relu-conv3 to growth, behind the channels so far."""

    growth: int
    apart: bool
    """Hand on the channels so far and the new ones as they are; else as one array."""

    @nn.compact
    def __call__(self, parts: Parts, train: bool) -> Parts:
        """Add `growth` channels."""
        x = jnp.concatenate(parts, axis=-1)
        y = conv(4 * self.growth, 1, name="conv1")(jax.nn.relu(BatchNorm(name="norm1")(x, train)))
        y = conv(self.growth, 3, padding=1, name="conv2")(jax.nn.relu(BatchNorm(name="norm2")(y, train)))
        return (*parts, y) if self.apart else (jnp.concatenate([x, y], axis=-1),)


class DenseBlock(nn.Module):
    """A row of dense layers."""

    layers: int
    growth: int
    remat: Remat

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Add `layers` x `growth` channels."""
        parts = (x,)
        for index in range(self.layers):
            layer = block(DenseLayer, self.remat)(self.growth, self.remat == "block", name=f"denselayer{index + 1}")
            parts = layer(parts, train)
        return jnp.concatenate(parts, axis=-1)


class Transition(nn.Module):
    """bn-relu-conv1 to half the channels, then a 2x2 average pool."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Halve channels and size."""
        x = jax.nn.relu(BatchNorm(name="norm")(x, train))
        return avg_pool(conv(x.shape[-1] // 2, 1, name="conv")(x), 2)


class Features(nn.Module):
    """All of the network below the classifier; a module of its own because its name is part of every key."""

    width: int
    growth: int
    blocks: tuple[int, int, int, int]
    remat: Remat

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Compute the last feature map, after its BatchNorm and ReLU."""
        x = conv(self.width, 7, stride=2, padding=3, name="conv0")(images)
        x = max_pool(jax.nn.relu(BatchNorm(name="norm0")(x, train)), 3, stride=2, padding=1)
        for number in range(1, len(self.blocks) + 1):
            x = stage(functools.partial(Features._stage, number=number), self.remat)(self, x, train)
        return jax.nn.relu(BatchNorm(name="norm5")(x, train))

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, number: int) -> Float[Array, "n i j k"]:
        x = DenseBlock(self.blocks[number - 1], self.growth, self.remat, name=f"denseblock{number}")(x, train)
        if number == len(self.blocks):
            return x
        return block(Transition, self.remat)(name=f"transition{number}")(x, train)


class DenseNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k], from 29x29."""

    depth: int
    width: int
    growth: int
    blocks: tuple[int, int, int, int]

    options = ("remat",)
    head_names = ("classifier",)
    stem = "features/conv0"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"features/denseblock4/denselayer{self.blocks[-1]}/conv2"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        channels = self.width
        for index, layers in enumerate(self.blocks):
            channels = (channels // 2 if index else channels) + layers * self.growth
        return channels

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(f"densenet{self.depth}", images, 29)
        return Features(self.width, self.growth, self.blocks, self.remat, name="features")(images, train)


VARIANTS = {
    f"densenet{depth}": Variant(DenseNet, dict(depth=depth, width=width, growth=growth, blocks=blocks))
    for depth, width, growth, blocks in (
        (121, 64, 32, (6, 12, 24, 16)),
        (161, 96, 48, (6, 12, 36, 24)),
        (169, 64, 32, (6, 12, 32, 32)),
        (201, 64, 32, (6, 12, 48, 32)),
    )
}
