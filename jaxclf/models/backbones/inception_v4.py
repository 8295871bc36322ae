"""Inception v4 (Szegedy et al. 2016, arXiv 1602.07261, figures 3 to 9), of two sources.

timm 1.0.31 and zhulf0804/Inceptionv4_and_Inception-ResNetv2.PyTorch@04ca904 differ in the names of layers alone. Their
average pools leave the padding out, as TensorFlow's do (zhulf0804's counted it in earlier commits).

`maps` rebuilds the ends of the last block's branches as in inception_v3.py.
"""

import dataclasses
import itertools
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.backbones.inception_v3 import average, branch, chain, fork, halve, line, mixed, unit
from jaxclf.models.layers import check_size
from jaxclf.models.stages import Stage, apply_stages, blocks

Source = Literal["timm", "zhulf"]


@dataclasses.dataclass(frozen=True)
class Names:
    """What a source calls its layers."""

    entry: tuple[str, str, str]
    """The first three convs."""
    joins: tuple[str, str, str, str]
    """What stands beside a maximum, two branches, and what stands beside the next maximum."""
    branch: str
    """Name of a branch, less its number."""
    pooled: str
    """Branch of a 35x35 block that begins with an average."""
    pair: tuple[str, str, str]
    """The shorter branch of an 8x8 block that forks: the conv below the fork, 1x3, 3x1."""
    deep: tuple[str, str, str, str, str]
    """The longer one: three convs, 1x3, 3x1."""
    first: int
    """Number of the first 35x35 block in `features`."""
    head: str


NAMES: dict[Source, Names] = {
    "timm": Names(
        entry=("features_0", "features_1", "features_2"),
        joins=("conv", "branch0", "branch1", "conv"),
        branch="branch",
        pooled="branch3",
        pair=("branch1__0", "branch1_1a", "branch1_1b"),
        deep=("branch2__0", "branch2__1", "branch2__2", "branch2_3a", "branch2_3b"),
        first=6,
        head="last_linear",
    ),
    "zhulf": Names(
        entry=("conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3"),
        joins=("mixed_3a_branch__1", "mixed_4a_branch__0", "mixed_4a_branch__1", "mixed_5a_branch__0"),
        branch="branch__",
        pooled="brance__3",
        pair=("branch__1", "branch__1__1", "branch__1__2"),
        deep=("branch__2_0", "branch__2_1", "branch__2_2", "branch__2__1", "branch__2__2"),
        first=1,
        head="linear",
    ),
}


class InceptionV4(Backbone):
    """images [n h w c] -> maps [n i j k], 8x8 at 299x299 and from 75x75 on."""

    source: Source

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
        return f"{'features_0/' if self.source == 'zhulf' else ''}{self.names.entry[0]}/conv"

    @property
    def last_conv(self) -> str:
        """Path of the last conv of the deepest branch."""
        return f"features_{self.names.first + 15}/{self.names.deep[-1]}/conv"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1536

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("inception_v4", images, 75)
        number = itertools.count(self.names.first)
        rows = (
            (self._35(),) * 4,
            (self._35_to_17(), *(self._17(),) * 7),
            (self._17_to_8(), self._8(), self._8(), self._8(self.maps)),
        )
        stages = (blocks(*(mixed(f"features_{next(number)}", inside) for inside in row)) for row in rows)
        return apply_stages(self, (*self._stem(), *stages), images, train)

    def _branch(self, number: int, *rows: tuple[Any, ...]) -> Stage:
        return branch(f"{self.names.branch}{number}", *rows)

    def _pooled(self, name: str, features: int, **fields: Any) -> Stage:
        """Return the branch of an average and a 1x1 conv; the source counts the average as layer 0."""
        return chain(average(False), blocks(unit(f"{name}_1", features, **fields)))

    def _stem(self) -> tuple[Stage, ...]:
        """Return figure 3: the source has its four parts beside one another, or all in one block."""
        reduce, left, right, last = self.names.joins
        first, second, third = self.names.entry
        entry = blocks(unit(first, 32, 3, 2), unit(second, 32, 3, padded=False), unit(third, 64, 3))
        end = (96, 3, 1, False)
        joins = (
            fork(halve, blocks(unit(reduce, 96, 3, 2))),
            fork(line(left, (64,), end), line(right, (64,), (64, (1, 7)), (64, (7, 1)), end)),
            fork(blocks(unit(last, 192, 3, 2)), halve),
        )
        if self.source == "zhulf":
            return (blocks(mixed("features_0", chain(entry, *joins))),)
        return (entry, blocks(*(mixed(f"features_{number}", join) for number, join in enumerate(joins, 3))))

    def _35(self) -> Stage:
        return fork(
            self._branch(0, (96,)),
            self._branch(1, (64,), (96, 3)),
            self._branch(2, (64,), (96, 3), (96, 3)),
            self._pooled(self.names.pooled, 96),
        )

    def _35_to_17(self) -> Stage:
        return fork(self._branch(0, (384, 3, 2)), self._branch(1, (192,), (224, 3), (256, 3, 2)), halve)

    def _17(self) -> Stage:
        deep = (192,), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))
        return fork(
            self._branch(0, (384,)),
            self._branch(1, (192,), (224, (1, 7)), (256, (7, 1))),
            self._branch(2, *deep),
            self._pooled(f"{self.names.branch}3", 128),
        )

    def _17_to_8(self) -> Stage:
        return fork(
            self._branch(0, (192,), (192, 3, 2)),
            self._branch(1, (256,), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
            halve,
        )

    def _8(self, maps: int | None = None) -> Stage:
        """Return figure 6; with `maps`, the rebuilt one."""
        rebuilt, features = maps is not None, maps or 256

        def pair(row: str, column: str) -> Stage:
            kernels = ((row, (1, 3)), (column, (3, 1)))
            return fork(*(blocks(unit(name, features, kernel, bare=rebuilt)) for name, kernel in kernels), add=rebuilt)

        below, *ends = self.names.pair
        one, two, three, *deep_ends = self.names.deep
        return fork(
            blocks(unit(f"{self.names.branch}0", features, bare=rebuilt)),
            chain(blocks(unit(below, 384)), pair(*ends)),
            chain(blocks(unit(one, 384), unit(two, 448, (3, 1)), unit(three, 512, (1, 3))), pair(*deep_ends)),
            self._pooled(f"{self.names.branch}3", features, bare=rebuilt),
            add=rebuilt,
        )


VARIANTS = {
    "inception_v4": Variant(InceptionV4, {"source": "timm"}),
    "inception_v4_zhulf": Variant(InceptionV4, {"source": "zhulf"}),
}
