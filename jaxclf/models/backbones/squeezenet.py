"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016, arXiv 1602.07360), layout and names of torchvision 0.28.

It is an identity head by birth, as Network in Network: the last conv (1x1, 512 in) gives the classes, a ReLU follows
it, and the average pool makes the logits, which are therefore >= 0. `create_model("squeezenet1_0", num_classes=k,
head="identity", maps=k)` is that network; the conv starts as torch's do. Without `maps`, the backbone ends before that
conv, after the dropout there, with 512 channels, and any head may stand on it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import check_size, conv, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks

EXPANDED = (64, 64, 128, 128, 192, 192, 256, 256)
"""Channels of each of a Fire module's two expansions; a quarter of them squeeze."""


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expansions beside each other, a ReLU after each conv."""

    expanded: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Apply the module, k = 2 x expanded."""
        squeezed = self.expanded // 4
        x = jax.nn.relu(conv(squeezed, 1, fan_in=x.shape[-1], bias=True, name="squeeze")(x))
        narrow = conv(self.expanded, 1, fan_in=squeezed, bias=True, name="expand1x1")(x)
        wide = conv(self.expanded, 3, fan_in=9 * squeezed, padding=1, bias=True, name="expand3x3")(x)
        return jax.nn.relu(jnp.concatenate([narrow, wide], axis=-1))


class SqueezeNet(Backbone):
    """images [n h w c] -> maps [n i j k], about h/16."""

    kind: str
    first: tuple[int, int]
    """Channels and kernel of the first conv, which has stride 2 and no padding."""
    fires: tuple[int, int, int]
    """Fire modules after each of the three pools."""
    smallest: int
    """Side of the smallest images that leave a position after the last pool."""
    dropout: float = 0.5
    """Rate before the last conv."""

    options = ("maps", "dropout", "remat")
    maps_keeps_dropout = True
    stem = "features_0"
    image_size = 224

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return "features_12/expand3x3" if self.maps is None else "classifier_1"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer; of one above the last conv, which has its name, our own."""
        return ("classifier.1",) if self.maps is None else ("fc", "classifier.1")

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 2 * EXPANDED[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map, after its ReLU; `train` needs an rng named "dropout" unless dropout is 0."""
        check_size(self.kind, images, self.smallest)
        features, kernel = self.first
        fan_in = kernel * kernel * images.shape[-1]
        x = jax.nn.relu(conv(features, kernel, fan_in=fan_in, stride=2, bias=True, name="features_0")(images))
        x = apply_stages(self, map(self._stage, range(3)), x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.maps is None:
            return x
        last = conv(self.maps, 1, fan_in=x.shape[-1], bias=True, init=torch_default, name="classifier_1")
        return jax.nn.relu(last(x))

    def _stage(self, number: int) -> Stage:
        before = sum(self.fires[:number])
        row = [
            functools.partial(Fire, EXPANDED[index], name=f"features_{3 + number + index}")
            for index in range(before, before + self.fires[number])
        ]
        after = blocks(*row)

        def stage(module: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
            return after(module, max_pool(x, 3, stride=2, ceil=True), train)

        return stage


VARIANTS = {
    kind: Variant(SqueezeNet, dict(kind=kind, first=first, fires=fires, smallest=smallest))
    for kind, first, fires, smallest in (
        ("squeezenet1_0", (96, 7), (3, 4, 1), 21),
        ("squeezenet1_1", (64, 3), (2, 2, 4), 17),
    )
}
