"""BN-Inception, also called Inception v2 (Ioffe and Szegedy 2015, arXiv 1502.03167, figure 5).

Layout and names of Cadene/pretrained-models.pytorch@8aae3d8, which has the convs' biases beside BatchNorm. Max-pools
round sizes up (ceil_mode), convs of stride 2 pad; the two meet in modules 3c and 4e, where they agree at even sizes
alone. So images have sides from 32 m - 1 to 32 m + 6, as 224; the reference fails at others, too.

The last feature map is the concatenation of four convs beside each other. With `maps`, each of the four gives that many
channels, with a bias and torch's default initialisation, and their sum is the end: no BatchNorm, no ReLU, as in
GoogLeNet. `last_conv` is the 3x3 one.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, avg_pool, check_size, conv, he_uniform, max_pool, torch_default
from jaxclf.models.stages import apply_stages

# Channels of each module: 1x1; 1x1 and 3x3; 1x1 and twice 3x3; 1x1 after the pool. Without the first and the last, it
# halves the size.
MODULES = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


class BNInception(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]; its stages are its blocks."""

    kind = "bninception"
    options = ("maps", "remat")
    head_names = ("last_linear",)
    stem = "conv1_7x7_s2"
    last_conv = "inception_5b_3x3"
    image_size = 224

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1024

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("bninception", images, 31)
        if any((side + 1) % 32 >= 8 for side in images.shape[1:3]):
            raise UsageError(
                f"bninception takes images whose sides are from 32 m - 1 to 32 m + 6 pixels, as 223 to 230; got "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        stages = [BNInception._stem, *(functools.partial(BNInception._module, place=place) for place in MODULES)]
        return apply_stages(self, stages, images, train, remat="none" if self.remat == "none" else "stage")

    def _stem(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the convs and pools before the first module."""
        x = self._unit(x, train, 64, 7, stride=2, name="conv1_7x7_s2")
        x = max_pool(x, 3, stride=2, ceil=True)
        x = self._unit(x, train, 64, 1, name="conv2_3x3_reduce")
        x = self._unit(x, train, 192, 3, name="conv2_3x3")
        return max_pool(x, 3, stride=2, ceil=True)

    def _module(self, x: Float[Array, "n h w c"], train: bool, *, place: str) -> Float[Array, "n i j k"]:
        """Apply an Inception module: four branches, or two and a pool at half the size."""
        one, before3, three, before33, double, pooled = MODULES[place]
        stride, name = 1 if one else 2, f"inception_{place}"
        last = place == "5b" and self.maps is not None

        def end(x: Float[Array, "n h w _"], usual: int, kernel: int, branch: str) -> Float[Array, "n i j _"]:
            features, steps = self.features if last else usual, stride if kernel == 3 else 1
            return self._unit(x, train, features, kernel, name=f"{name}_{branch}", stride=steps, last=last)

        y = self._unit(x, train, before3, 1, name=f"{name}_3x3_reduce")
        z = self._unit(x, train, before33, 1, name=f"{name}_double_3x3_reduce")
        z = self._unit(z, train, double, 3, name=f"{name}_double_3x3__1")
        branches = [end(y, three, 3, "3x3"), end(z, double, 3, "double_3x3__2")]
        if stride == 2:
            return jnp.concatenate([*branches, max_pool(x, 3, stride=2, ceil=True)], axis=-1)
        near = max_pool(x, 3, stride=1, padding=1) if place == "5b" else avg_pool(x, 3, stride=1, padding=1)
        branches = [end(x, one, 1, "1x1"), *branches, end(near, pooled, 1, "pool_proj")]
        return functools.reduce(jnp.add, branches) if last else jnp.concatenate(branches, axis=-1)

    def _unit(
        self,
        x: Float[Array, "n h w c"],
        train: bool,
        features: int,
        kernel: int,
        *,
        name: str,
        stride: int = 1,
        last: bool = False,
    ) -> Float[Array, "n i j k"]:
        """Apply a convolution with a bias, and BatchNorm and ReLU unless it is a `last` one."""
        fan_in, init = kernel * kernel * x.shape[-1], torch_default if last else he_uniform
        size = {"fan_in": fan_in, "stride": stride, "padding": kernel // 2}
        x = conv(features, kernel, bias=True, init=init, name=name, **size)(x)
        return x if last else jax.nn.relu(BatchNorm(name=f"{name}_bn")(x, train))


VARIANTS = {"bninception": Variant(BNInception)}
