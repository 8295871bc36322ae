"""ImageNet ResNets (He et al. 2015), layout and names of torchvision 0.28: Bottleneck strides on its 3x3.

With `maps`, the last block's last conv gives that many channels, with a bias and torch's default initialisation, and
its BatchNorm goes (thesis, section 3.5):

    basic blocks (18, 34): conv2; the block's ReLU stays, so the maps are >= 0; the shortcut is zero channels, half on
        each side, above 512 maps, and a learned 1x1 conv without bias or norm below 512
    bottlenecks (50, 101, 152): conv3; no ReLU; the shortcut is zero-padded or centre-cropped in its channels
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, block, check_size, conv, fit_channels, max_pool, stage, torch_default


class BasicBlock(nn.Module):
    """conv3-bn-relu-conv3-bn plus shortcut, ReLU."""

    features: int
    stride: int
    rebuilt: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; a rebuilt one keeps its middle width."""
        middle = x.shape[-1] if self.rebuilt else self.features
        y = conv(middle, 3, stride=self.stride, padding=1, name="conv1")(x)
        y = jax.nn.relu(BatchNorm(name="bn1")(y, train))
        if self.rebuilt:
            fan_in = 9 * middle
            y = conv(self.features, 3, fan_in=fan_in, padding=1, bias=True, init=torch_default, name="conv2")(y)
            return jax.nn.relu(y + self._rebuilt_shortcut(x))
        y = BatchNorm(name="bn2")(conv(self.features, 3, padding=1, name="conv2")(y), train)
        return jax.nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train))

    def _rebuilt_shortcut(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        if self.features >= x.shape[-1]:
            return fit_channels(x, self.features)
        return conv(self.features, 1, name="downsample_0")(x)


class Bottleneck(nn.Module):
    """conv1-bn-relu-conv3-bn-relu-conv1-bn plus shortcut, ReLU; the output is four times as wide as the middle."""

    features: int
    stride: int
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        y = jax.nn.relu(BatchNorm(name="bn1")(conv(self.features, 1, name="conv1")(x), train))
        y = conv(self.features, 3, stride=self.stride, padding=1, name="conv2")(y)
        y = jax.nn.relu(BatchNorm(name="bn2")(y, train))
        if self.maps is not None:
            fan_in = self.features
            y = conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name="conv3")(y)
            return y + fit_channels(x, self.maps)
        y = BatchNorm(name="bn3")(conv(4 * self.features, 1, name="conv3")(y), train)
        return jax.nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train))


def _shortcut(x: Float[Array, "n h w c"], features: int, stride: int, train: bool) -> Float[Array, "n i j k"]:
    if stride == 1 and x.shape[-1] == features:
        return x
    x = conv(features, 1, stride=stride, name="downsample_0")(x)
    return BatchNorm(name="downsample_1")(x, train)


class ResNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    depth: int
    blocks: tuple[int, int, int, int]
    bottleneck: bool

    options = ("maps", "remat")
    stem = "conv1"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"layer4_{self.blocks[-1] - 1}/conv{3 if self.bottleneck else 2}"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or (2048 if self.bottleneck else 512)

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(f"resnet{self.depth}", images, 1)
        x = conv(64, 7, stride=2, padding=3, name="conv1")(images)
        x = max_pool(jax.nn.relu(BatchNorm(name="bn1")(x, train)), 3, stride=2, padding=1)
        for number in range(1, len(self.blocks) + 1):
            x = stage(functools.partial(ResNet._stage, number=number), self.remat)(self, x, train)
        return x

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, number: int) -> Float[Array, "n i j k"]:
        count = self.blocks[number - 1]
        for index in range(count):
            stride = 2 if number > 1 and index == 0 else 1
            last = (number, index) == (4, count - 1) and self.maps is not None
            x = self._block(32 * 2**number, stride, last, f"layer{number}_{index}")(x, train)
        return x

    def _block(self, features: int, stride: int, rebuilt: bool, name: str) -> nn.Module:
        if self.bottleneck:
            return block(Bottleneck, self.remat)(features, stride, self.maps if rebuilt else None, name=name)
        return block(BasicBlock, self.remat)(self.features if rebuilt else features, stride, rebuilt, name=name)


VARIANTS = {
    f"resnet{depth}": Variant(ResNet, dict(depth=depth, blocks=blocks, bottleneck=bottleneck))
    for depth, blocks, bottleneck in (
        (18, (2, 2, 2, 2), False),
        (34, (3, 4, 6, 3), False),
        (50, (3, 4, 6, 3), True),
        (101, (3, 4, 23, 3), True),
        (152, (3, 8, 36, 3), True),
    )
}
