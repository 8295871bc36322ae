"""Image classification without a learned classifier layer, in JAX."""

import importlib.metadata

from jaxclf.config import Config
from jaxclf.errors import RunError, UsageError
from jaxclf.models.backbones import list_models
from jaxclf.models.classifier import create_model
from jaxclf.models.heads import head_matrix, list_heads
from jaxclf.models.torch_weights import load_torch, to_torch, transfer_torch
from jaxclf.training.evaluation import evaluate
from jaxclf.training.loop import train

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
