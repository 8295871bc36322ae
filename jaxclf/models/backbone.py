"""The contract of a backbone, in code."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from jaxclf.config import Remat
from jaxclf.models.layers import avg_pool

NEEDED = ("features", "stem", "last_conv", "image_size")


class AuxiliaryHead(NamedTuple):
    """An auxiliary classifier: module, features that its last layer takes, weight of its loss."""

    name: str
    features: int
    weight: float


class Backbone(nn.Module, kw_only=True):
    """images [n h w c] -> feature map [n i j k]: no pooling, no head, no classes.

    A subclass defines `features`, `stem`, `last_conv` and `image_size`, and `__call__(images, train=False)`, whose
    BatchNorm uses the batch's statistics where `train` is true. Each may be a class attribute or a property.
    """

    maps: int | None = None
    """End in this many channels instead of the usual width; the family's docstring says what is rebuilt."""
    remat: Remat = "none"
    """Units whose inside is computed again in the backward pass instead of being stored (layers.py)."""
    auxiliary: tuple[nn.Module, ...] = ()
    """Last layers [n d] -> [n k] of the auxiliary classifiers, in their order; empty: there are none."""
    inner_pool: int | None = None
    """Side in positions of the windows that `pool_inside` averages, one position apart; None: the whole map."""

    features: ClassVar[int]
    """Channels of the feature map."""
    stem: ClassVar[str]
    """Path of the first convolution, module names joined by "/"."""
    last_conv: ClassVar[str]
    """Path of the last convolution: the one that `maps` rebuilds."""
    image_size: ClassVar[int]
    """Side of the images that the network was designed for, in pixels."""
    options: ClassVar[tuple[str, ...]] = ()
    """Fields that `create_model` may set; `maps` and `remat` only where the network honours them."""
    head_names: ClassVar[tuple[str, ...]] = ("fc",)
    """Names of the last layer in reference state dicts, ours for writing first."""
    older_keys: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Regular expressions of keys in older published state dicts, and what stands for them today."""
    linear_layers: ClassVar[tuple[str, ...]] = ()
    """Paths of convolutions that are Linear in the reference."""
    maps_keeps_dropout: ClassVar[bool] = False
    """Whether the option "dropout" speaks of layers that are there with `maps`, too."""
    head_conv: ClassVar[bool] = False
    """The last layer is a 1x1 convolution in the reference, [k d 1 1]."""
    head_dropout: ClassVar[float] = 0.0
    """Dropout rate before the head in the reference."""
    pools_inside: ClassVar[bool] = False
    """Whether layers follow a global average pool inside the network, which `maps` leaves out."""
    auxiliary_heads: ClassVar[tuple[AuxiliaryHead, ...]] = ()
    """The classifiers on inner feature maps that the reference trains beside the last one."""

    @property
    def auxiliary_trained(self) -> tuple[AuxiliaryHead, ...]:
        """Those of `auxiliary_heads` that this network trains: all or none."""
        return self.auxiliary_heads if self.auxiliary else ()

    def last_layers(self, train: bool) -> tuple[nn.Module, ...]:
        """Return the last layers of the auxiliary classifiers that a call computes: in training, or to make variables.

        Each belongs into a module of its classifier's name, which sows its logits [n k] as the intermediate `logits`.
        """
        wanted = train or self.is_initializing()
        return tuple(layer.clone(parent=None, name=None) for layer in self.auxiliary) if wanted else ()

    def pool_inside(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
        """Return the mean over all positions of a map [n 1 1 c], or over every window, as `inner_pool` says."""
        return x.mean((1, 2), keepdims=True) if self.inner_pool is None else avg_pool(x, self.inner_pool, stride=1)

    def whole(self) -> "Backbone | None":
        """Return the elastic network of which this one is a part; None: it is no part."""
        return None

    def part(self, variables: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
        """Return this network's variables out of those of `whole`, both flat under a classifier's paths."""
        raise NotImplementedError

    def is_depthwise(self, path: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a parameter of the classifier, `backbone/conv1/kernel`, is a depthwise convolution's [h w 1 c].

        1x1 kernels are none; nor is the first convolution, which looks the same on grey images.
        """
        window = len(shape) == 4 and shape[2] == 1 and shape[0] * shape[1] > 1
        return window and path != f"backbone/{self.stem}/kernel"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One name of the table: a class and the fields that make it this network."""

    module: type[Backbone]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, found: Any) -> "Variant":
        """Return a variant as it is, and a backbone class as one without fields. Raises `TypeError` for the rest."""
        module = found.module if isinstance(found, Variant) else found
        if not (inspect.isclass(module) and issubclass(module, Backbone)):
            raise TypeError(f"it is {module!r} but must be a subclass of jaxclf.models.backbone.Backbone")
        if missing := [name for name in NEEDED if not hasattr(module, name)]:
            raise TypeError(f"{module.__name__} must define {', '.join(missing)}")
        return found if isinstance(found, Variant) else cls(module)
