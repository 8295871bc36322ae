"""The table of backbones, one line a family; backbone.py has the contract."""

import fnmatch
from typing import Any

from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.backbones import (
    alexnet,
    bit,
    bninception,
    densenet,
    densenet_cifar,
    efficientnet,
    googlenet,
    hardnet,
    inception_resnet,
    inception_v3,
    inception_v4,
    lenet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    nfnet,
    nin,
    once_for_all,
    resnet,
    resnet_cifar,
    resnext_cifar,
    shufflenet_v2,
    squeezenet,
    vgg,
    wide_resnet_cifar,
)
from jaxclf.registry import Registry

OWN = {
    **lenet.VARIANTS,
    **resnet_cifar.VARIANTS,
    **wide_resnet_cifar.VARIANTS,
    **resnext_cifar.VARIANTS,
    **densenet_cifar.VARIANTS,
    **alexnet.VARIANTS,
    **nin.VARIANTS,
    **squeezenet.VARIANTS,
    **vgg.VARIANTS,
    **googlenet.VARIANTS,
    **bninception.VARIANTS,
    **resnet.VARIANTS,
    **densenet.VARIANTS,
    **mobilenet_v1.VARIANTS,
    **mobilenet_v2.VARIANTS,
    **mobilenet_v3.VARIANTS,
    **once_for_all.VARIANTS,
    **shufflenet_v2.VARIANTS,
    **inception_v3.VARIANTS,
    **inception_v4.VARIANTS,
    **inception_resnet.VARIANTS,
    **efficientnet.VARIANTS,
    **hardnet.VARIANTS,
    **bit.VARIANTS,
    **nfnet.VARIANTS,
}
BACKBONES = Registry("backbone", "jaxclf.backbones", OWN, Variant.of)


def list_models(pattern: str = "*") -> list[str]:
    """List the names of backbones that match a shell pattern: ours in natural order, then those of entry points.

    >>> list_models("lenet*")
    ['lenet5', 'lenet5_sigmoid', 'lenet_like']
    """
    return [name for name in BACKBONES.names() if fnmatch.fnmatchcase(name, pattern)]


def backbone_options(name: str) -> list[str]:
    """List the options that backbone `name` takes in `create_model`; an unknown name raises `UsageError`."""
    return list(BACKBONES.resolve(name).module.options)


def create_backbone(name: str, **options: Any) -> Backbone:
    """Build a backbone; options that it does not take raise `UsageError`."""
    allowed = backbone_options(name)
    for option in options:
        if option == "remat" and option not in allowed:
            without = ", ".join(other for other in OWN if "remat" not in backbone_options(other))
            raise UsageError(
                f"backbone {name} has no blocks or stages to compute again; remat is for all backbones but {without}"
            )
        if option not in allowed:
            takes = ", ".join(sorted(set(allowed) - {"seed"})) or "none"
            raise UsageError(f"backbone {name} has no option {option!r}; its options: {takes}")
    if options.get("maps") is not None and options["maps"] < 1:
        raise UsageError(f"maps is {options['maps']} but must be at least 1")
    if not 0 <= (rate := options.get("stochastic_depth", 0.0)) < 1:
        raise UsageError(f"stochastic_depth is {rate} but must be from 0 to below 1")
    if "maps_shortcut" in options and options.get("maps") is None:
        raise UsageError("maps_shortcut names the shortcut of the block that maps rebuilds; give maps as well")
    variant = BACKBONES.resolve(name)
    return variant.module(**{**variant.fields, **options})
