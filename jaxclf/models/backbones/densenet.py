"""ImageNet DenseNets (Huang et al. 2017), layout and names of torchvision 0.28. No `maps`: see densenet_cifar.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.config import Remat
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, avg_pool, check_size, conv, max_pool
from jaxclf.models.stages import Block, Stage, apply_stages, blocks

Parts = tuple[Float[Array, "n h w _"], ...]
"""Channels of a dense block: one array, or under `remat` one for its input and one for each layer.

A block that is computed again stores what it is given. As one array, that would be all channels before it, anew for
every layer; apart, each is stored once (Pleiss et al. 2017, arXiv 1707.06990).
"""


Names = tuple[str, str] | str
"""Names of BatchNorm and conv in the reference; or that of a module that holds the two, "batch_norm" and "conv"."""


class BnReluConv(nn.Module):
    """BatchNorm, ReLU, convolution, in a module of their own."""

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply the three."""
        return bn_relu_conv(x, train, self.features, self.kernel, ("batch_norm", "conv"))


def bn_relu_conv(
    x: Float[Array, "n h w c"], train: bool, features: int, kernel: int, names: Names
) -> Float[Array, "n h w k"]:
    """Apply BatchNorm, ReLU and a convolution, made in the module that calls."""
    if isinstance(names, str):
        return BnReluConv(features, kernel, name=names)(x, train)
    norm, name = names
    x = jax.nn.relu(BatchNorm(name=norm)(x, train))
    return conv(features, kernel, padding=kernel // 2, name=name)(x)


class DenseLayer(nn.Module):
    """bn-relu-conv1 to 4 x growth, bn-relu-conv3 to growth, dropout, behind the channels so far."""

    growth: int
    apart: bool
    """Hand on the channels so far and the new ones as they are; else as one array."""
    names: tuple[Names, Names] = (("norm1", "conv1"), ("norm2", "conv2"))
    dropout: float = 0.0

    @nn.compact
    def __call__(self, parts: Parts, train: bool) -> Parts:
        """Add `growth` channels."""
        x = jnp.concatenate(parts, axis=-1)
        y = bn_relu_conv(x, train, 4 * self.growth, 1, self.names[0])
        y = bn_relu_conv(y, train, self.growth, 3, self.names[1])
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return (*parts, y) if self.apart else (jnp.concatenate([x, y], axis=-1),)


class DenseBlock(nn.Module):
    """A row of dense layers."""

    layer: Block
    names: tuple[str, ...]
    """Name of each layer."""
    remat: Remat

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Add the channels of every layer."""
        row = [functools.partial(self.layer, name=name) for name in self.names]
        return jnp.concatenate(blocks(*row)(self, (x,), train), axis=-1)


class Transition(nn.Module):
    """bn-relu-conv1 to half the channels, then a 2x2 average pool."""

    names: Names = ("norm", "conv")

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Halve channels and size."""
        return avg_pool(bn_relu_conv(x, train, x.shape[-1] // 2, 1, self.names), 2)


def dense_stage(block: Block, *transition: Block) -> Stage:
    """Return the stage of a dense block, which computes its layers again by itself, and the transition after it."""
    after = blocks(*transition)

    def stage(module: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        return after(module, block()(x, train), train)

    return stage


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
        x = apply_stages(self, map(self._stage, (1, 2, 3, 4)), x, train)
        return jax.nn.relu(BatchNorm(name="norm5")(x, train))

    def _stage(self, number: int) -> Stage:
        layer = functools.partial(DenseLayer, self.growth, self.remat == "block")
        names = tuple(f"denselayer{index + 1}" for index in range(self.blocks[number - 1]))
        block = functools.partial(DenseBlock, layer, names, self.remat, name=f"denseblock{number}")
        transition = [functools.partial(Transition, name=f"transition{number}")] if number < 4 else []
        return dense_stage(block, *transition)


class DenseNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k], from 29x29."""

    depth: int
    width: int
    growth: int
    blocks: tuple[int, int, int, int]

    options = ("remat",)
    head_names = ("classifier",)
    # norm.1 and conv.2 of torchvision's published files, which it renames as it reads them (models/densenet.py, 0.28)
    older_keys = ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)
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
