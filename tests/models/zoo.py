"""Which network of ours each reference network is: one table a family, whose records are golden/zoo/FAMILY.json."""

from typing import Any

ZOO: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet": {
        f"{name}_tv": (name, {})
        for name in ("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")
    },
    "resnet_cifar": {
        "resnet32_cifar100_bearpaw": ("resnet32_bearpaw", {}),
        "resnet_tutorial_seed003": ("resnet_tutorial", {}),
    },
    "wide_resnet_cifar": {
        f"{name}_cifar{classes}": (name, {}) for name in ("wrn40_2", "wrn28_10") for classes in (10, 100)
    },
    "resnext_cifar": {f"resnext29_8x64d_cifar{classes}": ("resnext29_8x64d", {}) for classes in (10, 100)},
    "se_resnet": {
        "se_resnet50_moskomule": ("se_resnet50", {}),
        "se_resnet50_timm": ("seresnet50", {}),
        "se_resnet50_legacy_timm": ("legacy_seresnet50", {}),
    },
    "alexnet": {"alexnet_tv": ("alexnet", {}), "alexnet_seed001": ("alexnet_1024", {})},
    "nin": {f"nin_cifar{classes}": ("nin", {"head": "identity", "maps": classes}) for classes in (10, 100)},
    "squeezenet": {
        f"{name}_tv": (name, {"head": "identity", "maps": 1000}) for name in ("squeezenet1_0", "squeezenet1_1")
    },
    "googlenet": {
        f"{reference}{'_aux' if auxiliary else ''}": (name, {"auxiliary": auxiliary})
        for reference, name in (
            ("googlenet_tv", "googlenet"),
            ("googlenet_tv_5x5", "googlenet_5x5"),
            ("googlenet_paper", "googlenet_paper"),
        )
        for auxiliary in (False, True)
    },
    "bninception": {"bninception_cadene": ("bninception", {})},
    "densenet_hoya": {
        f"densenetbc{depth}_{growth}_hoya": (f"densenet_bc_{depth}_{growth}_hoya", {})
        for depth, growth in ((100, 12), (190, 40), (250, 24))
    },
    "mobilenet_v1": {"mobilenet_v1_wjc": ("mobilenet_v1", {}), "mobilenet_v1_timm": ("mobilenet_v1_timm", {})},
    "mobilenet_v2": {"mobilenet_v2_tonylins": ("mobilenet_v2_tonylins", {})},
    "mobilenet_v3": {f"mobilenet_v3_{size}_tv": (f"mobilenet_v3_{size}", {}) for size in ("large", "small")},
    "once_for_all": {
        f"ofa_mbv3_w{width}_{kind}": (f"ofa_mbv3_w{width.replace('.', '_')}", options)
        for width in ("1.0", "1.2")
        for kind, options in (
            ("supernet", {}),
            ("max", {"kernels": (7,)}),
            ("min", {"kernels": (3,), "expansions": (3,), "depths": (2,)}),
        )
    },
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
    "hardnet": {name: (name, {}) for name in ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")},
    "bit": {
        name: (name, {}) for name in ("bit_r50x1", "bit_r50x3", "bit_r101x1", "bit_r101x3", "bit_r152x2", "bit_r152x4")
    },
    "nfnet": {f"{name}_timm": (name, {}) for name in ("dm_nfnet_f0", "nfnet_f0")},
    "inception_v3": {
        "inception_v3_tv": ("inception_v3", {"auxiliary": False}),
        "inception_v3_tv_aux": ("inception_v3", {"auxiliary": True}),
    },
    "inception_v4": {"inception_v4_timm": ("inception_v4", {}), "inception_v4_zhulf": ("inception_v4_zhulf", {})},
    "inception_resnet": {
        "inception_resnet_v1_facenet": ("inception_resnet_v1", {}),
        "inception_resnet_v2_timm": ("inception_resnet_v2", {}),
        "inception_resnet_v2_zhulf": ("inception_resnet_v2_zhulf", {}),
    },
}
"""Family -> name of the reference (models.json) -> (backbone, options of `create_model`)."""
