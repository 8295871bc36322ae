"""Image classification without a learned classifier layer, in JAX."""

import importlib.metadata

from jaxclf.backbones import list_models
from jaxclf.classifier import create_model
from jaxclf.config import Config, RunError, UsageError
from jaxclf.heads import head_matrix, list_heads
from jaxclf.loop import evaluate, train
from jaxclf.torch_weights import load_torch, to_torch, transfer_torch

__all__ = [
    "Config",
    "RunError",
    "UsageError",
    "create_model",
    "evaluate",
    "head_matrix",
    "list_heads",
    "list_models",
    "load_torch",
    "to_torch",
    "train",
    "transfer_torch",
]
__version__ = importlib.metadata.version("jaxclf")
