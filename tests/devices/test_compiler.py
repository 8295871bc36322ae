"""XLA's options for a platform: who gets them, and what happens where they do not fit."""

import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from jaxclf.devices import compiler
from jaxclf.training import parallel, step

OPTION = "xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture(autouse=True)
def unknown_options() -> Iterator[None]:
    """Look the options up anew in each of these tests, and after them."""
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


def test_this_jaxlib_takes_the_options_of_a_cpu() -> None:
    with warnings.catch_warnings(action="error"):
        assert compiler.options() == {OPTION: "LIBRARY_FUSION_TYPE_REDUCE"}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_get_none(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compiler.options() is None


def test_a_flag_of_the_user_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--{OPTION}=individual_dot")
    assert compiler.options() is None


def test_an_option_that_jaxlib_knows_no_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_cpu_gone": "1"})
    with pytest.warns(UserWarning, match=r"takes no xla_cpu_gone: convolutions are slower \(.*'xla_cpu_gone'\)"):
        assert compiler.options() is None
    assert compiler.jit(lambda x: x + 1)(jnp.ones(())) == 2


def test_what_is_compiled_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "options", lambda: {"xla_cpu_gone": "1"})
    function = compiler.jit(lambda x, count: x * count, static_argnums=1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_gone"):
        function(jnp.ones(2), 3)


@pytest.mark.parametrize(
    "function",
    [parallel._take_steps, parallel._recalibrate, step.eval_step, step.feature_step],
    ids=lambda one: one.__name__,
)
def test_training_and_evaluation_are_compiled_so(function: object) -> None:
    assert isinstance(function, compiler.jit)
