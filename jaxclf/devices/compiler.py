"""`jit` for the programs that take the time: XLA's options for the platform that they run on."""

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}}
"""Options of XLA by platform.

On a CPU, YNNPACK computes sums alone. XLA's default gives it matrix products, too, and then compiles convolutions in a
slower form: a 3x3 one of 64 channels takes 2.4 times as long, its gradients included (benchmarks/layers.py).
"""

R = TypeVar("R")


@functools.cache
def options() -> dict[str, Any] | None:
    """Return the options for this process's default platform; None where it has none.

    One that XLA_FLAGS sets is left to it. Warns where this jaxlib knows one no more, and returns None.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = {name: value for name, value in OPTIONS.get(jax.default_backend(), {}).items() if name not in flags}
    if not chosen:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=chosen).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        version = importlib.metadata.version("jaxlib")
        warnings.warn(f"jaxlib {version} takes no {', '.join(chosen)}: convolutions are slower ({error})", stacklevel=2)
        return None
    return chosen


class jit(Generic[R]):
    """jax.jit of a function, with `options()`; not for calls inside of other jits, where JAX allows no options."""

    def __init__(self, function: Callable[..., R], **how: Any) -> None:
        """Compile nothing yet, and ask for no device; `how` is what jax.jit takes besides."""
        self._function, self._how = function, how
        functools.update_wrapper(self, function)

    @functools.cached_property
    def jitted(self) -> Any:
        """What jax.jit returns."""
        return jax.jit(self._function, compiler_options=options(), **self._how)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the compiled function."""
        return self.jitted(*args, **kwargs)
