"""CIFAR ResNets: three stages of basic blocks, 16-32-64 channels (He et al. 2015, section 4.2).

Names, shortcut "A" and "B" as in akamaster/pytorch_resnet_cifar@d5489e8; the rebuilt last block ("ClsfBlock") as in
the thesis's appendix A.1. Two relatives with shortcut "B" alone have their own names: bearpaw's, and the tutorial's,
whose shortcuts are 3x3 convs.

With `maps`, the last block's conv2 gives that many channels. It has no bias, its BatchNorm stays, and there is no
ReLU after the sum, so that the maps can be logits. The block's shortcut, 64 -> maps, is chosen by `maps_shortcut`:

    A zero channels, half on each side (centre crop below 64)    B learned conv, 1x1 (tutorial: 3x3) + BN
    C fixed Hadamard times a learned negative scale + BN         D fixed orthoplex + BN
    E fixed signed identity + BN                                 F fixed hypercube, rows in order + BN
    G fixed hypercube, random distinct rows + BN
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.errors import unknown
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, FixedConv, as_input, check_size, conv, fit_channels
from jaxclf.models.matrices import matrix
from jaxclf.models.stages import Stage, apply_stages, blocks

FIXED_SHORTCUTS = {
    "C": "hadamard",
    "D": "orthoplex",
    "E": "signed_identity",
    "F": "hypercube",
    "G": "hypercube_random",
}


class BasicBlock(nn.Module):
    """conv3-bn-relu-conv3-bn plus shortcut, then ReLU unless `rebuilt`."""

    features: int
    stride: int
    shortcut: str
    rebuilt: bool = False
    seed: int = 0
    shortcut_name: str = "shortcut"
    shortcut_kernel: int = 1
    """Side of the kernel of shortcut "B"."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block; the middle width is the output's, or the input's in a rebuilt block."""
        middle = x.shape[-1] if self.rebuilt else self.features
        y = conv(middle, 3, stride=self.stride, padding=1, name="conv1")(x)
        y = jax.nn.relu(BatchNorm(name="bn1")(y, train))
        y = conv(self.features, 3, padding=1, name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train)
        if self.rebuilt:
            return y + self._shortcut(x, train)
        return jax.nn.relu(y + (x if x.shape == y.shape else self._shortcut(x, train)))

    def _shortcut(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        if self.shortcut == "A":
            return fit_channels(x[:, :: self.stride, :: self.stride], self.features)
        name, side = self.shortcut_name, self.shortcut_kernel
        if self.shortcut == "B":
            x = conv(self.features, side, stride=self.stride, padding=side // 2, name=f"{name}_0")(x)
            return BatchNorm(name=f"{name}_1")(x, train)
        x = x[:, :: self.stride, :: self.stride]  # ResNet-8's last block is also the one that downsamples
        x = FixedConv(FIXED_SHORTCUTS[self.shortcut], self.features, self.seed, name=f"{name}_0")(x)
        if self.shortcut != "C":
            return BatchNorm(name=f"{name}_1")(x, train)
        # The reference keeps the scale in the block and counts the multiplication as shortcut[1].
        scale = self.param("scale", nn.initializers.constant(self.features**-0.5), ())
        x, scale = as_input(x, scale)
        return BatchNorm(name=f"{name}_2")(-scale * x, train)


class CifarResNet(Backbone):
    """ResNet-(6n + 2) for small images: images [n h w c] -> maps [n h/4 w/4 k], any channels and size."""

    depth: int
    shortcut: str = "A"
    maps_shortcut: str = "A"
    seed: int = 0
    """Seed of maps_shortcut "G"."""

    options = ("shortcut", "maps", "maps_shortcut", "seed", "remat")
    stem = "conv1"
    stem_norm = "bn1"
    """Name of the BatchNorm after the first convolution."""
    shortcut_name = "shortcut"
    shortcut_kernel = 1
    image_size = 32
    width = 64
    """Channels of the last map without `maps`."""

    def __post_init__(self) -> None:
        if self.shortcut not in ("A", "B"):
            raise unknown("shortcut", self.shortcut, ("A", "B"))
        if self.maps_shortcut not in ("A", "B", *FIXED_SHORTCUTS):
            raise unknown("maps_shortcut", self.maps_shortcut, ("A", "B", *FIXED_SHORTCUTS))
        if self.maps is not None and self.maps_shortcut in FIXED_SHORTCUTS:
            entering = self.width if self.blocks > 1 else self.width // 2
            matrix(FIXED_SHORTCUTS[self.maps_shortcut], self.maps, entering)  # more rows than exist: fail here
        super().__post_init__()

    @property
    def kind(self) -> str:
        """Name of the network."""
        return f"resnet{self.depth}"

    @property
    def blocks(self) -> int:
        """Blocks in each stage."""
        return (self.depth - 2) // 6

    @property
    def head_names(self) -> tuple[str, ...]:
        """The last layer is `linear` in akamaster's networks and `fc` above the thesis's ClsfBlock."""
        return ("fc", "linear") if self.maps else ("linear", "fc")

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return f"layer3_{self.blocks - 1}/conv2"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.width

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        x = conv(16, 3, padding=1, name=self.stem)(images)
        x = jax.nn.relu(BatchNorm(name=self.stem_norm)(x, train))
        return apply_stages(self, map(self._stage, (1, 2, 3)), x, train)

    def _stage(self, number: int) -> Stage:
        width = self.width * 2**number // 8
        strides = [1 if number == 1 else 2, *[1] * (self.blocks - 1)]
        block = functools.partial(
            BasicBlock, shortcut_name=self.shortcut_name, shortcut_kernel=self.shortcut_kernel, seed=self.seed
        )
        row = [
            functools.partial(block, width, stride, self.shortcut, name=f"layer{number}_{index}")
            for index, stride in enumerate(strides)
        ]
        if self.maps is not None and number == 3:
            last = functools.partial(block, self.maps, strides[-1], self.maps_shortcut, rebuilt=True)
            row[-1] = functools.partial(last, name=f"layer3_{self.blocks - 1}")
        return blocks(*row)


class BearpawResNet(CifarResNet):
    """images [n h w c] -> maps [n h/4 w/4 k]: learned shortcuts, names as in bearpaw/pytorch-classification@24f1c45."""

    shortcut: str = "B"

    options = ("maps", "maps_shortcut", "seed", "remat")
    shortcut_name = "downsample"

    @property
    def kind(self) -> str:
        """Name of the network."""
        return f"resnet{self.depth}_bearpaw"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return ("fc",)


class TutorialResNet(BearpawResNet):
    """images [n h w c] -> maps [n h/4 w/4 k]: 3x3 convs as shortcuts, as in yunjey/pytorch-tutorial."""

    stem = "conv"
    stem_norm = "bn"
    shortcut_kernel = 3

    @property
    def kind(self) -> str:
        """Name of the network."""
        return "resnet_tutorial"


VARIANTS = {
    **{f"resnet{depth}": Variant(CifarResNet, dict(depth=depth)) for depth in (8, 20, 32, 44, 56, 110)},
    "resnet32_bearpaw": Variant(BearpawResNet, dict(depth=32)),
    "resnet_tutorial": Variant(TutorialResNet, dict(depth=14)),
}
