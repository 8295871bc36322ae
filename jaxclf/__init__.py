"""Image classification without a learned classifier layer, in JAX."""

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from jaxclf.config import Config
from jaxclf.errors import RunError, UsageError

if sys.platform == "win32":
    raise ImportError("jaxclf does not run on Windows: install it under WSL 2, on Linux or on macOS")

if TYPE_CHECKING:
    from jaxclf.models.attribution import attribute, class_maps
    from jaxclf.models.backbones import list_models
    from jaxclf.models.classifier import create_model
    from jaxclf.models.heads import head_matrix, list_heads
    from jaxclf.models.torch_weights import load_torch, to_torch, transfer_torch
    from jaxclf.tools.localisation import localise
    from jaxclf.training.evaluation import evaluate
    from jaxclf.training.loop import train

__all__ = [
    "Config",
    "RunError",
    "UsageError",
    "attribute",
    "class_maps",
    "create_model",
    "evaluate",
    "head_matrix",
    "list_heads",
    "list_models",
    "load_torch",
    "localise",
    "to_torch",
    "train",
    "transfer_torch",
]
__version__ = importlib.metadata.version("jaxclf")

HOMES = {
    "attribute": "models.attribution",
    "class_maps": "models.attribution",
    "create_model": "models.classifier",
    "evaluate": "training.evaluation",
    "head_matrix": "models.heads",
    "list_heads": "models.heads",
    "list_models": "models.backbones",
    "load_torch": "models.torch_weights",
    "localise": "tools.localisation",
    "to_torch": "models.torch_weights",
    "train": "training.loop",
    "transfer_torch": "models.torch_weights",
}
"""Modules of the names that need JAX, which takes seconds to import: they are imported at their first use."""


def __getattr__(name: str) -> Any:
    """Return a public name from its module."""
    if name not in HOMES:
        raise AttributeError(f"module 'jaxclf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxclf.{HOMES[name]}"), name)
