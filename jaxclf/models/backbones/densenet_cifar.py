"""DenseNet-BC for small images (Huang et al. 2017): three dense blocks of bottleneck layers, compression 1/2.

Names and layout as in bearpaw/pytorch-classification@24f1c45. The lecture's network, hoya012/pytorch-densenet@bd16c0e,
has a bias in the first conv, dropout in every layer, and no BatchNorm and ReLU at the end (768,502 parameters of
DenseNet-BC-100-12 at 10 classes instead of 769,162).

There is no `maps`: the last feature map is a
concatenation, and a 1x1 conv after it would be the learned classifier under another name (it commutes with the
average pool). The identity head takes the first channels instead, as the thesis does.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.backbones.densenet import DenseBlock, DenseLayer, Transition, dense_stage
from jaxclf.models.layers import BatchNorm, check_size, conv
from jaxclf.models.stages import Stage, apply_stages, blocks


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
        x = apply_stages(self, map(self._stage, (1, 2, 3)), x, train)
        return jax.nn.relu(BatchNorm(name="bn")(x, train))

    def _stage(self, number: int) -> Stage:
        layer = functools.partial(DenseLayer, self.growth, self.remat == "block", (("bn1", "conv1"), ("bn2", "conv2")))
        row = [functools.partial(layer, name=f"dense{number}_{index}") for index in range(self.blocks)]
        after = [functools.partial(Transition, ("bn1", "conv1"), name=f"trans{number}")] if number < 3 else []
        dense, transition = blocks(*row), blocks(*after)

        def stage(module: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
            return transition(module, jnp.concatenate(dense(module, (x,), train), axis=-1), train)

        return stage


class HoyaDenseNet(CifarDenseNet):
    """The lecture's DenseNet-BC(depth, growth): images [n h w c] -> maps [n h/4 w/4 k], some of them negative."""

    dropout: float = 0.2
    """Rate after each layer."""

    options = ("remat", "dropout")
    head_names = ("fc_layer",)
    stem = "dense_init"

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"dense_block__3/bottleneck_layer__{self.blocks - 1}/conv_3x3/conv"

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size(f"densenet_bc_{self.depth}_{self.growth}_hoya", images, 4)
        fan_in = 9 * images.shape[-1]
        x = conv(2 * self.growth, 3, fan_in=fan_in, padding=1, bias=True, name="dense_init")(images)
        return apply_stages(self, map(self._stage, (1, 2, 3)), x, train)

    def _stage(self, number: int) -> Stage:
        layer = functools.partial(
            DenseLayer, self.growth, self.remat == "block", ("conv_1x1", "conv_3x3"), self.dropout
        )
        names = tuple(f"bottleneck_layer__{index}" for index in range(self.blocks))
        block = functools.partial(DenseBlock, layer, names, self.remat, name=f"dense_block__{number}")
        transition = functools.partial(Transition, "conv_1x1", name=f"transition_layer__{number}")
        return dense_stage(block, *([transition] if number < 3 else []))


VARIANTS = {
    f"densenet_bc_{depth}_{growth}{suffix}": Variant(module, dict(depth=depth, growth=growth))
    for module, suffix in ((CifarDenseNet, ""), (HoyaDenseNet, "_hoya"))
    for depth, growth in ((100, 12), (190, 40), (250, 24))
}
