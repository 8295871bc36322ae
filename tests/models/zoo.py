"""Which network of ours each reference network is: one table a family, whose records are golden/zoo/FAMILY.json."""

from typing import Any

ZOO: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet": {
        f"{name}_tv": (name, {})
        for name in ("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")
    },
    "hardnet": {name: (name, {}) for name in ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")},
    "bit": {
        name: (name, {}) for name in ("bit_r50x1", "bit_r50x3", "bit_r101x1", "bit_r101x3", "bit_r152x2", "bit_r152x4")
    },
    "nfnet": {f"{name}_timm": (name, {}) for name in ("dm_nfnet_f0", "nfnet_f0")},
}
"""Family -> name of the reference (models.json) -> (backbone, options of `create_model`)."""
UNANSWERED = ("bit_r101x3", "bit_r152x4")
"""References without logits, which are too large: their tensors and operations alone are known."""
