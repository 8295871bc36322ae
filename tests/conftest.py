"""What all tests share: a compilation cache, strict promotion, checked shapes, and the golden reference networks."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

# Before jax is imported, which reads them once; subprocesses of tests inherit them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import beartype  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every annotated function of the package checks its arguments' and results' types, shapes included, when it is called
# (or traced). Only modules that are imported after this line: nothing may have imported them before.
assert not [name for name in sys.modules if name.split(".")[0] == "jaxclf"], "jaxclf was imported before the hook"
# An int passes for a float, as PEP 484 says and pyright allows. The hook takes its checker by name, hence the module.
checker: Any = ModuleType("jaxclf_type_checker")
checker.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
sys.modules["jaxclf_type_checker"] = checker
HOOK = jaxtyping.install_import_hook("jaxclf", "jaxclf_type_checker.check")


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """tests/golden/golden.py: the rule that fills a reference network with weights."""
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference() -> dict[str, dict[str, Any]]:
    """tests/golden/reference.json: the reference networks and what they answer."""
    return json.loads((GOLDEN / "reference.json").read_text())
