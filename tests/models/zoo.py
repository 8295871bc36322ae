"""Which network of ours each reference network is: one table a family, whose records are golden/zoo/FAMILY.json."""

from typing import Any

ZOO: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet": {
        f"{name}_tv": (name, {})
        for name in ("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")
    },
    "inception_v3": {"inception_v3_tv": ("inception_v3", {})},
    "inception_v4": {"inception_v4_timm": ("inception_v4", {}), "inception_v4_zhulf": ("inception_v4_zhulf", {})},
    "inception_resnet": {
        "inception_resnet_v1_facenet": ("inception_resnet_v1", {}),
        "inception_resnet_v2_timm": ("inception_resnet_v2", {}),
        "inception_resnet_v2_zhulf": ("inception_resnet_v2_zhulf", {}),
    },
}
"""Family -> name of the reference (models.json) -> (backbone, options of `create_model`)."""
