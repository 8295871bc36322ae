"""Network in Network (Lin et al. 2013, arXiv 1312.4400) for small images.

Layout and names of jiecaoyu/pytorch-nin-cifar10@2289f38 (original.py), whose second pool is an average that counts the
padding. Convolutions start he-uniform, as all of ours do; the source draws N(0, 0.05^2).

It is an identity head by birth: the last conv gives the classes, a ReLU follows it, and the average pool makes the
logits, which are therefore >= 0. `create_model("nin", num_classes=k, head="identity", maps=k)` is that network. Without
`maps`, the backbone ends before that conv, with 192 channels, and any head may stand on it.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import avg_pool, check_size, conv, he_uniform, max_pool, torch_default
from jaxclf.models.stages import apply_stages

# (channels, kernel) of each conv of the three blocks: a k x k conv and 1x1 convs, an MLP at every position
BLOCKS = (((192, 5), (160, 1), (96, 1)), ((192, 5), (192, 1), (192, 1)), ((192, 3), (192, 1)))


class NiN(Backbone):
    """images [n h w c] -> maps [n h/4 w/4 k], any size; its stages are its blocks."""

    dropout: float = 0.5
    """Rate after each of the two pools."""

    options = ("maps", "dropout", "remat")
    maps_keeps_dropout = True
    stem = "classifier_0"
    image_size = 32

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return "classifier_18" if self.maps is None else "classifier_20"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer; of one above the last conv, which has its name, our own."""
        return ("classifier.20",) if self.maps is None else ("fc", "classifier.20")

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 192

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map, after its ReLU; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size("nin", images, 1)
        stages = [functools.partial(NiN._stage, number=number) for number in range(len(BLOCKS))]
        return apply_stages(self, stages, images, train, remat="none" if self.remat == "none" else "stage")

    def _stage(self, x: Float[Array, "n h w c"], train: bool, *, number: int) -> Float[Array, "n i j k"]:
        """Apply the pool and the dropout before a block, if it is not the first, and its convs."""
        if number > 0:
            x = max_pool(x, 3, stride=2, padding=1) if number == 1 else avg_pool(x, 3, stride=2, padding=1)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        row = [(*one, he_uniform) for one in BLOCKS[number]]
        if number == 2 and self.maps is not None:
            row.append((self.maps, 1, torch_default))
        for index, (features, kernel, init) in enumerate(row):
            fan_in, name = kernel * kernel * x.shape[-1], f"classifier_{8 * number + 2 * index}"
            layer = conv(features, kernel, fan_in=fan_in, padding=kernel // 2, bias=True, init=init, name=name)
            x = jax.nn.relu(layer(x))
        return x


VARIANTS = {"nin": Variant(NiN)}
