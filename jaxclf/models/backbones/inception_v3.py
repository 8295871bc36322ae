"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567), layout and names of torchvision 0.28.

As there, BatchNorm has eps 1e-3 and the average pools count their padding, which TensorFlow's do not. The pieces of all
later Inceptions are here: a branch is a stage (stages.py), and so is a fork of branches.

With `maps`, the six convs that end the last block's branches give that many channels each, with a bias and torch's
default initialisation; they have no BatchNorm and no ReLU, and are added instead of concatenated, for the channels
beside one another would be no maps of the same classes. `last_conv` is one of the two with most layers below them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import AuxiliaryHead, Backbone, Variant
from jaxclf.models.layers import BatchNorm, avg_pool, check_size, conv, max_pool, torch_default
from jaxclf.models.stages import Block, Inside, Stage, apply_stages, blocks

Kernel = int | tuple[int, int]


class ConvNorm(nn.Module):
    """Conv without bias, BatchNorm, ReLU: x [n h w c] -> [n i j k]; at stride 1 padded to the same size."""

    features: int
    kernel: Kernel = 1
    stride: int = 1
    padded: bool = True
    """Pad where the stride is 1; nothing is padded at stride 2."""
    bare: bool = False
    """A conv with a bias alone, from torch's default initialisation: what `maps` ends in."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the layers."""
        height, width = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        padded = self.padded and self.stride == 1
        padding = [(side // 2, side // 2) for side in (height, width)] if padded else 0
        layer = functools.partial(conv, self.features, (height, width), stride=self.stride, padding=padding)
        if self.bare:
            return layer(fan_in=height * width * x.shape[-1], bias=True, init=torch_default, name="conv")(x)
        return jax.nn.relu(BatchNorm(eps=1e-3, name="bn")(layer(name="conv")(x), train))


def unit(name: str, *fields: Any, **named: Any) -> Block:
    """Return the `ConvNorm` of a name and fields."""
    return functools.partial(ConvNorm, *fields, **named, name=name)


def mixed(name: str, inside: Stage) -> Block:
    """Return a block of a name."""
    return functools.partial(Inside, inside, name=name)


def line(name: str, *rows: tuple[Any, ...], first: int = 0) -> Stage:
    """Return a row of `ConvNorm`s, each of the fields given: name_0, name_1 and so on, or from another number."""
    return blocks(*(unit(f"{name}_{number}", *row) for number, row in enumerate(rows, first)))


def branch(name: str, row: tuple[Any, ...], *more: tuple[Any, ...]) -> Stage:
    """Return `line`, but one layer alone without a number."""
    return line(name, row, *more) if more else blocks(unit(name, *row))


def chain(*stages: Stage) -> Stage:
    """Return the stage that applies stages one after the other."""

    def stage(module: Any, x: Any, train: bool) -> Any:
        return apply_stages(module, stages, x, train, remat="none")

    return stage


def fork(*branches: Stage, add: bool = False) -> Stage:
    """Return the stage that applies each branch to the same x and concatenates their channels, or adds them."""

    def stage(module: Any, x: Any, train: bool) -> Any:
        ends = [one(module, x, train) for one in branches]
        return functools.reduce(jnp.add, ends) if add else jnp.concatenate(ends, axis=-1)

    return stage


def halve(module: Any, x: Any, train: bool) -> Any:
    """Return the 3x3 maximum at stride 2, not padded: the stage between sizes."""
    return max_pool(x, 3, stride=2)


def average(count_padding: bool) -> Stage:
    """Return the 3x3 average at stride 1, padded to the same size."""

    def stage(module: Any, x: Any, train: bool) -> Any:
        return avg_pool(x, 3, stride=1, padding=1, count_padding=count_padding)

    return stage


def _35(pool: int) -> Stage:
    """Return figure 5 of the paper, whose shorter branch keeps a 5x5; `pool` channels behind the average."""
    return fork(
        branch("branch1x1", (64,)),
        line("branch5x5_", (48,), (64, 5), first=1),
        line("branch3x3dbl_", (64,), (96, 3), (96, 3), first=1),
        chain(average(True), branch("branch_pool", (pool,))),
    )


def _35_to_17() -> Stage:
    return fork(
        branch("branch3x3", (384, 3, 2)),
        line("branch3x3dbl_", (64,), (96, 3), (96, 3, 2), first=1),
        halve,
    )


def _17(width: int) -> Stage:
    """Return figure 6: 7x7 as 1x7 and 7x1, `width` channels between them."""
    row, column = (width, (1, 7)), (width, (7, 1))
    return fork(
        branch("branch1x1", (192,)),
        line("branch7x7_", (width,), row, (192, (7, 1)), first=1),
        line("branch7x7dbl_", (width,), column, row, column, (192, (1, 7)), first=1),
        chain(average(True), branch("branch_pool", (192,))),
    )


def _17_to_8() -> Stage:
    return fork(
        line("branch3x3_", (192,), (320, 3, 2), first=1),
        line("branch7x7x3_", (192,), (192, (1, 7)), (192, (7, 1)), (192, 3, 2), first=1),
        halve,
    )


def _8(maps: int | None = None) -> Stage:
    """Return figure 7: 3x3 as 1x3 beside 3x1."""
    rebuilt = maps is not None

    def end(name: str, features: int, kernel: Kernel = 1) -> Stage:
        return blocks(unit(name, maps or features, kernel, bare=rebuilt))

    def pair(name: str) -> Stage:
        return fork(end(f"{name}a", 384, (1, 3)), end(f"{name}b", 384, (3, 1)), add=rebuilt)

    return fork(
        end("branch1x1", 320),
        chain(line("branch3x3_", (384,), first=1), pair("branch3x3_2")),
        chain(line("branch3x3dbl_", (448,), (384, 3), first=1), pair("branch3x3dbl_3")),
        chain(average(True), end("branch_pool", 192)),
        add=rebuilt,
    )


class Auxiliary(nn.Module):
    """Classifier of the 17x17 map: 5x5 average, 1x1 and 5x5 conv, mean, last layer; sows its `logits` [n k]."""

    fc: nn.Module
    """The last layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> None:
        """Classify."""
        x = ConvNorm(128, name="conv0")(avg_pool(x, 5, stride=3), train)
        x = ConvNorm(768, 5, padded=False, name="conv1")(x, train)
        self.sow("intermediates", "logits", self.fc(x.mean((1, 2))))


class InceptionV3(Backbone):
    """images [n h w c] -> maps [n i j k], 8x8 at 299x299 and from 75x75 on; with the auxiliary classifier, from 299."""

    kind = "inception_v3"
    options = ("maps", "remat")
    stem = "Conv2d_1a_3x3/conv"
    last_conv = "Mixed_7c/branch3x3dbl_3b/conv"
    head_dropout = 0.5
    auxiliary_heads = (AuxiliaryHead("AuxLogits", 768, 0.4),)
    image_size = 299

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 2048

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        layers = self.last_layers(train)
        check_size(
            "inception_v3 with its auxiliary classifier" if layers else "inception_v3", images, 299 if layers else 75
        )
        stages = (
            blocks(
                unit("Conv2d_1a_3x3", 32, 3, 2),
                unit("Conv2d_2a_3x3", 32, 3, padded=False),
                unit("Conv2d_2b_3x3", 64, 3),
            ),
            chain(halve, blocks(unit("Conv2d_3b_1x1", 80), unit("Conv2d_4a_3x3", 192, 3, padded=False))),
            chain(
                halve, blocks(*(mixed(f"Mixed_5{at}", _35(pool)) for at, pool in zip("bcd", (32, 64, 64), strict=True)))
            ),
            blocks(
                mixed("Mixed_6a", _35_to_17()),
                *(mixed(f"Mixed_6{at}", _17(width)) for at, width in zip("bcde", (128, 160, 160, 192), strict=True)),
            ),
            blocks(mixed("Mixed_7a", _17_to_8()), mixed("Mixed_7b", _8()), mixed("Mixed_7c", _8(self.maps))),
        )
        x = apply_stages(self, stages[:-1], images, train)
        for layer in layers:
            Auxiliary(layer, name="AuxLogits")(x, train)
        return apply_stages(self, stages[-1:], x, train)


VARIANTS = {"inception_v3": Variant(InceptionV3)}
