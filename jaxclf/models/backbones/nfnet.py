"""NFNet-F0 (Brock et al. 2021, arXiv 2102.06171), layout and names of timm 1.0.31: no norm, scaled convolutions.

Every convolution but those of squeeze-and-excitation is standardised and scaled (`StandardisedConv`). A block reads its
input divided by the standard deviation that it is expected to have, and adds a fifth of its branch to the shortcut.

DeepMind's networks (dm_nfnet_f0) multiply each GELU by its gamma, pad as TensorFlow does, and have a learned factor
of each branch, which starts at zero. timm's own (nfnet_f0) has gamma in its kernels, pads as PyTorch does, and starts
the gain of each branch's last convolution at zero. Biases of squeeze-and-excitation start as torch's do, not at zero.

`stochastic_depth` is the share of images that skip the last block's branch in training; earlier ones are less likely
to, down to none at the first. It is 0 unless given, as in timm.

With `maps`, final_conv gives that many channels, with a bias and torch's default initialisation, and is the end: not
standardised, no GELU.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import SqueezeExcite, StandardisedConv, avg_pool, check_size, conv, tf_padding, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks

GAMMA = 1.7015043497085571
"""1 / standard deviation of gelu(x), x standard normal (deepmind-research, nfnets/base.py)."""
ALPHA = 0.2
"""Share of the branch."""
GROUP_WIDTH = 128
"""Channels of each group of the 3x3 convolutions."""


def scaled(
    x: Float[Array, "n h w c"],
    features: int,
    size: int,
    *,
    deepmind: bool,
    stride: int = 1,
    groups: int = 1,
    gain: float = 1.0,
    name: str,
) -> Float[Array, "n i j k"]:
    """Apply a scaled convolution of one of the two kinds; `gain` is what its gain starts from."""
    padding = tf_padding(x.shape[1:3], size, stride) if deepmind else size // 2
    scale = 1.0 if deepmind else GAMMA
    layer = StandardisedConv(features, size, stride, padding, groups, eps=1e-5, scale=scale, gain=gain, name=name)
    return layer(x)


def activate(x: Float[Array, "n h w c"], *, deepmind: bool) -> Float[Array, "n h w c"]:
    """Apply GELU, times gamma in DeepMind's networks."""
    x = jax.nn.gelu(x, approximate=False)
    return x * GAMMA if deepmind else x


class Stem(nn.Module):
    """Four 3x3 convolutions to 128 channels and a quarter of the size; a module for its name."""

    deepmind: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Apply the convolutions, and activations between them."""
        for index, (features, stride) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2))):
            x = activate(x, deepmind=self.deepmind) if index else x
            x = scaled(x, features, 3, stride=stride, deepmind=self.deepmind, name=f"conv{index + 1}")
        return x


class Downsample(nn.Module):
    """Average pool and 1x1 convolution."""

    features: int
    stride: int
    deepmind: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Apply both."""
        x = avg_pool(x, 2, ceil=True, count_padding=False) if self.stride == 2 else x
        return scaled(x, self.features, 1, deepmind=self.deepmind, name="conv")


class Block(nn.Module):
    """1x1 to half the width, two 3x3, 1x1, squeeze-and-excitation, each after GELU; a fifth of it plus shortcut.

    A shortcut of another shape starts from what the first GELU gives.
    """

    features: int
    stride: int
    beta: float
    """1 / standard deviation of the input."""
    drop: float
    """Share of images whose branch is left out in training."""
    deepmind: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; `train` needs an rng named "dropout" unless `drop` is 0."""
        act, layer = (functools.partial(one, deepmind=self.deepmind) for one in (activate, scaled))
        y, middle = act(x) * self.beta, self.features // 2
        if self.stride > 1 or x.shape[-1] != self.features:
            x = Downsample(self.features, self.stride, self.deepmind, name="downsample")(y)
        if middle % GROUP_WIDTH:
            wide = f"{self.features} channels in its groups of {GROUP_WIDTH}"
            raise UsageError(f"block {self.name} cannot have {wide}; multiples of {2 * GROUP_WIDTH} can be parted so")
        y, groups = layer(y, middle, 1, name="conv1"), middle // GROUP_WIDTH
        y = layer(act(y), middle, 3, stride=self.stride, groups=groups, name="conv2")
        y = layer(act(y), middle, 3, groups=groups, name="conv2b")
        y = layer(act(y), self.features, 1, gain=1.0 if self.deepmind else 0.0, name="conv3")
        y = 2 * SqueezeExcite(self.features // 2, name="attn_last")(y)
        y = nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
        if self.deepmind:
            y = y * self.param("skipinit_gain", nn.initializers.zeros, ()).astype(y.dtype)
        return y * ALPHA + x


class NFNet(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    deepmind: bool
    blocks: tuple[int, int, int, int] = (1, 2, 6, 3)
    widths: tuple[int, int, int, int] = (256, 512, 1536, 1536)
    stochastic_depth: float = 0.0

    options = ("maps", "remat", "stochastic_depth")
    head_names = ("head.fc",)
    stem = "stem/conv1"
    last_conv = "final_conv"
    image_size = 256

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 2 * self.widths[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" unless stochastic_depth is 0."""
        check_size(self.kind, images, 1)
        x = Stem(self.deepmind, name="stem")(images)
        x = apply_stages(self, map(self._stage, range(4)), x, train)
        if self.maps is not None:
            return conv(self.maps, 1, fan_in=x.shape[-1], bias=True, init=torch_default, name="final_conv")(x)
        x = scaled(x, self.features, 1, deepmind=self.deepmind, name="final_conv")
        return activate(x, deepmind=self.deepmind)

    def _stage(self, number: int) -> Stage:
        before = sum(self.blocks[:number])
        row = []
        for index in range(self.blocks[number]):
            # Each branch adds ALPHA^2 to the variance, which a stage's first block brings back to 1.
            added = index or (self.blocks[number - 1] if number else 0)
            beta = (1 + ALPHA**2 * added) ** -0.5
            stride = 2 if number and not index else 1
            drop = self.stochastic_depth * (before + index) / (sum(self.blocks) - 1)
            block = functools.partial(Block, self.widths[number], stride, beta, drop, self.deepmind)
            row.append(functools.partial(block, name=f"stages_{number}_{index}"))
        return blocks(*row)


VARIANTS = {
    kind: Variant(NFNet, dict(kind=kind, deepmind=deepmind))
    for kind, deepmind in (("nfnet_f0", False), ("dm_nfnet_f0", True))
}
