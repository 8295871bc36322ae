"""BiT's pre-activation ResNets (Kolesnikov et al. 2019, arXiv 1912.11370), layout and names of big_transfer's PyTorch.

GroupNorm in place of BatchNorm, and standardised convolutions (Qiao et al. 2019). The first max pool sees zeros around
the image, not minus infinity. The published .npz files have TensorFlow's names (`weight_files.read_bit`); their last
layer has 1000 or 21843 classes.

With `maps`, the last unit's conv3 gives that many channels, with a bias and torch's default initialisation, and is not
standardised; its shortcut is zero-padded or centre-cropped in its channels; the last GroupNorm and ReLU go.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import GroupNorm, StandardisedConv, check_size, conv, fit_channels, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks, within

standardised = functools.partial(StandardisedConv, eps=1e-10)


class Unit(nn.Module):
    """gn-relu-conv1-gn-relu-conv3-gn-relu-conv1 plus shortcut; the output is four times as wide as `features`.

    A shortcut of another shape is a 1x1 convolution of what the first ReLU gives.
    """

    features: int
    stride: int
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the unit; with `maps` it is the rebuilt one."""
        y, width = jax.nn.relu(GroupNorm(name="gn1")(x)), 4 * self.features
        if self.stride > 1 or x.shape[-1] != width:
            x = standardised(width, 1, stride=self.stride, name="downsample")(y)
        y = jax.nn.relu(GroupNorm(name="gn2")(standardised(self.features, 1, name="conv1")(y)))
        y = standardised(self.features, 3, stride=self.stride, padding=1, name="conv2")(y)
        y = jax.nn.relu(GroupNorm(name="gn3")(y))
        if self.maps is not None:
            y = conv(self.maps, 1, fan_in=self.features, bias=True, init=torch_default, name="conv3")(y)
            return y + fit_channels(x, self.maps)
        return x + standardised(width, 1, name="conv3")(y)


class Root(nn.Module):
    """7x7 convolution and max pool, a quarter of the size; a module for its name, as `Top`."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Apply both."""
        x = standardised(self.features, 7, stride=2, padding=3, name="conv")(x)
        return max_pool(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 3, stride=2)


class Top(nn.Module):
    """GroupNorm and ReLU before the global pool."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Apply both."""
        return jax.nn.relu(GroupNorm(name="gn")(x))


class BiT(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    blocks: tuple[int, int, int, int]
    width: int
    """Factor of a ResNet's channels."""

    options = ("maps", "remat")
    head_names = ("head.conv",)
    head_conv = True
    stem = "root/conv"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"body/block4/unit{self.blocks[-1]:02d}/conv3"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 2048 * self.width

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        x = Root(64 * self.width, name="root")(images)
        stages = [self._stage(number) for number in (1, 2, 3, 4)]
        x = within("body", lambda module, x, train: apply_stages(module, stages, x, train))(self, x, train)
        return x if self.maps is not None else Top(name="head")(x)

    def _stage(self, number: int) -> Stage:
        later = self.blocks[number - 1] - 1
        strides, maps = [1 if number == 1 else 2] + [1] * later, [None] * later + [self.maps if number == 4 else None]
        row = [
            functools.partial(Unit, self.width * 32 * 2**number, stride, own, name=f"unit{index:02d}")
            for index, (stride, own) in enumerate(zip(strides, maps, strict=True), 1)
        ]
        return within(f"block{number}", blocks(*row))


VARIANTS = {
    f"bit_r{depth}x{width}": Variant(BiT, dict(kind=f"bit_r{depth}x{width}", blocks=blocks, width=width))
    for depth, width, blocks in (
        (50, 1, (3, 4, 6, 3)),
        (50, 3, (3, 4, 6, 3)),
        (101, 1, (3, 4, 23, 3)),
        (101, 3, (3, 4, 23, 3)),
        (152, 2, (3, 8, 36, 3)),
        (152, 4, (3, 8, 36, 3)),
    )
}
