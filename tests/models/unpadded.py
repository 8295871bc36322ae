"""The network whose map over a larger image can be compared with crops: nothing in it is padded."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone
from jaxclf.models.layers import conv, max_pool

UNPADDED = "tests.models.unpadded:Unpadded"


class Unpadded(Backbone):
    """conv5 stride 2, max pool 2, conv3, max pool 3, conv2: images [n 48 48 c] -> maps [n 2 2 6], 12 pixels apart."""

    offset: tuple[int, int] = (0, 0)
    """Where the windows of the last pool begin: OverFeat's offsets."""

    stem, last_conv, image_size, features = "conv1", "conv3", 48, 6

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        x = max_pool(jax.nn.relu(conv(5, 5, stride=2, name="conv1")(images)), 2)
        x = jax.nn.relu(conv(6, 3, name="conv2")(x))
        x = max_pool(x[:, self.offset[0] :, self.offset[1] :], 3)
        return conv(6, 2, name="conv3")(x)
