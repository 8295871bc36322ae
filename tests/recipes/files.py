"""The recipes of configs/, as the command line loads them: by their path."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from jaxclf.config import Config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@cache
def recipe(file: str) -> Any:
    """Load a recipe by its path, as the command line does."""
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get(file: str, **axes: Any) -> Config:
    """Return a recipe's config."""
    return recipe(file).get_config(**axes)
