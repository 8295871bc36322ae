"""HarDNet (Chao et al. 2019, arXiv 1909.00948), layout and names of PingoLH/Pytorch-HarDNet: ReLU6 throughout.

In the separable networks ("ds") a 1x1 convolution and a depthwise one stand for each 3x3 convolution, and depthwise
convolutions for the pools; no activation follows a depthwise convolution.

With `maps`, the last 1x1 convolution gives that many channels, with a bias and torch's default initialisation, and is
the end: no BatchNorm, no ReLU6.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks


class ConvLayer(nn.Module):
    """Dropout, convolution, BatchNorm, ReLU6: x [n h w c] -> [n i j k]."""

    features: int
    size: int
    stride: int = 1
    dropout: float = 0.0
    bare: bool = False
    """End with the convolution, which has a bias then."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the layer."""
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        layer = functools.partial(conv, self.features, self.size, padding=self.size // 2, name="conv")
        if self.bare:
            return layer(fan_in=self.size**2 * x.shape[-1], bias=True, init=torch_default)(x)
        return jax.nn.relu6(BatchNorm(name="norm")(layer(stride=self.stride)(x), train))


class Depthwise(nn.Module):
    """3x3 depthwise convolution and BatchNorm: x [n h w c] -> [n i j c]."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j c"]:
        """Apply the layer."""
        width = x.shape[-1]
        x = conv(width, 3, stride=self.stride, padding=1, groups=width, name="dwconv")(x)
        return BatchNorm(name="norm")(x, train)


class Separable(nn.Module):
    """1x1 layer, then a depthwise one: x [n h w c] -> [n h w k]."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply both layers."""
        return Depthwise(name="layer2")(ConvLayer(self.features, 1, name="layer1")(x, train), train)


class HarDBlock(nn.Module):
    """Layers of which number i reads the outputs of i - 2^j for every 2^j that divides i; 0 is the input.

    It has growth * factor^j channels for the largest such j, made even. The block gives the outputs of odd layers and
    of the last.
    """

    growth: int
    factor: float
    layers: int
    separable: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply the block."""
        parts = [x]
        for number in range(1, self.layers + 1):
            powers = [power for power in range(number.bit_length()) if number % 2**power == 0]
            features = int(self.growth * self.factor ** powers[-1] + 1) // 2 * 2
            name = f"layers_{number - 1}"
            layer = Separable(features, name=name) if self.separable else ConvLayer(features, 3, name=name)
            parts.append(layer(jnp.concatenate([parts[number - 2**power] for power in powers], axis=-1), train))
        return jnp.concatenate([*parts[1:-1:2], parts[-1]], axis=-1)


class HarDNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]; without depthwise convolutions from 29x29."""

    kind: str
    separable: bool
    first: tuple[int, int]
    """Channels of the first two convolutions."""
    factor: float
    growth: tuple[int, ...]
    """Of each block, and its layers."""
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    """Channels of the 1x1 convolution after each block, and whether the size is halved after it."""
    halved: tuple[bool, ...]
    dropout: tuple[float, float]
    """Rate before the last 1x1 convolution, and before the classifier."""

    options = ("maps", "remat")
    stem = "base_0/conv"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last 1x1 convolution."""
        return f"base_{self._end}/conv"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the classifier: the reference counts pool, flattening and dropout before it."""
        return (f"base.{self._end + 1}.3",)

    @property
    def head_dropout(self) -> float:
        """Dropout rate before the head."""
        return self.dropout[1]

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.widths[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" where the first rate is not 0."""
        check_size(self.kind, images, 1 if self.separable else 29)
        x = ConvLayer(self.first[0], 3, stride=2, name="base_0")(images, train)
        x = ConvLayer(self.first[1], 1 if self.separable else 3, name="base_1")(x, train)
        x = Depthwise(stride=2, name="base_2")(x, train) if self.separable else max_pool(x, 3, stride=2, padding=1)
        return apply_stages(self, map(self._stage, range(len(self.layers))), x, train)

    def _place(self, number: int) -> int:
        """Return the number of a block in the reference, whose list has all layers of a network in it."""
        return 3 + 2 * number + sum(self.halved[:number])

    @property
    def _end(self) -> int:
        """Return the number of the last 1x1 convolution; a dropout before it counts, too."""
        return self._place(len(self.layers) - 1) + 1 + (self.dropout[0] > 0)

    def _stage(self, number: int) -> Stage:
        place, last = self._place(number), number == len(self.layers) - 1
        block = functools.partial(HarDBlock, self.growth[number], self.factor, self.layers[number], self.separable)
        row = [functools.partial(block, name=f"base_{place}")]
        if last:
            layer = functools.partial(ConvLayer, self.features, 1, dropout=self.dropout[0], bare=self.maps is not None)
            return blocks(*row, functools.partial(layer, name=f"base_{self._end}"))
        row += [functools.partial(ConvLayer, self.widths[number], 1, name=f"base_{place + 1}")]
        if self.halved[number] and self.separable:
            row += [functools.partial(Depthwise, 2, name=f"base_{place + 2}")]
        applied = blocks(*row)

        def stage(module: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
            return max_pool(applied(module, x, train), 2)

        return stage if self.halved[number] and not self.separable else applied


SIZES = {
    39: dict(
        first=(24, 48),
        factor=1.6,
        growth=(16, 20, 64, 160),
        layers=(4, 16, 8, 4),
        widths=(96, 320, 640, 1024),
        halved=(True, True, True, False),
    ),
    68: dict(
        first=(32, 64),
        factor=1.7,
        growth=(14, 16, 20, 40, 160),
        layers=(8, 16, 16, 16, 4),
        widths=(128, 256, 320, 640, 1024),
        halved=(True, False, True, True, False),
    ),
    85: dict(
        first=(48, 96),
        factor=1.7,
        growth=(24, 24, 28, 36, 48, 256),
        layers=(8, 16, 16, 16, 16, 4),
        widths=(192, 256, 320, 480, 720, 1280),
        halved=(True, False, True, False, True, False),
    ),
}
"""What the reference has for each number of layers."""
VARIANTS = {
    kind: Variant(HarDNet, dict(kind=kind, separable=separable, dropout=dropout, **SIZES[size]))
    for kind, size, separable, dropout in (
        ("hardnet39ds", 39, True, (0.0, 0.05)),
        ("hardnet68", 68, False, (0.0, 0.1)),
        ("hardnet85", 85, False, (0.1, 0.2)),
        ("hardnet68ds", 68, True, (0.0, 0.05)),
    )
}
