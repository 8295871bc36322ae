"""MobileNetV2 (Sandler et al. 2018), layout and names of torchvision 0.28, and of tonylins/pytorch-mobilenet-v2.

With `maps`, features.18 (1x1, 320 in) gives that many channels, with a bias and torch's default initialisation, and
is the end: no BatchNorm, no ReLU6 (thesis, section 3.5).
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import check_size, conv, torch_default
from jaxclf.models.mbconv import MBConv, Names, conv_norm
from jaxclf.models.stages import Stage, apply_stages, blocks

# (expansion, channels, blocks, stride of the first): table 2 of the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _torchvision_names(expanded: bool, squeezed: bool) -> Names:
    place = int(expanded)
    depthwise, project = (f"conv_{place}_0", f"conv_{place}_1"), (f"conv_{place + 1}", f"conv_{place + 2}")
    return Names(("conv_0_0", "conv_0_1"), depthwise, project)


def _tonylins_names(expanded: bool, squeezed: bool) -> Names:
    first, second, third = ((f"conv_{place}", f"conv_{place + 1}") for place in (0, 3, 6))  # ReLUs count, too
    return Names(first, second, third) if expanded else Names(("", ""), first, second)


class MobileNetV2(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    tonylins: bool = False
    """Names of tonylins/pytorch-mobilenet-v2, which has no dropout either."""

    options = ("maps", "remat")
    stem = "features_0_0"
    last_conv = "features_18_0"
    image_size = 224

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return ("classifier",) if self.tonylins else ("classifier.1",)

    @property
    def head_dropout(self) -> float:
        """Rate before the head."""
        return 0.0 if self.tonylins else 0.2

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or 1280

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size("mobilenet_v2", images, 1)
        x = jax.nn.relu6(conv_norm(images, train, 32, 3, ("features_0_0", "features_0_1"), stride=2))
        x = apply_stages(self, map(self._stage, range(len(STAGES))), x, train)
        if self.maps is not None:
            return conv(self.maps, 1, fan_in=320, bias=True, init=torch_default, name="features_18_0")(x)
        return jax.nn.relu6(conv_norm(x, train, 1280, 1, ("features_18_0", "features_18_1")))

    def _stage(self, number: int) -> Stage:
        expansion, features, count, first = STAGES[number]
        place = 1 + sum(before for _, _, before, _ in STAGES[:number])
        names = _tonylins_names if self.tonylins else _torchvision_names
        entering = STAGES[number - 1][1] if number else 32
        block = functools.partial(MBConv, kernel=3, names=names)
        row = [
            functools.partial(
                block,
                width=expansion * (features if index else entering),
                features=features,
                stride=1 if index else first,
                name=f"features_{place + index}",
            )
            for index in range(count)
        ]
        return blocks(*row)


VARIANTS = {
    "mobilenet_v2": Variant(MobileNetV2),
    "mobilenet_v2_tonylins": Variant(MobileNetV2, {"tonylins": True}),
}
