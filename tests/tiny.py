"""The smallest network that has all that a run handles, "tests.tiny:Tiny" by name, and its recipe."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.models.backbone import AuxiliaryHead, Backbone, Variant
from jaxclf.models.backbones.densenet_cifar import CifarDenseNet
from jaxclf.models.backbones.once_for_all import OnceForAll, Stage
from jaxclf.models.elastic import Choices
from jaxclf.models.layers import BatchNorm, conv


class Tiny(Backbone):
    """Two convolutions with BatchNorm: images [n 8 8 c] -> maps [n 4 4 8]."""

    momentum: float = 0.1
    """Of BatchNorm."""

    options = ("maps",)
    stem, last_conv, image_size = "conv1", "conv2", 8

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 8

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        x = conv(8, 3, padding=1, name="conv1")(images)
        x = jax.nn.relu(BatchNorm(momentum=self.momentum, name="bn1")(x, train))
        x = conv(self.features, 3, stride=2, padding=1, name="conv2")(x)
        return jax.nn.relu(BatchNorm(momentum=self.momentum, name="bn2")(x, train))


class Auxiliary(nn.Module):
    """A last layer on the mean of a map."""

    fc2: nn.Module

    def __call__(self, x: Float[Array, "n h w c"]) -> None:
        self.sow("intermediates", "logits", self.fc2(x.mean((1, 2))))


class TinyAuxiliary(Tiny):
    """Tiny with an auxiliary classifier on its first map."""

    auxiliary_heads = (AuxiliaryHead("aux1", 8, 0.3),)

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        x = conv(8, 3, padding=1, name="conv1")(images)
        x = jax.nn.relu(BatchNorm(momentum=self.momentum, name="bn1")(x, train))
        for layer in self.last_layers(train):
            Auxiliary(layer, name="aux1")(x)
        x = conv(self.features, 3, stride=2, padding=1, name="conv2")(x)
        return jax.nn.relu(BatchNorm(momentum=self.momentum, name="bn2")(x, train))


SLOW_STATISTICS = Variant(Tiny, dict(momentum=0.01))
"""BatchNorm with EfficientNet's momentum."""
SHALLOW_DENSENET = Variant(CifarDenseNet, dict(depth=16, growth=12))
"""DenseNet-BC with two layers in each block."""


def get_config() -> Config:
    """Return an epoch of the digits, 21 steps: this file is a recipe."""
    return Config(
        data=DataConfig(batch_size=64, drop_last=True),
        augment=AugmentConfig(pad=1, flip=False),
        model=ModelConfig(backbone="tests.tiny:Tiny"),
        optim=OptimConfig(lr=0.05, milestones=(1,)),
        run=RunConfig(epochs=1),
    )


class TinyElastic(OnceForAll):
    """One elastic stage of at most two blocks: images [n 8 8 c] -> maps [n 1 1 16]."""

    kind: str = "tiny_elastic"
    stem_features: int = 8
    stages: tuple[Stage, ...] = (Stage(8, 1, squeezed=True, swish=False),)
    hidden: tuple[int, int] = (16, 16)
    choices: Choices = Choices((5, 3), (4, 2), (2, 1))
    side: int = 8
