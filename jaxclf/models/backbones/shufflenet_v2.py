"""ShuffleNetV2 (Ma et al. 2018), layout and names of torchvision 0.28.

With `maps`, conv5 (1x1) gives that many channels, with a bias and torch's default initialisation, and is the end: no
BatchNorm, no ReLU (thesis, section 3.5).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks


class Unit(nn.Module):
    """Half of the channels (all, at stride 2) go through 1x1, 3x3 depthwise, 1x1; then the halves are shuffled."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the unit."""
        half = self.features // 2
        if self.stride == 1:
            kept, y = jnp.split(x, 2, axis=-1)
        else:
            width = x.shape[-1]
            kept = conv(width, 3, stride=self.stride, padding=1, groups=width, name="branch1_0")(x)
            kept = conv(half, 1, name="branch1_2")(BatchNorm(name="branch1_1")(kept, train))
            kept, y = jax.nn.relu(BatchNorm(name="branch1_3")(kept, train)), x
        y = jax.nn.relu(BatchNorm(name="branch2_1")(conv(half, 1, name="branch2_0")(y), train))
        y = conv(half, 3, stride=self.stride, padding=1, groups=half, name="branch2_3")(y)
        y = conv(half, 1, name="branch2_5")(BatchNorm(name="branch2_4")(y, train))
        y = jax.nn.relu(BatchNorm(name="branch2_6")(y, train))
        return jnp.stack([kept, y], axis=-1).reshape(*y.shape[:-1], self.features)  # channel 2i from kept, 2i+1 from y


class ShuffleNetV2(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    widths: tuple[int, int, int, int]
    """Channels of stages 2, 3, 4 and of conv5."""

    options = ("maps", "remat")
    stem = "conv1_0"
    last_conv = "conv5_0"
    image_size = 224

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.widths[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        x = conv(24, 3, stride=2, padding=1, name="conv1_0")(images)
        x = max_pool(jax.nn.relu(BatchNorm(name="conv1_1")(x, train)), 3, stride=2, padding=1)
        x = apply_stages(self, map(self._stage, (2, 3, 4)), x, train)
        if self.maps is not None:
            fan_in = x.shape[-1]
            return conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name="conv5_0")(x)
        return jax.nn.relu(BatchNorm(name="conv5_1")(conv(self.widths[-1], 1, name="conv5_0")(x), train))

    def _stage(self, number: int) -> Stage:
        row = [
            functools.partial(Unit, self.widths[number - 2], 1 if index else 2, name=f"stage{number}_{index}")
            for index in range(8 if number == 3 else 4)
        ]
        return blocks(*row)


VARIANTS = {
    f"shufflenet_v2_{size}": Variant(ShuffleNetV2, dict(kind=f"shufflenet_v2_{size}", widths=widths))
    for size, widths in (
        ("x0_5", (48, 96, 192, 1024)),
        ("x1_0", (116, 232, 464, 1024)),
        ("x1_5", (176, 352, 704, 1024)),
        ("x2_0", (244, 488, 976, 2048)),
    )
}
