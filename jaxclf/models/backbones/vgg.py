"""VGG (Simonyan & Zisserman 2014), with and without BatchNorm; layout and names of torchvision 0.28.

fc6 and fc7 are convolutions of the backbone, so it answers at any size from 224. With `maps`, the last 3x3 conv of
`features` gives that many channels, with a bias, and is the end: no norm, no ReLU, no last pool, no fc6 and fc7
(thesis, section 3.5); then any size from 16 will do.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_size, conv, max_pool, torch_default
from jaxclf.models.stages import apply_stages


class VGG(Backbone):
    """images [n h w c] -> maps [n i j k]: one position at 224x224, h/16 with `maps`; its stages are its blocks."""

    depth: int
    convs: tuple[int, int, int, int, int]
    """3x3 convs in each of the five stages."""
    norm: bool
    dropout: float = 0.5

    options = ("maps", "dropout", "remat")
    head_names = ("classifier.6",)
    linear_layers = ("classifier_0", "classifier_3")
    stem = "features_0"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last 3x3 conv: fc6 and fc7 are linear layers in the reference."""
        step = 3 if self.norm else 2
        return f"features_{step * (sum(self.convs) - 1) + 4}"

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 4096

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size(f"vgg{self.depth}{'_bn' if self.norm else ''}", images, 224 if self.maps is None else 16)
        stages = [functools.partial(VGG._stage, number=number) for number in range(len(self.convs))]
        x = apply_stages(self, stages, images, train, remat="none" if self.remat == "none" else "stage")
        if self.maps is not None:
            return x
        for name, side in (("classifier_0", 7), ("classifier_3", 1)):
            fan_in = side * side * x.shape[-1]
            x = jax.nn.relu(conv(4096, side, fan_in=fan_in, bias=True, init=torch_default, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, number: int) -> Float[Array, "n i j k"]:
        """Apply the convs of a stage and the pool after them; torchvision counts convs, norms, ReLUs and pools."""
        step = 3 if self.norm else 2
        place = step * sum(self.convs[:number]) + number
        for index in range(self.convs[number]):
            last = self.maps is not None and (number, index) == (4, self.convs[4] - 1)
            features = self.features if last else min(64 * 2**number, 512)
            fan_in, name = 9 * x.shape[-1], f"features_{place}"
            x = conv(features, 3, fan_in=fan_in, padding=1, bias=True, init=torch_default, name=name)(x)
            if last:
                return x
            if self.norm:
                x = BatchNorm(name=f"features_{place + 1}")(x, train)
            x = jax.nn.relu(x)
            place += step
        return max_pool(x, 2)


VARIANTS = {
    f"vgg{depth}{suffix}": Variant(VGG, dict(depth=depth, convs=convs, norm=bool(suffix)))
    for depth, convs in ((11, (1, 1, 2, 2, 2)), (13, (2, 2, 2, 2, 2)), (16, (2, 2, 3, 3, 3)), (19, (2, 2, 4, 4, 4)))
    for suffix in ("", "_bn")
}
