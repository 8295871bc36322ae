"""ImageNet ResNets (He et al. 2015), layout and names of torchvision 0.28: Bottleneck strides on its 3x3.

Wide ResNets (Zagoruyko and Komodakis 2016) have bottlenecks that are twice as wide in the middle, ResNeXts (Xie et al.
2017) grouped 3x3 convolutions there. SE-ResNets (Hu et al. 2017) weigh the channels of every bottleneck before its sum:
`se_resnet50` as in moskomule/senet.pytorch@8cb2669, `seresnet50` as in timm 1.0.31, and `legacy_seresnet50`, the
network that timm has from the authors' Caffe: it strides on the first 1x1 and its max-pool has no padding.

With `maps`, the last block's last conv gives that many channels, with a bias and torch's default initialisation, and
its BatchNorm goes (thesis, section 3.5):

    basic blocks (18, 34): conv2; the block's ReLU stays, so the maps are >= 0; the shortcut is zero channels, half on
        each side, above 512 maps, and a learned 1x1 conv without bias or norm below 512
    bottlenecks (all others): conv3; no weighing, no ReLU; the shortcut is zero-padded or centre-cropped in its channels
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, SqueezeExcite, check_size, conv, fit_channels, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks, within


class BasicBlock(nn.Module):
    """conv3-bn-relu-conv3-bn plus shortcut, ReLU."""

    features: int
    stride: int
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        y = conv(self.features, 3, stride=self.stride, padding=1, name="conv1")(x)
        y = jax.nn.relu(BatchNorm(name="bn1")(y, train))
        if self.maps is not None:
            fan_in = 9 * self.features
            y = conv(self.maps, 3, fan_in=fan_in, padding=1, bias=True, init=torch_default, name="conv2")(y)
            narrow = self.maps < x.shape[-1]
            return jax.nn.relu(
                y + (conv(self.maps, 1, name="downsample_0")(x) if narrow else fit_channels(x, self.maps))
            )
        y = BatchNorm(name="bn2")(conv(self.features, 3, padding=1, name="conv2")(y), train)
        return jax.nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train))


class Bottleneck(nn.Module):
    """conv1-bn-relu-conv3-bn-relu-conv1-bn plus shortcut, ReLU; the output is four times as wide as `features`."""

    features: int
    stride: int
    maps: int | None = None
    groups: int = 1
    """Groups of the 3x3 convolution."""
    group_width: int = 64
    """Channels of each of them in the first stage; in later ones as many times that as `features` is 64."""
    squeeze: str | None = None
    """Name of the SqueezeExcite after the last BatchNorm."""
    squeeze_linear: bool = False
    """Its convolutions have no bias, and are linear layers in the reference."""
    caffe: bool = False
    """Stride on the first 1x1 convolution, not on the 3x3."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; with `maps` it is the rebuilt one."""
        middle = self.features * self.group_width // 64 * self.groups
        first, second = (self.stride, 1) if self.caffe else (1, self.stride)
        y = jax.nn.relu(BatchNorm(name="bn1")(conv(middle, 1, stride=first, name="conv1")(x), train))
        y = conv(middle, 3, stride=second, padding=1, groups=self.groups, name="conv2")(y)
        y = jax.nn.relu(BatchNorm(name="bn2")(y, train))
        if self.maps is not None:
            fan_in = middle
            y = conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name="conv3")(y)
            return y + fit_channels(x, self.maps)
        y = BatchNorm(name="bn3")(conv(4 * self.features, 1, name="conv3")(y), train)
        if self.squeeze:
            names = ("fc_0", "fc_2") if self.squeeze_linear else ("fc1", "fc2")
            gates = SqueezeExcite(y.shape[-1] // 16, bias=not self.squeeze_linear, names=names, name=self.squeeze)
            y = gates(y)
        return jax.nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train))


def _shortcut(x: Float[Array, "n h w c"], features: int, stride: int, train: bool) -> Float[Array, "n i j k"]:
    if stride == 1 and x.shape[-1] == features:
        return x
    x = conv(features, 1, stride=stride, name="downsample_0")(x)
    return BatchNorm(name="downsample_1")(x, train)


def _stem(_: nn.Module, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
    x = conv(64, 7, stride=2, padding=3, name="conv1")(images)
    return jax.nn.relu(BatchNorm(name="bn1")(x, train))


class ResNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int = 1
    """Groups of the bottlenecks' 3x3 convolutions, and their width in the first stage."""
    group_width: int = 64
    squeeze: str | None = None
    """As in `Bottleneck`."""
    squeeze_linear: bool = False
    caffe: bool = False
    """Strides, the first pool and names are those of the network from Caffe."""

    options = ("maps", "remat")
    image_size = 224

    @property
    def stem(self) -> str:
        """Path of the first conv."""
        return "layer0/conv1" if self.caffe else "conv1"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return ("last_linear",) if self.caffe else ("fc",)

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Paths of the gates' convs where they are linear in the reference; the block that `maps` rebuilds has none."""
        paths = [
            f"layer{number}_{index}/{self.squeeze}/fc_{place}"
            for number, count in enumerate(self.blocks, 1)
            for index in range(count)
            for place in (0, 2)
        ]
        return tuple(paths[: -2 if self.maps else None]) if self.squeeze_linear else ()

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
        check_size(self.kind, images, 3 if self.caffe else 1)
        x = (within("layer0", _stem) if self.caffe else _stem)(self, images, train)
        x = max_pool(x, 3, stride=2, ceil=True) if self.caffe else max_pool(x, 3, stride=2, padding=1)
        return apply_stages(self, map(self._stage, (1, 2, 3, 4)), x, train)

    def _stage(self, number: int) -> Stage:
        kind, later = functools.partial(BasicBlock), self.blocks[number - 1] - 1
        if self.bottleneck:
            shared = ("groups", "group_width", "squeeze", "squeeze_linear", "caffe")
            kind = functools.partial(Bottleneck, **{field: getattr(self, field) for field in shared})
        strides = [1 if number == 1 else 2] + [1] * later
        maps = [None] * later + [self.maps if number == 4 else None]
        row = [
            functools.partial(kind, 32 * 2**number, stride, own, name=f"layer{number}_{index}")
            for index, (stride, own) in enumerate(zip(strides, maps, strict=True))
        ]
        return blocks(*row)


VARIANTS = {
    kind: Variant(ResNet, dict(kind=kind, blocks=blocks, bottleneck=bottleneck, **inner))
    for kind, blocks, bottleneck, inner in (
        ("resnet18", (2, 2, 2, 2), False, {}),
        ("resnet34", (3, 4, 6, 3), False, {}),
        ("resnet50", (3, 4, 6, 3), True, {}),
        ("resnet101", (3, 4, 23, 3), True, {}),
        ("resnet152", (3, 8, 36, 3), True, {}),
        ("wide_resnet50_2", (3, 4, 6, 3), True, {"group_width": 128}),
        ("wide_resnet101_2", (3, 4, 23, 3), True, {"group_width": 128}),
        ("resnext50_32x4d", (3, 4, 6, 3), True, {"groups": 32, "group_width": 4}),
        ("resnext101_32x8d", (3, 4, 23, 3), True, {"groups": 32, "group_width": 8}),
        ("se_resnet50", (3, 4, 6, 3), True, {"squeeze": "se", "squeeze_linear": True}),
        ("seresnet50", (3, 4, 6, 3), True, {"squeeze": "se"}),
        ("legacy_seresnet50", (3, 4, 6, 3), True, {"squeeze": "se_module", "caffe": True}),
    )
}
