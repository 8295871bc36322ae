"""ShuffleNetV2 (Ma et al. 2018), layout and names of torchvision 0.28, and of its authors (megvii-model).

Torchvision shuffles the halves after each unit. The authors (megvii-model/ShuffleNet-Series, ShuffleNetV2/network.py)
shuffle them before each unit of stride 1, so not after the last one, and a unit of stride 2 gives as many channels as
enter it to its shortcut, and the others to its branch, where torchvision halves them; their classifier has no bias
(`bias=False`), and their weights are for BGR images of 0 to 255.

With `maps`, the last conv (1x1) gives that many channels, with a bias and torch's default initialisation, and is the
end: no BatchNorm, no ReLU (thesis, section 3.5).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.layers import BatchNorm, check_groups, check_size, conv, max_pool, torch_default
from jaxclf.models.stages import Stage, apply_stages, blocks


def channel_shuffle(x: Float[Array, "n h w c"], groups: int) -> Float[Array, "n h w c"]:
    """torch.nn.ChannelShuffle: the first channel of every group, then the second of every group, and so on."""
    check_groups("channel shuffle", groups, x.shape[-1])
    return jnp.swapaxes(x.reshape(*x.shape[:3], groups, -1), 3, 4).reshape(x.shape)


class Unit(nn.Module):
    """Half of the channels (all, at stride 2) go through 1x1, 3x3 depthwise, 1x1; the halves are shuffled."""

    features: int
    stride: int
    megvii: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the unit."""
        half, wide = self.features // 2, x.shape[-1]
        check_groups("unit of ShuffleNet v2", 2, wide, self.features)
        shortcut, branch = ("branch_proj", "branch_main") if self.megvii else ("branch1", "branch2")
        if self.stride > 1:
            kept_features = wide if self.megvii else half
            kept = conv(wide, 3, stride=self.stride, padding=1, groups=wide, name=f"{shortcut}_0")(x)
            kept = conv(kept_features, 1, name=f"{shortcut}_2")(BatchNorm(name=f"{shortcut}_1")(kept, train))
            kept, y = jax.nn.relu(BatchNorm(name=f"{shortcut}_3")(kept, train)), x
        elif self.megvii:
            kept, y = x[..., ::2], x[..., 1::2]
        else:
            kept, y = jnp.split(x, 2, axis=-1)
        y = jax.nn.relu(BatchNorm(name=f"{branch}_1")(conv(half, 1, name=f"{branch}_0")(y), train))
        y = conv(half, 3, stride=self.stride, padding=1, groups=half, name=f"{branch}_3")(y)
        y = BatchNorm(name=f"{branch}_4")(y, train)
        y = conv(self.features - kept.shape[-1], 1, name=f"{branch}_5")(y)
        y = jax.nn.relu(BatchNorm(name=f"{branch}_6")(y, train))
        x = jnp.concatenate([kept, y], axis=-1)
        return x if self.megvii else channel_shuffle(x, 2)


class ShuffleNetV2(Backbone):
    """images [n h w c] -> maps [n h/32 w/32 k]."""

    kind: str
    widths: tuple[int, int, int, int]
    """Channels of stages 2, 3, 4 and of the last conv."""
    megvii: bool = False
    """Units and names of the authors."""

    options = ("maps", "remat")
    image_size = 224

    @property
    def stem(self) -> str:
        """Name of the first conv."""
        return "first_conv_0" if self.megvii else "conv1_0"

    @property
    def last_conv(self) -> str:
        """Name of the last conv."""
        return "conv_last_0" if self.megvii else "conv5_0"

    @property
    def head_names(self) -> tuple[str, ...]:
        """Name of the last layer."""
        return ("classifier.0",) if self.megvii else ("fc",)

    @property
    def head_dropout(self) -> float:
        """Rate before the head: the authors' largest network has one."""
        return 0.2 if self.megvii and self.widths[-1] == 2048 else 0.0

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.widths[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        x = conv(24, 3, stride=2, padding=1, name=self.stem)(images)
        x = jax.nn.relu(BatchNorm(name=_next(self.stem))(x, train))
        x = max_pool(x, 3, stride=2, padding=1)
        x = apply_stages(self, map(self._stage, (2, 3, 4)), x, train)
        if self.maps is not None:
            fan_in = x.shape[-1]
            return conv(self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name=self.last_conv)(x)
        x = conv(self.widths[-1], 1, name=self.last_conv)(x)
        return jax.nn.relu(BatchNorm(name=_next(self.last_conv))(x, train))

    def _stage(self, number: int) -> Stage:
        before = {2: 0, 3: 4, 4: 12}[number]
        row = [
            functools.partial(
                Unit,
                self.widths[number - 2],
                1 if index else 2,
                self.megvii,
                name=f"features_{before + index}" if self.megvii else f"stage{number}_{index}",
            )
            for index in range(8 if number == 3 else 4)
        ]
        return blocks(*row)


def _next(name: str) -> str:
    return name.removesuffix("0") + "1"


VARIANTS = {
    f"shufflenet_v2_{size}{source}": Variant(
        ShuffleNetV2, dict(kind=f"shufflenet_v2_{size}{source}", widths=widths, megvii=bool(source))
    )
    for source in ("", "_megvii")
    for size, widths in (
        ("x0_5", (48, 96, 192, 1024)),
        ("x1_0", (116, 232, 464, 1024)),
        ("x1_5", (176, 352, 704, 1024)),
        ("x2_0", (244, 488, 976, 2048)),
    )
}
