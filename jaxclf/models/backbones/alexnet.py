"""AlexNet in one column (Krizhevsky 2014, arXiv 1404.5997), layout and names of torchvision 0.28.

fc6 and fc7 are convolutions of the backbone, so it answers at any size from 223. With `maps`, conv5 (3x3, 256 in)
gives that many channels, with a bias and torch's default initialisation, and is the end: no ReLU, no last pool, no fc6
and fc7, as in VGG; then any size from 31 will do.

alexnet_1024 is the course network whose fc7 has 1024 channels (45,442,856 parameters at 1000 classes). Its source drops
in evaluation, too; here dropout is training's alone.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import check_size, conv, max_pool, torch_default
from jaxclf.models.stages import apply_stages

# (channels, kernel, stride, padding) of conv1 to conv5
CONVS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
STAGES = ((0,), (1,), (2, 3, 4))
"""Convs between the pools."""


class AlexNet(Backbone):
    """images [n h w c] -> maps [n i j k]: one position at 224x224, h/16 with `maps`; its stages are its blocks.

    `names` are the reference's names of the five convs, of fc6 and fc7, and of the last layer above this backbone.
    """

    kind: str
    names: tuple[str, ...]
    hidden: tuple[int, int]
    """Channels of fc6 and fc7."""
    dropout: float = 0.5
    """Rate before fc6 and before fc7."""

    options = ("maps", "dropout", "remat")
    image_size = 224

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return self.names[0]

    @property
    def last_conv(self) -> str:
        """Name of conv5: fc6 and fc7 are linear layers in the reference."""
        return self.names[4]

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of fc6 and fc7."""
        return self.names[5:7]

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return self.names[7:]

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.hidden[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size(self.kind, images, 223 if self.maps is None else 31)
        stages = [functools.partial(AlexNet._stage, convs=convs) for convs in STAGES]
        x = apply_stages(self, stages, images, train, remat="none" if self.remat == "none" else "stage")
        if self.maps is not None:
            return x
        for name, features, side in zip(self.linear_layers, self.hidden, (6, 1), strict=True):
            fan_in = side * side * x.shape[-1]
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = jax.nn.relu(conv(features, side, fan_in=fan_in, bias=True, init=torch_default, name=name)(x))
        return x

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, convs: tuple[int, ...]) -> Float[Array, "n i j k"]:
        """Apply the convs of a stage and the pool after them."""
        for index in convs:
            features, kernel, stride, padding = CONVS[index]
            last = self.maps is not None and index == 4
            layer = conv(
                self.features if last else features,
                kernel,
                fan_in=kernel * kernel * x.shape[-1],
                stride=stride,
                padding=padding,
                bias=True,
                init=torch_default,
                name=self.names[index],
            )
            if last:
                return layer(x)
            x = jax.nn.relu(layer(x))
        return max_pool(x, 3, stride=2)


VARIANTS = {
    kind: Variant(AlexNet, dict(kind=kind, hidden=hidden, names=names))
    for kind, hidden, names in (
        (
            "alexnet",
            (4096, 4096),
            (*(f"features_{place}" for place in (0, 3, 6, 8, 10)), "classifier_1", "classifier_4", "classifier.6"),
        ),
        ("alexnet_1024", (4096, 1024), ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2", "fc3")),
    )
}
