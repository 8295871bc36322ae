"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244), large and small; layout and names of torchvision 0.28.

The network pools before its last hidden layer, so that this costs one position: the backbone ends in a map of one
position, the linear layer `classifier.0` as a convolution and its hard-swish. With `maps`, the last conv of
`features` (1x1) gives that many channels, with a bias and torch's default initialisation, and is the end: no
BatchNorm, no hard-swish, no pool, no `classifier.0`, as in VGG.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, torch_default
from jaxclf.models.mbconv import MBConv, Squeeze, conv_norm, divisible, torchvision_names
from jaxclf.models.stages import Block, apply_stages, blocks

norm = functools.partial(BatchNorm, momentum=0.01, eps=1e-3)
Row = tuple[int, int, int, bool, bool, int]
"""Kernel, width, channels, squeeze-and-excitation, hard-swish (else ReLU), stride: tables 1 and 2 of the paper."""
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class MobileNetV3(Backbone):
    """images [n h w c] -> maps [n 1 1 k], or [n h/32 w/32 k] with `maps`; a stage ends before a stride."""

    kind: str
    rows: tuple[Row, ...]
    hidden: int
    """Channels of `classifier.0`."""

    options = ("maps", "remat")
    head_names = ("classifier.3",)
    linear_layers = ("classifier_0",)
    stem = "features_0_0"
    head_dropout = 0.2
    pools_inside = True
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last conv of `features`: `classifier.0` is a linear layer in the reference."""
        return f"features_{len(self.rows) + 1}_0"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.hidden

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        x = conv_norm(images, train, 16, 3, ("features_0_0", "features_0_1"), norm=norm, stride=2)
        x = jax.nn.hard_swish(x)
        stages: list[list[Block]] = [[]]
        for index, row in enumerate(self.rows):
            if row[-1] > 1:
                stages.append([])
            stages[-1].append(_block(row, f"features_{index + 1}"))
        x = apply_stages(self, (blocks(*stage) for stage in stages), x, train)
        if self.maps is not None:
            fan_in = x.shape[-1]
            return conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name=self.last_conv)(x)
        wide = 6 * x.shape[-1]
        names = (self.last_conv, f"features_{len(self.rows) + 1}_1")
        x = self.pool_inside(jax.nn.hard_swish(conv_norm(x, train, wide, 1, names, norm=norm)))
        x = conv(self.hidden, 1, fan_in=wide, bias=True, init=torch_default, name="classifier_0")(x)
        return jax.nn.hard_swish(x)


def _block(row: Row, name: str) -> Block:
    kernel, width, features, squeezed, swish, stride = row
    squeeze = Squeeze(divisible(width // 4), jax.nn.relu, jax.nn.hard_sigmoid) if squeezed else None
    activation = jax.nn.hard_swish if swish else jax.nn.relu
    block = functools.partial(MBConv, width, features, stride, kernel, torchvision_names, norm=norm)
    return functools.partial(block, activation=activation, squeeze=squeeze, name=name)


VARIANTS = {
    kind: Variant(MobileNetV3, dict(kind=kind, rows=rows, hidden=hidden))
    for kind, rows, hidden in (("mobilenet_v3_small", SMALL, 1024), ("mobilenet_v3_large", LARGE, 1280))
}
