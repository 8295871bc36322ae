"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842), three references, each with its two auxiliary classifiers.

    googlenet        torchvision 0.28: BatchNorm (eps 1e-3) in place of biases and local response norms; its "5x5" convs
                     are 3x3, and the last max-pool is 2x2
    googlenet_5x5    the same with the paper's 5x5 convs
    googlenet_paper  table 1 in the layout of Caffe's bvlc_googlenet: biases, local response norms, 3x3 max-pools

Max-pools round sizes up (ceil_mode), so any size from 15 will do (googlenet_paper: from 31).

The last feature map is the concatenation of four convs beside each other. With `maps`, each of the four gives that many
channels, with a bias and torch's default initialisation, and their sum is the end: no BatchNorm, no ReLU. `last_conv`
is the 3x3 one, the widest.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import AuxiliaryHead, Backbone, Variant
from jaxclf.models.layers import (
    BatchNorm,
    adaptive_avg_pool,
    check_size,
    conv,
    he_uniform,
    local_response_norm,
    max_pool,
    torch_default,
)
from jaxclf.models.stages import Stage, apply_stages, blocks

# Channels of each module: 1x1; 1x1 and 3x3; 1x1 and 5x5; 1x1 after the pool: table 1 of the paper
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
STAGES = ("3a 3b", "4a", "4b 4c 4d", "4e", "5a 5b")
"""Modules of each stage."""
AUXILIARY = {"4a": AuxiliaryHead("aux1", 1024, 0.3), "4b 4c 4d": AuxiliaryHead("aux2", 1024, 0.3)}
"""Auxiliary classifiers by the stage whose map they take."""
CONV = {True: "conv", False: "0"}
"""Name of the conv in a unit with BatchNorm and in one without."""


class Unit(nn.Module):
    """Convolution, BatchNorm or in its place a bias, ReLU; `last` is a convolution with a bias and nothing else."""

    features: int
    kernel: int
    norm: bool
    stride: int = 1
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the unit."""
        layer = conv(
            self.features,
            self.kernel,
            fan_in=self.kernel * self.kernel * x.shape[-1],
            stride=self.stride,
            padding=self.kernel // 2,
            bias=self.last or not self.norm,
            init=torch_default if self.last else he_uniform,
            name=CONV[self.norm],
        )
        x = layer(x)
        if self.last:
            return x
        return jax.nn.relu(BatchNorm(eps=1e-3, name="bn")(x, train) if self.norm else x)


class Inception(nn.Module):
    """1x1; 1x1, 3x3; 1x1, 5x5; max-pool, 1x1: beside each other, concatenated, or with `maps` summed."""

    widths: tuple[int, int, int, int, int, int]
    kernel: int
    """Side of the "5x5" convs."""
    norm: bool
    branch: str
    """What the names of the four branches begin with."""
    maps: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply the module."""
        one, before3, three, before5, five, pooled = self.widths

        def unit(features: int, kernel: int, name: str, last: bool = False) -> Unit:
            return Unit(features, kernel, self.norm, last=last, name=f"{self.branch}{name}")

        def end(usual: int, kernel: int, name: str) -> Unit:
            return unit(self.maps or usual, kernel, name, self.maps is not None)

        branches = [
            end(one, 1, "1")(x, train),
            end(three, 3, "2_1")(unit(before3, 1, "2_0")(x, train), train),
            end(five, self.kernel, "3_1")(unit(before5, 1, "3_0")(x, train), train),
            end(pooled, 1, "4_1")(max_pool(x, 3, stride=1, padding=1), train),
        ]
        return functools.reduce(jnp.add, branches) if self.maps is not None else jnp.concatenate(branches, axis=-1)


class Auxiliary(nn.Module):
    """Classifier of an inner map: mean to 4x4, 1x1 conv, linear, ReLU, dropout, last layer; sows its `logits` [n k]."""

    fc2: nn.Module
    """The last layer."""
    norm: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> None:
        """Classify."""
        x = Unit(128, 1, self.norm, name="conv")(adaptive_avg_pool(x, 4, 4), train)
        x = jax.nn.relu(conv(1024, 4, fan_in=16 * 128, bias=True, init=torch_default, name="fc1")(x))
        x = nn.Dropout(0.7, deterministic=not train)(x[:, 0, 0])
        self.sow("intermediates", "logits", self.fc2(x))


class GoogLeNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    norm: bool = True
    """BatchNorm after every conv; else biases, and local response norms in the stem."""
    kernel: int = 3
    """Side of the "5x5" convs."""
    last_pool: int = 2
    """Window of the last max-pool."""
    smallest: int = 15
    """Side of the smallest images that leave a position after the last pool."""
    names: tuple[str, ...] = ("conv1", "conv2", "conv3", "inception", "branch")
    """Names of the stem's convs; what those of modules and of their branches begin with."""

    options = ("maps", "remat")
    auxiliary_heads = tuple(AUXILIARY.values())
    image_size = 224

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return f"{self.names[0]}/{CONV[self.norm]}"

    @property
    def last_conv(self) -> str:
        """Name of the last 3x3 conv."""
        return f"{self.names[3]}5b/{self.names[4]}2_1/{CONV[self.norm]}"

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Paths of the auxiliary classifiers' hidden layers, where there are such."""
        return tuple(f"{one.name}/fc1" for one in self.auxiliary_trained)

    @property
    def head_dropout(self) -> float:
        """Rate before the last layer in the reference."""
        return 0.2 if self.norm else 0.4

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1024

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, self.smallest)
        response_norm = (lambda x: x) if self.norm else functools.partial(local_response_norm, size=5)
        x = Unit(64, 7, self.norm, stride=2, name=self.names[0])(images, train)
        x = response_norm(max_pool(x, 3, stride=2, ceil=True))
        x = Unit(64, 1, self.norm, name=self.names[1])(x, train)
        x = response_norm(Unit(192, 3, self.norm, name=self.names[2])(x, train))
        beside = {places: layer for places, layer in zip(AUXILIARY, self.last_layers(train), strict=False)}
        for places in STAGES:
            x = apply_stages(self, [self._stage(places)], x, train)
            if places in beside:
                Auxiliary(beside[places], self.norm, name=AUXILIARY[places].name)(x, train)
        return x

    def _stage(self, places: str) -> Stage:
        """Return the modules of some places, one after the other, behind a max-pool where the first begins a size."""
        row = [
            functools.partial(
                Inception,
                MODULES[place],
                self.kernel,
                self.norm,
                self.names[4],
                self.maps if place == "5b" else None,
                name=f"{self.names[3]}{place}",
            )
            for place in places.split()
        ]
        after, window = blocks(*row), self.last_pool if places[0] == "5" else 3

        def stage(module: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
            x = max_pool(x, window, stride=2, ceil=True) if places[1] == "a" else x
            return after(module, x, train)

        return stage


PAPER = {
    "norm": False,
    "kernel": 5,
    "last_pool": 3,
    "smallest": 31,
    "names": ("stem_0", "stem_3", "stem_4", "i", "b"),
}
VARIANTS = {
    kind: Variant(GoogLeNet, dict(kind=kind, **fields))
    for kind, fields in (("googlenet", {}), ("googlenet_5x5", {"kernel": 5}), ("googlenet_paper", PAPER))
}
