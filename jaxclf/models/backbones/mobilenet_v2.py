"""MobileNetV2 (Sandler et al. 2018), layout and names of torchvision 0.28.

With `maps`, features.18 (1x1, 320 in) gives that many channels, with a bias and torch's default initialisation, and
is the end: no BatchNorm, no ReLU6 (thesis, section 3.5).
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks

# (expansion, channels, blocks, stride of the first): table 2 of the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut where the shape allows it."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block."""
        y, place = x, 0
        width = self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = conv(width, 1, name="conv_0_0")(y)
            y = jax.nn.relu6(BatchNorm(name="conv_0_1")(y, train))
            place = 1
        y = conv(width, 3, stride=self.stride, padding=1, groups=width, name=f"conv_{place}_0")(y)
        y = jax.nn.relu6(BatchNorm(name=f"conv_{place}_1")(y, train))
        y = conv(self.features, 1, name=f"conv_{place + 1}")(y)
        y = BatchNorm(name=f"conv_{place + 2}")(y, train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    options = ("maps", "remat")
    head_names = ("classifier.1",)
    stem = "features_0_0"
    last_conv = "features_18_0"
    head_dropout = 0.2
    image_size = 224

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1280

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("mobilenet_v2", images, 1)
        x = conv(32, 3, stride=2, padding=1, name="features_0_0")(images)
        x = jax.nn.relu6(BatchNorm(name="features_0_1")(x, train))
        x = apply_stages(self, map(self._stage, range(len(STAGES))), x, train)
        if self.maps is not None:
            return conv(self.maps, 1, fan_in=320, bias=True, init=torch_default, name="features_18_0")(x)
        x = conv(1280, 1, name="features_18_0")(x)
        return jax.nn.relu6(BatchNorm(name="features_18_1")(x, train))

    def _stage(self, number: int) -> Stage:
        expansion, features, count, first = STAGES[number]
        place = 1 + sum(before for _, _, before, _ in STAGES[:number])
        row = [
            functools.partial(
                InvertedResidual, expansion, features, 1 if index else first, name=f"features_{place + index}"
            )
            for index in range(count)
        ]
        return blocks(*row)


VARIANTS = {"mobilenet_v2": Variant(MobileNetV2)}
