"""Inception-ResNet v1 and v2 (Szegedy et al. 2016, arXiv 1602.07261, figures 10 to 19), whose blocks have shortcuts.

v2 has two sources, timm 1.0.31 and zhulf0804/Inceptionv4_and_Inception-ResNetv2.PyTorch@04ca904, that differ in the
names of layers alone; both have the stem of TensorFlow's slim, not the paper's figure 3. v1 is facenet's,
timesler/facenet-pytorch@787da06, for 160x160 faces: it ends in 512 features.

v1 pools its last map, and ends in dropout, a linear layer without bias and a BatchNorm over the batch. So does its
backbone, whose answer has one position: the classifier's pool has nothing left to do, and there are no class maps. As
a 1x1 conv before that pool, the linear layer would answer the same in evaluation, but cost as much at each position,
and in training its BatchNorm would see positions instead of images.

With `maps`, v2's conv2d_7b (1x1, 2080 in) gives that many channels, with a bias and torch's default initialisation,
and is the end: no BatchNorm, no ReLU. v1 ends in the last block, as ResNets of bottlenecks do: its conv2d is rebuilt,
the shortcut is zero-padded or centre-cropped in its channels, and pool, dropout, linear layer and norm go.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.config import Remat
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.backbones.inception_v3 import average, branch, chain, fork, halve, line, mixed, unit
from jaxclf.models.layers import BatchNorm, check_size, conv, fit_channels, he_uniform, torch_default
from jaxclf.models.stages import Block, Stage, apply_stages, blocks

Rows = tuple[tuple[Any, ...], ...]
"""Fields of the `ConvNorm`s of a branch."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What a source calls its layers."""

    stem: tuple[str, str, str, str, str]
    branch: str
    """Name of a branch, less its number."""
    residual: str
    """Name of the 1x1 conv of a block with a shortcut."""
    end: str
    """Name of the conv behind all blocks."""
    head: str


NAMES = {
    "timm": Names(
        ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a"), "branch", "conv2d", "conv2d_7b", "classif"
    ),
    "zhulf": Names(
        ("features_0", "features_1", "features_2", "features_4", "features_5"), "branch__", "conv", "conv", "linear"
    ),
}


class Residual(nn.Module):
    """ReLU of x plus `scale` times a 1x1 conv, with a bias, of what is `inside`: x [n h w c] -> [n h w c]."""

    inside: Stage
    scale: float
    conv_name: str
    relu: bool = True
    maps: int | None = None
    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply the block; with `maps` it is the rebuilt one, k = `maps`."""
        y = self.inside(self, x, train)
        features, init = (x.shape[-1], he_uniform) if self.maps is None else (self.maps, torch_default)
        y = conv(features, 1, fan_in=y.shape[-1], bias=True, init=init, name=self.conv_name)(y)
        y = fit_channels(x, features) + self.scale * y
        return jax.nn.relu(y) if self.relu else y


@dataclasses.dataclass(frozen=True)
class Layout:
    """Widths of one of the two networks: fields of the `ConvNorm`s of each branch, less those that both share."""

    counts: tuple[int, int, int]
    """Blocks at 35x35, 17x17 and 8x8; one more at 8x8 has no ReLU."""
    at_35: tuple[Rows, ...]
    to_17: Rows
    """The second of three branches; the first is one conv of 384, the third a maximum."""
    at_17: tuple[Rows, ...]
    to_8: tuple[Rows, ...]
    """All branches but the last, a maximum."""
    at_8: tuple[Rows, ...]


V1 = Layout(
    counts=(5, 10, 5),
    at_35=(((32,),), ((32,), (32, 3)), ((32,), (32, 3), (32, 3))),
    to_17=((192,), (192, 3), (256, 3, 2)),
    at_17=(((128,),), ((128,), (128, (1, 7)), (128, (7, 1)))),
    to_8=(((256,), (384, 3, 2)), ((256,), (256, 3, 2)), ((256,), (256, 3), (256, 3, 2))),
    at_8=(((192,),), ((192,), (192, (1, 3)), (192, (3, 1)))),
)
V2 = Layout(
    counts=(10, 20, 9),
    at_35=(((32,),), ((32,), (32, 3)), ((32,), (48, 3), (64, 3))),
    to_17=((256,), (256, 3), (384, 3, 2)),
    at_17=(((192,),), ((128,), (160, (1, 7)), (192, (7, 1)))),
    to_8=(((256,), (384, 3, 2)), ((256,), (288, 3, 2)), ((256,), (288, 3), (320, 3, 2))),
    at_8=(((192,),), ((192,), (224, (1, 3)), (256, (3, 1)))),
)


def _branches(prefix: str, *rows: Rows) -> list[Stage]:
    return [branch(f"{prefix}{number}", *one) for number, one in enumerate(rows)]


def _trunk(layout: Layout, names: Names, called: Iterator[str], maps: int | None = None) -> tuple[Stage, ...]:
    """Return the blocks behind the stem, which are `called` so in order."""

    def residual(rows: tuple[Rows, ...], scale: float, **fields: Any) -> Block:
        inside = fork(*_branches(names.branch, *rows))
        return functools.partial(Residual, inside, scale, names.residual, name=next(called), **fields)

    one, two, three = layout.counts
    to_17 = fork(*_branches(names.branch, ((384, 3, 2),), layout.to_17), halve)
    to_8 = fork(*_branches(names.branch, *layout.to_8), halve)
    return (
        blocks(*(residual(layout.at_35, 0.17) for _ in range(one))),
        blocks(mixed(next(called), to_17), *(residual(layout.at_17, 0.1) for _ in range(two))),
        blocks(
            mixed(next(called), to_8),
            *(residual(layout.at_8, 0.2) for _ in range(three)),
            residual(layout.at_8, 1.0, relu=False, maps=maps),
        ),
    )


def _repeats(counts: tuple[int, int, int], *names: str) -> Iterator[str]:
    """Yield names of blocks as timm and facenet have them; `names` are those of the three repeated ones."""
    for name, count, after in zip(names, counts, ("mixed_6a", "mixed_7a", "block8"), strict=True):
        yield from (f"{name}_{number}" for number in range(count))
        yield after


def _stem(names: Names) -> tuple[Stage, Stage]:
    one, two, three, four, five = names.stem
    return (
        blocks(unit(one, 32, 3, 2), unit(two, 32, 3, padded=False), unit(three, 64, 3)),
        chain(halve, blocks(unit(four, 80), unit(five, 192, 3, padded=False))),
    )


class InceptionResNetV1(Backbone):
    """images [n h w c], from 75x75 on -> features [n 1 1 512]; with `maps`, maps [n i j k], 3x3 at 160x160."""

    dropout: float = 0.6

    options = ("maps", "dropout", "remat")
    head_names = ("logits",)
    linear_layers = ("last_linear",)
    stem = "conv2d_1a/conv"
    last_conv = "block8/conv2d"
    pools_inside = True
    image_size = 160

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 512

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the features; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size("inception_resnet_v1", images, 75)
        # facenet's names are timm's, but for the repeated blocks'.
        names, called = NAMES["timm"], _repeats(V1.counts, "repeat__1", "repeat__2", "repeat__3")
        stem = (*_stem(names), blocks(unit("conv2d_4b", 256, 3, 2)))
        x = apply_stages(self, (*stem, *_trunk(V1, names, called, self.maps)), images, train)
        if self.maps is not None:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(self.pool_inside(x))
        x = conv(512, 1, init=torch_default, name="last_linear")(x)
        return BatchNorm(eps=1e-3, name="last_bn")(x, train)


class InceptionResNetV2(Backbone):
    """images [n h w c] -> maps [n i j k], 8x8 at 299x299 and from 75x75 on."""

    source: Literal["timm", "zhulf"]

    options = ("maps", "remat")
    image_size = 299

    @property
    def names(self) -> Names:
        """What the source calls its layers."""
        return NAMES[self.source]

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return (self.names.head,)

    @property
    def stem(self) -> str:
        """Path of the first conv."""
        return f"{'features_0/' if self.source == 'zhulf' else ''}{self.names.stem[0]}/conv"

    @property
    def last_conv(self) -> str:
        """Path of the conv behind all blocks."""
        return f"{self.names.end}/conv"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1536

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("inception_resnet_v2", images, 75)
        end = blocks(unit(self.names.end, self.features, bare=self.maps is not None))
        return apply_stages(self, (*self._stages(), end), images, train)

    def _stages(self) -> tuple[Stage, ...]:
        """Return stem and blocks; zhulf's stem is one block with the fork behind it, and its blocks are counted."""
        names = self.names
        rows = ((96,),), ((48,), (64, 5)), ((64,), (96, 3), (96, 3))
        pooled = chain(average(False), line(f"{names.branch}3", (64,), first=1))
        four = fork(*_branches(names.branch, *rows), pooled)
        if self.source == "timm":
            called = _repeats(V2.counts, "repeat", "repeat__1", "repeat__2")
            return (*_stem(names), chain(halve, blocks(mixed("mixed_5b", four))), *_trunk(V2, names, called))
        called = (f"features_{number}" for number in itertools.count(1))
        return (blocks(mixed("features_0", chain(*_stem(names), halve, four))), *_trunk(V2, names, called))


VARIANTS = {
    "inception_resnet_v1": Variant(InceptionResNetV1),
    "inception_resnet_v2": Variant(InceptionResNetV2, {"source": "timm"}),
    "inception_resnet_v2_zhulf": Variant(InceptionResNetV2, {"source": "zhulf"}),
}
