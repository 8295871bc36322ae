"""Which network of ours each reference network is: one table a family, whose records are golden/zoo/FAMILY.json."""

from typing import Any

ZOO: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet": {
        f"{name}_tv": (name, {})
        for name in ("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")
    },
    "mobilenet_v1": {"mobilenet_v1_wjc": ("mobilenet_v1", {}), "mobilenet_v1_timm": ("mobilenet_v1_timm", {})},
    "mobilenet_v2": {"mobilenet_v2_tonylins": ("mobilenet_v2_tonylins", {})},
    "mobilenet_v3": {f"mobilenet_v3_{size}_tv": (f"mobilenet_v3_{size}", {}) for size in ("large", "small")},
    "shufflenet_v2": {
        f"shufflenet_v2_{size}x_megvii": (f"shufflenet_v2_x{size.replace('.', '_')}_megvii", {"bias": False})
        for size in ("0.5", "1.0", "1.5", "2.0")
    },
    "efficientnet": {
        **{f"efficientnet_b{number}_tv": (f"efficientnet_b{number}", {}) for number in range(8)},
        "efficientnet_b0_lukemelas": ("efficientnet_b0_lukemelas", {}),
        "efficientnet_lite0_timm": ("efficientnet_lite0_timm", {}),
        "tf_efficientnet_lite0_timm": ("tf_efficientnet_lite0", {}),
        # Of these, efficientnet_lite12.json has tensors and what the published weights answer, no logits of the rule.
        "efficientnet_lite1": ("efficientnet_lite1", {}),
        "efficientnet_lite2": ("efficientnet_lite2", {}),
    },
}
"""Family -> name of the reference (models.json) -> (backbone, options of `create_model`)."""
