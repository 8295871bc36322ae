"""backbone -> pool -> head, and the one function that couples head and backbone."""

import typing
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.config import Config, Remat
from jaxclf.errors import UsageError, unknown
from jaxclf.models.backbone import AuxiliaryHead, Backbone
from jaxclf.models.backbones import BACKBONES, OWN, backbone_options, create_backbone
from jaxclf.models.heads import Head, create_head
from jaxclf.models.pooling import Pool, average, create_pool

Dtype = Literal["float32", "bfloat16"]
HEAD_OPTIONS = (
    "head_normalise",
    "head_scale",
    "head_neck",
    "head_embed",
    "head_shuffle",
    "head_assign",
    "head_momentum",
    "head_apply",
)
"""Options of linear heads, as a config names them."""


class Classifier(nn.Module):
    """images [n h w c], float32 -> logits [n k], float32 whatever `dtype` is."""

    backbone: Backbone
    head: Head
    pool: Pool = average
    relu_before_pool: bool = False
    dropout: float = 0.0
    """Rate before the head, in training."""
    freeze_statistics: bool = False
    """Let BatchNorm use its running statistics in training, too, and leave them."""
    dtype: Dtype = "float32"
    """Type that every layer computes in; parameters, and what BatchNorm computes, are float32 in any case."""

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n k"]:
        """Return logits.

        `train` uses batch statistics and dropout; make `batch_stats` mutable then, and give an rng named "dropout"
        where the rate is not 0.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        features = self._features(images, train and not self.freeze_statistics)
        if self.head.before_pool:
            return self._widen(self.pool(self._rectify(self.head(drop(features)))))
        return self._widen(self.head(drop(self.pool(self._rectify(features)))))

    def logits_and_features(self, images: Float[Array, "n h w c"]) -> tuple[Float[Array, "n k"], Float[Array, "n d"]]:
        """Return the logits of an evaluation and the pooled features that the head makes them of, both float32.

        Raises `UsageError` for a head that stands before the pool: it takes no vector.
        """
        if self.head.before_pool:
            raise UsageError(f"{type(self.head).__name__} stands before the pool, so there are no pooled features")
        features = self.pool(self._rectify(self._features(images, False)))
        return self._widen(self.head(features)), self._widen(features)

    def class_maps(self, images: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Return logits at every position of the last feature map (of the 3x3 conv's, under that head).

        Under the average pool, the default, their mean over (i, j) is the logits; under another pool it is not.
        """
        features = self._features(images, False)
        if self.head.before_pool:
            return self._widen(self._rectify(self.head(features)))
        return self._widen(self.head(self._rectify(features)))

    def _features(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n i j d"]:
        """Compute the feature map in `dtype`: layers follow their input (`as_input`), so the images alone are cast."""
        if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            raise UsageError(f"images have the shape {images.shape}, channels first; they must be NHWC, channels last")
        return self.backbone(images if self.dtype == "float32" else images.astype(self.dtype), train)

    def _widen(self, logits: Float[Array, "n *ij k"]) -> Float[Array, "n *ij k"]:
        return logits if self.dtype == "float32" else logits.astype(jnp.float32)

    def _rectify(self, x: Float[Array, "n i j d"]) -> Float[Array, "n i j d"]:
        return jax.nn.relu(x) if self.relu_before_pool else x


def create_model(
    backbone: str,
    *,
    num_classes: int,
    head: str = "learned",
    pool: str = "average",
    relu_before_pool: bool = False,
    dropout: float | None = None,
    freeze_statistics: bool = False,
    auxiliary: bool | None = None,
    remat: str = "none",
    dtype: Dtype = "float32",
    **options: Any,
) -> Classifier:
    """Build a classifier: a Linen module from images [n h w c] float32 to logits [n k].

    `backbone` and `head` are names (`list_models()`, `list_heads()`). Options of every head: `bias` (bool, None for the
    head's habit) and `seed` (of random fixed matrices); of linear ones: `head_normalise`, `head_scale`, `head_neck`,
    `head_embed`, `head_shuffle`, `head_assign`, `head_momentum` and `head_apply` (`heads.create_head` says of which,
    and what they do). Options of backbones: `maps` ends it in that many channels, `shortcut` and `maps_shortcut` choose
    shortcuts of CIFAR ResNets. `pool` is "average", "max", "power" (option `pool_power`, 2) or "attention"
    (`pool_units`, 32); `relu_before_pool` puts a ReLU before it. The head "conv3x3" stands before the pool. `dropout`
    is the rate before the head, or of the layers that a family has inside (its option "dropout", as VGG after fc6 and
    fc7); None is the backbone's own, and none where `maps` rebuilds it. `freeze_statistics` lets BatchNorm use its
    running statistics in training, too, and leave them. `auxiliary` trains the classifiers on inner maps that the
    backbone's reference has (GoogLeNet, Inception v3), each with a head of the same kind, and evaluation leaves them
    out; None: where there are such, and BatchNorm is not frozen. `remat` "block" or "stage" computes the inside of the
    backbone's blocks or stages again in the backward pass instead of storing it; no number changes. Under `dtype`
    "bfloat16" all but BatchNorm computes in that type; parameters and logits are float32.

    Raises `UsageError` (a ValueError) for unknown names and options and for heads that are impossible here; warns
    where a head cannot separate all classes. `model.init` and `model.apply` are Linen's.
    """
    if remat not in typing.get_args(Remat):
        raise unknown("remat", remat, typing.get_args(Remat))
    if dtype not in typing.get_args(Dtype):
        raise unknown("dtype", dtype, typing.get_args(Dtype))
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"dropout is {dropout} but must be from 0 to below 1")
    head_options = {name: options.pop(name, default) for name, default in (("bias", None), ("seed", 0))}
    head_options |= {name.removeprefix("head_"): options.pop(name) for name in HEAD_OPTIONS if name in options}
    pool_options = {name: options.pop(name, None) for name in ("pool_power", "pool_units")}
    allowed, rebuilt = backbone_options(backbone), options.get("maps") is not None
    if "seed" in allowed:
        options["seed"] = head_options["seed"]
    options |= {} if remat == "none" else {"remat": remat}
    body = create_backbone(backbone, **options)
    if dropout is not None and "dropout" in allowed and (body.maps_keeps_dropout or not rebuilt):
        body, dropout = body.clone(dropout=dropout), 0.0
    if heads := _auxiliary(backbone, body, auxiliary, freeze_statistics):
        made = [create_head(head, num_classes, one.features, **head_options) for one in heads]
        if made[0].moves:
            raise UsageError(f"head {head} moves in training, which auxiliary classifiers cannot; give auxiliary=False")
        body = body.clone(auxiliary=tuple(made))
    own: float = 0.0 if rebuilt else body.head_dropout
    return Classifier(
        backbone=body,
        head=create_head(head, num_classes, body.features, **head_options),
        pool=create_pool(pool, **pool_options),
        relu_before_pool=relu_before_pool,
        dropout=own if dropout is None else dropout,
        freeze_statistics=freeze_statistics,
        dtype=dtype,
    )


def _auxiliary(name: str, body: Backbone, wanted: bool | None, frozen: bool) -> tuple[AuxiliaryHead, ...]:
    """Return the auxiliary classifiers that a model trains."""
    if wanted and not body.auxiliary_heads:
        able = ", ".join(other for other in OWN if BACKBONES.resolve(other).module.auxiliary_heads)
        raise UsageError(f"backbone {name} has no auxiliary classifiers; backbones that do: {able}")
    if wanted and frozen:
        raise UsageError("freeze_statistics evaluates the backbone in training, so auxiliary must be False")
    return () if wanted is False or frozen else body.auxiliary_heads


def build(config: Config, num_classes: int, *, seed: int) -> Classifier:
    """Build the classifier of a config for a data set of `num_classes`; `seed` draws its random fixed matrices."""
    model = config.model
    options = {"seed": seed, "remat": model.remat, "dtype": model.dtype, **model.options()}
    options |= {"freeze_statistics": model.freeze_statistics}
    return create_model(model.backbone, num_classes=num_classes, head=model.head, **options)
