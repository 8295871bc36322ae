"""backbone -> average pool -> head, and the one function that couples head and backbone."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxclf.backbones import backbone_options, create_backbone
from jaxclf.config import Config
from jaxclf.heads import Head, create_head


class Classifier(nn.Module):
    """images [n h w c], float32 -> logits [n k]."""

    backbone: nn.Module
    head: Head

    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n k"]:
        """Return logits. `train` uses batch statistics; make `batch_stats` mutable then."""
        return self.head(self.backbone(images, train).mean((1, 2)))

    def class_maps(self, images: Float[Array, "n h w c"]) -> Float[Array, "n i j k"]:
        """Return logits at every position of the last feature map; their mean over (i, j) is the logits."""
        return self.head(self.backbone(images, False))


def create_model(backbone: str, *, num_classes: int, head: str = "learned", **options: Any) -> Classifier:
    """Build a classifier: a Linen module from images [n h w c] float32 to logits [n k].

    `backbone` and `head` are names (`list_models()`, `list_heads()`). Options of every head: `bias` (bool, None for
    the head's habit) and `seed` (of random fixed matrices). Options of backbones: `maps` ends it in that many
    channels, `shortcut` and `maps_shortcut` choose shortcuts of CIFAR ResNets.

    Raises `UsageError` (a ValueError) for unknown names and options and for heads that are impossible here; warns
    where a head cannot separate all classes. `model.init` and `model.apply` are Linen's.
    """
    taken = {name: options.pop(name, default) for name, default in (("bias", None), ("seed", 0))}
    if "seed" in backbone_options(backbone):
        options["seed"] = taken["seed"]
    body = create_backbone(backbone, **options)
    return Classifier(body, create_head(head, num_classes, body.features, **taken))


def build(config: Config, num_classes: int, *, seed: int) -> Classifier:
    """Build the classifier of a config for a data set of `num_classes`; `seed` draws its random fixed matrices."""
    model = config.model
    return create_model(model.backbone, num_classes=num_classes, head=model.head, seed=seed, **model.options())
