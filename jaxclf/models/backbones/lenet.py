"""LeNet-5 and two relatives for 28x28 images; their fully connected layers are convolutions of the backbone.

So every one of them answers at any larger size, and its class maps can be drawn. Sources: LeCun et al. 1998 for the
layout; the numbers are those of the teaching versions whose counts are published (61,706, 44,426 and 105,506).

With `maps`, the last conv (fc2; fc1 in `lenet_like`) gives that many channels and keeps its bias; the activation
after it goes, so that the maps can be logits.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import avg_pool, check_size, conv, max_pool, torch_default


class LeNet(Backbone):
    """Two conv-activation-pool stages, then the hidden layers as convs: images [n h w c] -> maps [n i j k].

    `names` are the reference's names of conv1, conv2, the hidden layers, and the last layer above this backbone.
    """

    kind: str
    convs: tuple[int, int]
    hidden: tuple[int, ...]
    names: tuple[str, ...]
    padding: int = 0
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    pool: Callable[[jax.Array, int], jax.Array] = max_pool
    shrink: tuple[int, int] = (2, 2)
    """Windows of the two pools."""

    options = ("maps",)
    image_size = 28

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return self.names[0]

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return self.names[-1:]

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of the hidden layers."""
        return self.names[2:-1]

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return self.names[-2]

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.hidden[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; 28x28 images give one position."""
        check_size(self.kind, images, 28)
        x = images
        for index, features in enumerate(self.convs):
            padding = self.padding if index == 0 else 0
            fan_in = 25 * x.shape[-1]
            layer = conv(
                features, 5, fan_in=fan_in, padding=padding, bias=True, init=torch_default, name=self.names[index]
            )
            x = self.pool(self.activation(layer(x)), self.shrink[index])
        side = (((28 + 2 * self.padding - 4) // self.shrink[0]) - 4) // self.shrink[1]  # of the map at 28x28
        for index, width in enumerate(self.hidden):
            last = index == len(self.hidden) - 1
            features = self.features if last else width
            name, fan_in = self.names[2 + index], side * side * x.shape[-1]
            x = conv(features, side, fan_in=fan_in, bias=True, init=torch_default, name=name)(x)
            x = x if last and self.maps is not None else self.activation(x)
            side = 1
        return x


VARIANTS = {
    kind: Variant(LeNet, dict(kind=kind, names=names, **fields))
    for kind, names, fields in (
        (
            "lenet5",
            ("features_0", "features_3", "classifier_0", "classifier_2", "classifier.4"),
            dict(convs=(6, 16), hidden=(120, 84)),
        ),
        (
            "lenet5_sigmoid",
            ("conv1", "conv2", "fc1", "fc2", "fc3"),
            dict(convs=(6, 16), hidden=(120, 84), padding=2, activation=jax.nn.sigmoid, pool=avg_pool),
        ),
        ("lenet_like", ("conv1", "conv2", "fc1", "fc2"), dict(convs=(32, 64), hidden=(200,), shrink=(3, 2))),
    )
}
