"""Wide ResNets for small images (Zagoruyko and Komodakis 2016): three stages of pre-activated blocks, 16-32-64 times k.

Names as in xternalz/WideResNet-pytorch@1171f93. Where a block widens, its shortcut is a 1x1 conv of what conv1 takes,
after BatchNorm and ReLU, and of the bare input elsewhere. `create_model`'s dropout stands between the convs of a block,
as in the paper (0 in the reference, 0.3 in the paper's best rows), and before the head where `maps` is given.

With `maps`, the last block's conv2 gives that many channels, with a bias and torch's default initialisation, and the
sum is the end: the shortcut is zero-padded or centre-cropped in its channels, and there is no last BatchNorm and ReLU.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, fit_channels, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks, within


class WideBlock(nn.Module):
    """bn-relu-conv3-bn-relu-conv3 plus shortcut: x [n h w c] -> [n h/stride w/stride k]."""

    features: int
    stride: int
    dropout: float
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        normal = jax.nn.relu(BatchNorm(name="bn1")(x, train))
        y = conv(self.features, 3, stride=self.stride, padding=1, name="conv1")(normal)
        y = jax.nn.relu(BatchNorm(name="bn2")(y, train))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        if self.maps is not None:
            fan_in = 9 * self.features
            y = conv(self.maps, 3, fan_in=fan_in, padding=1, bias=True, init=torch_default, name="conv2")(y)
            return y + fit_channels(x, self.maps)
        y = conv(self.features, 3, padding=1, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, stride=self.stride, name="convShortcut")(normal)
        return x + y


class CifarWideResNet(Backbone):
    """WRN-depth-widen, depth = 6n + 4: images [n h w c] -> maps [n h/4 w/4 k], any channels and size."""

    depth: int
    widen: int
    """Times that the stages are as wide as 16, 32 and 64 channels."""
    dropout: float = 0.0

    options = ("maps", "dropout", "remat")
    stem = "conv1"
    image_size = 32

    @property
    def blocks(self) -> int:
        """Blocks in each stage."""
        return (self.depth - 4) // 6

    @property
    def last_conv(self) -> str:
        """Path of the last conv."""
        return f"block3/layer_{self.blocks - 1}/conv2"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 64 * self.widen

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size(f"wrn{self.depth}_{self.widen}", images, 1)
        x = conv(16, 3, padding=1, name="conv1")(images)
        x = apply_stages(self, map(self._stage, (1, 2, 3)), x, train)
        return x if self.maps is not None else jax.nn.relu(BatchNorm(name="bn1")(x, train))

    def _stage(self, number: int) -> Stage:
        width, last = 8 * 2**number * self.widen, self.blocks - 1
        row = [
            functools.partial(
                WideBlock,
                width,
                2 if number > 1 and index == 0 else 1,
                self.dropout,
                self.maps if (number, index) == (3, last) else None,
                name=f"layer_{index}",
            )
            for index in range(self.blocks)
        ]
        return within(f"block{number}", blocks(*row))


VARIANTS = {
    f"wrn{depth}_{widen}": Variant(CifarWideResNet, dict(depth=depth, widen=widen))
    for depth, widen in ((40, 2), (28, 10))
}
