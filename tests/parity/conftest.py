"""torchvision for the tests that compare with it, wherever its wheel is installed beside any build of torch."""

import importlib
import importlib.util
from importlib.metadata import version
from typing import Any

import pytest

from benchmarks.input_pipeline import import_torchvision

collect_ignore = ["torch_twin.py", "pairs.py", "zoo_twins.py"]
"""Modules without tests, which pytest would import for their doctests, with PyTorch or without."""


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision 0.28, on a CPU build of torch too."""
    pytest.importorskip("torch", reason="the comparison with torchvision needs PyTorch")
    if importlib.util.find_spec("torchvision") is None or version("torchvision").split("+")[0] != "0.28.0":
        pytest.skip("needs torchvision 0.28.0 (pip install --no-deps torchvision==0.28.0)")
    return import_torchvision()


@pytest.fixture(scope="module")
def transforms(torchvision: Any) -> Any:
    """torchvision.transforms, with torch's generator from 0."""
    importlib.import_module("torch").manual_seed(0)
    return importlib.import_module("torchvision.transforms")
