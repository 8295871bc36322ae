"""torchvision for the tests that compare with it, wherever its wheel is installed beside any build of torch."""

import importlib.util
from importlib.metadata import version
from typing import Any

import pytest

collect_ignore = ["torch_twin.py"]  # a program without tests, which imports PyTorch

collect_ignore = ["torch_twin.py"]
"""A program, which pytest would import for its doctests, with PyTorch or without."""


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision 0.28, on a CPU build of torch too."""
    torch: Any = pytest.importorskip("torch", reason="the comparison with torchvision needs PyTorch")
    if importlib.util.find_spec("torchvision") is None or version("torchvision").split("+")[0] != "0.28.0":
        pytest.skip("needs torchvision 0.28.0 (pip install --no-deps torchvision==0.28.0)")
    # The PyPI wheel's C++ part loads under CUDA builds of torch alone. The networks need none of its operators, but
    # importing the package registers Python functions for these, so they must be declared, with their signatures.
    declare_operators(torch)
    return importlib.import_module("torchvision")


def declare_operators(torch: Any) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    boxes, size = "Tensor input, Tensor rois, float spatial_scale", "SymInt pooled_height, SymInt pooled_width"
    back = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
    place = f"float spatial_scale, {size}"
    deform = ", ".join(
        f"SymInt {name}"
        for name in "stride_h stride_w pad_h pad_w dilation_h dilation_w groups offset_groups".split()  # noqa: SIM905
    )
    nms = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    conv = f"Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {deform}, bool use_mask"
    aligned = f"{boxes}, {size}, int sampling_ratio, bool aligned"
    signatures = {
        **{"nms": nms, "qnms": nms},
        **{"roi_align": f"({aligned}) -> Tensor", "qroi_align": f"({aligned}) -> Tensor"},
        "_roi_align_backward": f"(Tensor grad, Tensor rois, {place}, {back}, int sampling_ratio, "
        "bool aligned) -> Tensor",
        "roi_pool": f"({boxes}, {size}) -> (Tensor, Tensor)",
        "_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor argmax, {place}, {back}) -> Tensor",
        "ps_roi_align": f"({boxes}, {size}, int sampling_ratio) -> (Tensor, Tensor)",
        "_ps_roi_align_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {place}, int sampling_ratio, "
        f"{back}) -> Tensor",
        "ps_roi_pool": f"({boxes}, {size}) -> (Tensor, Tensor)",
        "_ps_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {place}, {back}) -> Tensor",
        "deform_conv2d": f"({conv}) -> Tensor",
        "_deform_conv2d_backward": f"(Tensor grad, {conv}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    }
    for name, signature in signatures.items():
        library.define(name + signature)
    KEPT.append(library)  # the declarations live as long as it does


KEPT: list[Any] = []
