"""The registry: every backbone by name, one line per family.

A backbone is a Linen module: images [n h w c] -> feature map [n i j k], no pooling, no head. It has `features` (k),
`options`, the fields that `create_model` may set, `head_names`, what reference state dicts call the last layer,
`linear_layers`, names of convs that are Linear there, `stem`, the name of its first conv, and `image_size`, the side
of the images that it was designed for.
"""

import fnmatch
from typing import Any

import flax.linen as nn

from jaxclf.errors import UsageError, unknown
from jaxclf.models.backbones import (
    densenet,
    densenet_cifar,
    efficientnet_lite,
    lenet,
    mobilenet_v2,
    resnet,
    resnet_cifar,
    shufflenet_v2,
    vgg,
)

BACKBONES = {
    **lenet.VARIANTS,
    **resnet_cifar.VARIANTS,
    **densenet_cifar.VARIANTS,
    **vgg.VARIANTS,
    **resnet.VARIANTS,
    **densenet.VARIANTS,
    **mobilenet_v2.VARIANTS,
    **shufflenet_v2.VARIANTS,
    **efficientnet_lite.VARIANTS,
}


def list_models(pattern: str = "*") -> list[str]:
    """List the names of backbones that match a shell pattern, in natural order.

    >>> list_models("lenet*")
    ['lenet5', 'lenet5_sigmoid', 'lenet_like']
    """
    return [name for name in BACKBONES if fnmatch.fnmatchcase(name, pattern)]


def backbone_options(name: str) -> list[str]:
    """List the options that backbone `name` takes in `create_model`; an unknown name raises `UsageError`."""
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return list(BACKBONES[name].func.options)


def create_backbone(name: str, **options: Any) -> nn.Module:
    """Build a backbone; options that it does not take raise `UsageError`."""
    allowed = backbone_options(name)
    for option in options:
        if option == "remat" and option not in allowed:
            without = ", ".join(other for other in BACKBONES if "remat" not in backbone_options(other))
            raise UsageError(
                f"backbone {name} has no blocks or stages to compute again; remat is for all backbones but {without}"
            )
        if option not in allowed:
            takes = ", ".join(sorted(set(allowed) - {"seed"})) or "none"
            raise UsageError(f"backbone {name} has no option {option!r}; its options: {takes}")
    if options.get("maps") is not None and options["maps"] < 1:
        raise UsageError(f"maps is {options['maps']} but must be at least 1")
    if "maps_shortcut" in options and options.get("maps") is None:
        raise UsageError("maps_shortcut names the shortcut of the block that maps rebuilds; give maps as well")
    return BACKBONES[name](**options)
