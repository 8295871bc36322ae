"""Once-for-all's MobileNetV3 (Cai et al. 2020, arXiv 1908.09791): elastic in kernel, expansion and depth.

Layout and names of mit-han-lab/once-for-all at f03b267, OFAMobileNetV3 of widths 1.0 and 1.2. Without `kernels`,
`expansions` and `depths` a network is elastic: it has the weights of all settings, and answers as the largest unless
its variables hold the collection `setting` (elastic.py). With any of them it is an ordinary network of that setting.

The network pools before `feature_mix_layer`, so the backbone ends in a map of one position. With `maps`,
final_expand_layer gives that many channels, with a bias and torch's default initialisation, and is the end: no
BatchNorm, no hard-swish, no pool, no feature_mix_layer, as in MobileNetV3.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float

from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.elastic import Active, Choices, ElasticDepthwise, Setting, extract, keep, masked
from jaxclf.models.layers import BatchNorm, check_size, conv, torch_default
from jaxclf.models.mbconv import divisible
from jaxclf.models.stages import apply_stages, blocks

Activation = Callable[[Any], Any]
Kept = Bool[Array, " kept"] | None


class Inner(nn.Module):
    """A layer in a module of its own, whose name is part of its keys."""

    layer: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, *given: Any) -> Any:
        """Make the layer and apply it."""
        return self.layer()(*given)


class Squeeze(nn.Module):
    """Squeeze-and-excitation by a quarter of the channels that are used."""

    widths: tuple[int, ...]
    """Channels under each choice of expansion, the largest first."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], active: Active | None, kept: Kept) -> Float[Array, "n h w c"]:
        """Weigh the channels."""
        middles = tuple(divisible(width // 4) for width in self.widths)
        y = conv(middles[0], 1, fan_in=x.shape[-1], bias=True, name="reduce")(x.mean((1, 2), keepdims=True))
        y = masked(jax.nn.relu(y), keep(middles, active))
        return x * jax.nn.hard_sigmoid(conv(x.shape[-1], 1, fan_in=middles[0], bias=True, name="expand")(y))


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, activation and squeeze-and-excitation under the reference's names.

    An elastic one has its layers in modules of their own, so that keys say conv.conv and bn.bn.
    """

    features: int
    activation: Activation | None = None
    kernels: tuple[int, ...] = (1,)
    """Side of the convolution, or all sides of an elastic one."""
    stride: int = 1
    depthwise: bool = False
    squeeze: tuple[int, ...] = ()
    """Widths under squeeze-and-excitation; empty: without it."""
    elastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, active: Active | None = None, kept: Kept = None
    ) -> Float[Array, "n i j k"]:
        """Apply the layers; channels that are not `kept` become zeros."""
        if self.elastic and self.depthwise:
            x = ElasticDepthwise(self.stride, self.kernels, name="conv")(x, active)
        else:
            [side], groups = self.kernels, self.features if self.depthwise else 1
            given: Any = {"stride": self.stride, "padding": side // 2, "groups": groups, "name": "conv"}
            layer = functools.partial(conv, self.features, side, **given)
            x = Inner(layer, name="conv")(x) if self.elastic else layer()(x)
        if self.elastic:
            x = Inner(functools.partial(BatchNorm, name="bn"), name="bn")(x, train, kept)
        else:
            x = BatchNorm(name="bn")(x, train)
        x = masked(x if self.activation is None else self.activation(x), kept)
        if self.squeeze:
            x = Inner(functools.partial(Squeeze, self.squeeze, name="fc"), name="se")(x, active, kept)
        return x


class Bottleneck(nn.Module):
    """1x1 to a width, depthwise, squeeze-and-excitation, 1x1 to `features` without activation."""

    features: int
    activation: Activation
    widths: tuple[int, ...]
    """Inner channels under each choice of expansion, the largest first."""
    kernels: tuple[int, ...]
    stride: int = 1
    expanded: bool = True
    squeezed: bool = False
    elastic: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool, active: Active | None) -> Float[Array, "n i j k"]:
        """Apply the layers."""
        layer = functools.partial(ConvNorm, elastic=self.elastic)
        width, kept = self.widths[0], keep(self.widths, active)
        if self.expanded:
            x = layer(width, self.activation, name="inverted_bottleneck")(x, train, active, kept)
        squeeze = self.widths if self.squeezed else ()
        given: Any = {"kernels": self.kernels, "stride": self.stride, "depthwise": True, "squeeze": squeeze}
        x = layer(width, self.activation, **given, name="depth_conv")(x, train, active, kept)
        return layer(self.features, name="point_linear")(x, train, active, keep((self.features,), active, whole=True))


class Block(nn.Module):
    """x [n h w c] -> [n i j k]: a bottleneck, with a shortcut where it changes neither size nor channels."""

    bottleneck: functools.partial[Bottleneck]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j k"]:
        """Apply the block, or what the collection `setting` says of it."""
        active = None
        if self.has_variable("setting", "there"):
            active = Active(*(self.get_variable("setting", name) for name in Active._fields))
        y = self.bottleneck(name="conv")(x, train, active)
        return x + y if y.shape == x.shape else y


class Stage(NamedTuple):
    """Blocks of one resolution: channels, stride of the first, squeeze-and-excitation, hard-swish (else ReLU)."""

    features: int
    stride: int
    squeezed: bool
    swish: bool


class OnceForAll(Backbone):
    """images [n h w c] -> maps [n 1 1 k], or [n i j k] with `maps`."""

    kind: str
    stem_features: int
    stages: tuple[Stage, ...]
    """The elastic ones; before them stands a block without expansion, of the stem's channels."""
    hidden: tuple[int, int]
    """Channels of final_expand_layer and feature_mix_layer."""
    choices: Choices = Choices()
    side: int = 224
    kernels: tuple[int, ...] = ()
    """An ordinary network: sides of the depthwise convolutions; one for all, or one a block."""
    expansions: tuple[int, ...] = ()
    """An ordinary network: inner channels over those before the block, the same way."""
    depths: tuple[int, ...] = ()
    """An ordinary network: blocks of the stages; one for all, or one a stage."""

    options = ("maps", "remat", "kernels", "expansions", "depths")
    head_names = ("classifier.linear",)
    stem = "first_conv/conv"
    last_conv = "final_expand_layer/conv"
    head_dropout = 0.1
    pools_inside = True

    def __post_init__(self) -> None:
        self.setting  # noqa: B018  # what is no setting is refused before anything is traced
        super().__post_init__()

    @property
    def image_size(self) -> int:
        """Side of the images that the network was designed for, in pixels."""
        return self.side

    @property
    def setting(self) -> Setting:
        """The network's setting; that of an elastic one is the largest."""
        given: Any = {"kernels": self.kernels, "expansions": self.expansions, "depths": self.depths}
        return Setting.of(self.choices, len(self.stages), **given)

    @property
    def elastic(self) -> bool:
        """Whether the network has the weights of all settings."""
        return not (self.kernels or self.expansions or self.depths)

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.maps or self.hidden[1]

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        """Compute the last feature map."""
        check_size(self.kind, images, 1)
        wide = self.stem_features
        stem = ConvNorm(wide, jax.nn.hard_swish, kernels=(3,), stride=2, name="first_conv")
        x = stem(images, train)
        first: Any = {"widths": (wide,), "kernels": (3,), "expanded": False}
        plain = functools.partial(Bottleneck, wide, jax.nn.relu, **first)
        stages = [[functools.partial(Block, plain, name="blocks_0")], *self._blocks()]
        x = apply_stages(self, (blocks(*stage) for stage in stages), x, train)
        if self.maps is not None:
            fan_in = x.shape[-1]
            last = functools.partial(conv, self.maps, 1, fan_in=fan_in, bias=True, init=torch_default, name="conv")
            return Inner(last, name="final_expand_layer")(x)
        expanded, mixed = self.hidden
        x = self.pool_inside(ConvNorm(expanded, jax.nn.hard_swish, name="final_expand_layer")(x, train))
        mix = functools.partial(conv, mixed, 1, name="conv")
        return jax.nn.hard_swish(Inner(mix, name="feature_mix_layer")(x))

    def _blocks(self) -> list[list[functools.partial[Block]]]:
        """Return the blocks of the elastic stages; an ordinary network has those of its setting alone."""
        setting, deepest, wide, number, found = self.setting, self.choices.depths[0], self.stem_features, 0, []
        for place, stage in enumerate(self.stages):
            found.append([])
            for index in range(setting.depths[place]):
                own = deepest * place + index
                kernels, ratios = (setting.kernels[own],), (setting.expansions[own],)
                if self.elastic:
                    kernels, ratios = self.choices.kernels, self.choices.expansions
                number += 1
                given: Any = {
                    "widths": tuple(divisible(wide * ratio) for ratio in ratios),
                    "kernels": kernels,
                    "stride": 1 if index else stage.stride,
                    "squeezed": stage.squeezed,
                    "elastic": self.elastic,
                }
                activation = jax.nn.hard_swish if stage.swish else jax.nn.relu
                one = functools.partial(Bottleneck, stage.features, activation, **given)
                found[-1].append(functools.partial(Block, one, name=f"blocks_{number}"))
                wide = stage.features
        return found

    def whole(self) -> "OnceForAll | None":
        """Return the elastic network of which this one is a part; None: it is elastic itself."""
        return None if self.elastic else self.clone(kernels=(), expansions=(), depths=())

    def part(self, variables: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
        """Return this network's variables out of those of `whole`, both flat under a classifier's paths."""
        channels = variables["params", "backbone", "first_conv", "conv", "kernel"].shape[2]
        images = jax.ShapeDtypeStruct((1, self.side, self.side, channels), np.float32)
        own = traverse_util.flatten_dict(jax.eval_shape(self.init, jax.random.key(0), images))
        paths = [(path[0], "backbone", *path[1:]) for path in own]
        widths = {block: width for block, (width,) in self.widths().items()}
        return extract(dict(variables), paths, self.setting, self.choices, widths)

    def widths(self) -> dict[str, tuple[int, ...]]:
        """Return by block the inner channels under each choice of expansion, the largest first."""
        return {one.keywords["name"]: one.args[0].keywords["widths"] for stage in self._blocks() for one in stage}


def _large(width: float) -> dict[str, Any]:
    wide = functools.partial(_wide, width)
    stages = (
        Stage(wide(24), 2, squeezed=False, swish=False),
        Stage(wide(40), 2, squeezed=True, swish=False),
        Stage(wide(80), 2, squeezed=False, swish=True),
        Stage(wide(112), 1, squeezed=True, swish=True),
        Stage(wide(160), 2, squeezed=True, swish=True),
    )
    return {"stem_features": wide(16), "stages": stages, "hidden": (wide(960), wide(1280))}


def _wide(width: float, features: int) -> int:
    return divisible(width * features)


VARIANTS = {
    name: Variant(OnceForAll, {"kind": name, **fields})
    for name, fields in {
        "ofa_mbv3_w1_0": _large(1.0),
        "ofa_mbv3_w1_2": _large(1.2),
        "ofa_mbv3_tiny": {
            "stem_features": 16,
            "stages": (Stage(24, 2, False, False), Stage(40, 2, True, True)),
            "hidden": (120, 160),
            "choices": Choices((5, 3), (6, 4, 3), (3, 2, 1)),
            "side": 28,
        },
    }.items()
}
"""ofa_mbv3_tiny is ours: for images of 28x28, small enough to be trained on a CPU (experiments/once_for_all.py)."""
