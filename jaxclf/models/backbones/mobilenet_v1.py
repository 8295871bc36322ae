"""MobileNet (Howard et al. 2017, arXiv 1704.04861), width 1: a 3x3 conv and thirteen depthwise separable ones.

Two references: wjc852456/pytorch-mobilenet-v1 (ReLU), and timm 1.0.31's mobilenetv1_100 (ReLU6, other names).

With `maps`, the last 1x1 conv (1024 in) gives that many channels, with a bias and torch's default initialisation, and
is the end: no BatchNorm, no activation, as in MobileNetV2.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import check_size, conv, torch_default
from jaxclf.models.mbconv import Activation, conv_norm
from jaxclf.models.stages import apply_stages, blocks

# (channels, stride) of the blocks in each stage: table 1 of the paper
STAGES = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)


class Separable(nn.Module):
    """3x3 depthwise and 1x1 convolution, a BatchNorm and an activation after each: x [n h w c] -> [n i j k]."""

    features: int
    stride: int
    activation: Activation
    timm: bool
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        wide = x.shape[-1]
        first, second = (("conv_dw", "bn1"), ("conv_pw", "bn2")) if self.timm else (("0", "1"), ("3", "4"))
        x = self.activation(conv_norm(x, train, wide, 3, first, stride=self.stride, groups=wide))
        if self.maps is not None:
            return conv(self.maps, 1, fan_in=wide, bias=True, init=torch_default, name=second[0])(x)
        return self.activation(conv_norm(x, train, self.features, 1, second))


class MobileNetV1(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    timm: bool = False
    """timm's names and ReLU6."""

    options = ("maps", "remat")
    image_size = 224

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return ("classifier",) if self.timm else ("fc",)

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return "conv_stem" if self.timm else "model_0_0"

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return "blocks_4_1/conv_pw" if self.timm else "model_13/3"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1024

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        activation = jax.nn.relu6 if self.timm else jax.nn.relu
        x = activation(conv_norm(images, train, 32, 3, (self.stem, "bn1" if self.timm else "model_0_1"), stride=2))
        place, stages = 0, []
        for number, stage in enumerate(STAGES):
            row = []
            for index, (features, stride) in enumerate(stage):
                place += 1
                last = number == len(STAGES) - 1 and index == len(stage) - 1
                name = f"blocks_{number}_{index}" if self.timm else f"model_{place}"
                maps = self.maps if last else None
                row.append(functools.partial(Separable, features, stride, activation, self.timm, maps, name=name))
            stages.append(blocks(*row))
        return apply_stages(self, stages, x, train)


VARIANTS = {
    kind: Variant(MobileNetV1, dict(kind=kind, timm=timm))
    for kind, timm in (("mobilenet_v1", False), ("mobilenet_v1_timm", True))
}
