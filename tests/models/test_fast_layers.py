"""Layers in other forms than XLA's: the same functions, with the same gradients, and where each is compiled."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.models import fast_layers
from jaxclf.models.fast_layers import convolution
from tests.tiers import quick

FLAX: dict[str, Any] = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "precision": None,
}
"""Arguments that Flax's Conv gives to the function that convolves for it."""


def with_gradients(function: Callable[..., Any], *given: Any) -> tuple[Any, ...]:
    """Return what a function gives, and its gradients with a cotangent that differs everywhere."""
    y, pull = jax.vjp(function, *given)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).astype(y.dtype).reshape(y.shape))


def answer(convolve: Any, x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any) -> Any:
    """Return a depthwise convolution and its gradients."""
    groups = x.shape[-1]
    return with_gradients(
        lambda x, kernel: convolve(x, kernel, strides, padding, feature_group_count=groups, **FLAX), x, kernel
    )


def assert_equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Hold float64 arrays against each other, to 1e-13 of the largest number."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float64
        assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()


@pytest.mark.parametrize(
    ("size", "taps", "strides", "padding"),
    quick(
        [
            ((8, 8), (3, 3), (1, 1), [(1, 1), (1, 1)]),
            ((9, 8), (3, 3), (2, 2), [(1, 1), (1, 1)]),
            ((9, 8), (5, 5), (2, 2), [(1, 2), (2, 1)]),
            ((7, 11), (3, 5), (3, 1), [(0, 0), (2, 0)]),
            ((1, 1), (3, 3), (1, 1), [(1, 1), (1, 1)]),
        ],
        ((9, 8), (5, 5), (2, 2), [(1, 2), (2, 1)]),
    ),
)
def test_a_depthwise_convolution_is_xlas_with_its_gradients(
    size: tuple[int, int], taps: tuple[int, int], strides: tuple[int, int], padding: list[tuple[int, int]]
) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=(2, *size, 6))), jnp.asarray(rng.normal(size=(*taps, 1, 6)))
        found = jax.jit(lambda x, kernel: answer(convolution, x, kernel, strides, padding))(x, kernel)
        expected = answer(jax.lax.conv_general_dilated, x, kernel, strides, padding)
    assert_equal(found, expected)


def test_filters_that_see_two_channels_each_are_no_depthwise_convolution() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 8, 8, 6), (3, 3, 2, 3)))
    found, expected = (
        convolve(x, kernel, (1, 1), [(1, 1), (1, 1)], feature_group_count=3, **FLAX)
        for convolve in (convolution, jax.lax.conv_general_dilated)
    )
    assert np.array_equal(found, expected)


def test_a_depthwise_convolution_sums_bfloat16_in_float32() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, 8, 8, 6), (3, 3, 1, 6)))
    padding = [(1, 1), (1, 1)]
    found = convolution(x, kernel, (1, 1), padding, feature_group_count=6, **FLAX)
    exact = convolution(
        x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), padding, feature_group_count=6, **FLAX
    )
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(found, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "convolutions"), [("cuda", 3), ("rocm", 3), ("tpu", 3), ("cpu", 0)])
def test_only_a_cpu_computes_a_depthwise_convolution_as_shifted_products(platform: str, convolutions: int) -> None:
    """The passes elsewhere are three convolutions, with nothing sliced."""
    arguments = (jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 1, 6)))
    step = jax.jit(lambda x, kernel: answer(convolution, x, kernel, (1, 1), [(1, 1), (1, 1)]))
    program = step.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions
    assert ("stablehlo.slice" in program) == (platform == "cpu")


CONVOLUTIONS = [
    ((23, 30), 3, 7, 2, [(3, 3), (3, 3)]),
    ((32, 32), 3, 3, 2, [(1, 1), (1, 1)]),
    ((33, 35), 1, 5, 2, [(0, 0), (0, 0)]),
    ((32, 33), 4, 3, 2, [(0, 1), (1, 2)]),
    ((67, 64), 3, 11, 4, [(2, 2), (2, 2)]),
]


@pytest.mark.parametrize(("size", "channels", "side", "stride", "padding"), quick(CONVOLUTIONS, CONVOLUTIONS[0]))
def test_a_convolution_of_what_steps_hold_is_xlas_with_its_gradients(
    size: tuple[int, int], channels: int, side: int, stride: int, padding: list[tuple[int, int]]
) -> None:
    rng, options = np.random.default_rng(0), {**FLAX, "feature_group_count": 1}
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(rng.normal(size=one)) for one in ((2, *size, channels), (side, side, channels, 5)))
        found, expected = (
            jax.jit(lambda *given, one=one: with_gradients(one, *given))(x, kernel)
            for one in (
                lambda x, kernel: fast_layers.space_to_depth(x, kernel, stride, padding, options),
                lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **options),
            )
        )
    assert_equal(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_xlas_with_its_gradients_and_on_a_cpu_a_product(stride: int) -> None:
    rng = np.random.default_rng(0)
    given = (stride, stride), [(0, 0), (0, 0)]
    with jax.enable_x64(True):
        inputs = [jnp.asarray(rng.normal(size=shape)) for shape in ((2, 7, 8, 6), (1, 1, 6, 5))]
        ours, plain = (
            functools.partial(with_gradients, lambda x, kernel, one=one: one(x, kernel, *given, **FLAX))
            for one in (convolution, jax.lax.conv_general_dilated)
        )
        assert_equal(jax.jit(ours)(*inputs), plain(*inputs))
    for platform, products in (("cpu", 3), ("cuda", 0), ("tpu", 0)):
        lines = lowered(ours, platform, *(one.astype(np.float32) for one in inputs))
        assert sum("stablehlo.dot_general" in line for line in lines) == products
        assert sum("stablehlo.convolution" in line for line in lines) == 3 - products


@pytest.mark.parametrize(("platform", "strides"), [("cuda", 0), ("rocm", 1), ("tpu", 1), ("cpu", 1)])
def test_only_an_nvidia_gpu_convolves_images_without_a_stride(platform: str, strides: int) -> None:
    given = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 6))
    lines = lowered(lambda x, kernel: convolution(x, kernel, (2, 2), [(1, 1), (1, 1)], **FLAX), platform, *given)
    assert [("stride = [2, 2]" in line) for line in lines if "stablehlo.convolution" in line] == [bool(strides)]


@pytest.mark.parametrize("shape", [(8, 8, 5), (8, 8, 3)])
def test_other_convolutions_are_the_same_everywhere(shape: tuple[int, ...]) -> None:
    """Of more channels than an image's, and without a stride."""
    strides = (2, 2) if shape[-1] > 4 else (1, 1)
    given = jnp.ones((2, *shape)), jnp.ones((3, 3, shape[-1], 6))
    programs = {
        tuple(lowered(lambda x, kernel: convolution(x, kernel, strides, [(1, 1)] * 2, **FLAX), platform, *given))
        for platform in ("cpu", "cuda", "tpu")
    }
    assert len(programs) == 1


@pytest.mark.parametrize(("platform", "times"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_only_a_cpu_stores_what_a_convolution_reads_and_only_to_differentiate_it(platform: str, times: int) -> None:
    given = jnp.ones((2, 8, 8, 5)), jnp.ones((3, 3, 5, 6))
    ours, plain = (
        functools.partial(with_gradients, lambda x, kernel, one=one: one(x, kernel, (1, 1), [(1, 1)] * 2, **FLAX))
        for one in (convolution, jax.lax.conv_general_dilated)
    )
    lines = lowered(ours, platform, *given)
    assert sum("stablehlo.popcnt" in line for line in lines) == times
    forward = lowered(lambda x, kernel: convolution(x, kernel, (1, 1), [(1, 1)] * 2, **FLAX), platform, *given)
    assert not any("stablehlo.popcnt" in line for line in forward)
    found, expected = (
        [operation(line) for line in one if "stablehlo.convolution" in line]
        for one in (lines, lowered(plain, platform, *given))
    )
    assert found == expected
    assert len(found) == 3


def operation(line: str) -> str:
    """Return a line of a program without the names of values."""
    return re.sub(r"%\w+", "%", line)


def test_a_stored_input_changes_no_derivative() -> None:
    """Forward, backward, and the second one, in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        given = [jnp.asarray(rng.normal(size=shape)) for shape in ((2, 6, 6, 3), (3, 3, 3, 4))]
        derivatives = []
        for convolve in (convolution, jax.lax.conv_general_dilated):

            def total(x: jax.Array, kernel: jax.Array, convolve: Any = convolve) -> jax.Array:
                return jnp.square(convolve(x, kernel, (2, 2), [(1, 1)] * 2, **FLAX)).sum()

            gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
            forward = jax.jit(lambda *given, total=total: jax.jvp(total, given, given))
            second = jax.jit(lambda *given, gradients=gradients: jax.jvp(gradients, given, given)[1])
            derivatives.append((*gradients(*given), *forward(*given), *second(*given)))
        assert_equal(*derivatives)


def lowered(function: Callable[..., Any], platform: str, *given: jax.Array) -> list[str]:
    """Return the lines of a platform's program."""
    return jax.jit(function).trace(*given).lower(lowering_platforms=(platform,)).as_text().splitlines()


def normed(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    return fast_layers.batch_norm(x, weight, bias, 1e-5)[0]


def plain_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalise as PyTorch's documentation writes it, with the gradient that JAX derives."""
    mean = x.mean((0, 1, 2), keepdims=True)
    var = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * weight.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


def test_a_batch_is_normalised_with_the_gradient_that_jax_derives() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        given = [jnp.asarray(rng.normal(size=shape) + 2) for shape in ((4, 5, 6, 3), (3,), (3,))]
        found = with_gradients(normed, *given)
        assert_equal(found, with_gradients(plain_norm, *given))
        _, mean, var = fast_layers.batch_norm(given[0], given[1], given[2], 1e-5)
        np.testing.assert_allclose(mean, np.mean(given[0], (0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(var, np.var(given[0], (0, 1, 2)), rtol=1e-12)


def test_a_gradient_sums_to_nothing_over_the_batch_however_large_the_mean() -> None:
    """Rounding of the mean must not enter: a convolution below would get it times its input."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8, 8, 4)) + 300, jnp.float32)
    dy, ones = 10 * (x - 300) + rng.normal(size=x.shape), jnp.ones(4)
    dx = jax.vjp(lambda x: fast_layers.batch_norm(x, ones, ones, 1e-5)[0], x)[1](dy.astype(jnp.float32))[0]
    dx = np.asarray(dx, np.float64)
    assert np.abs(dx.sum((0, 1, 2)) / np.abs(dx).sum((0, 1, 2))).max() < 3e-6  # without that 1e-4


@pytest.mark.parametrize(("platform", "scatters"), [("cuda", 0), ("cpu", 0), ("tpu", 1), ("rocm", 1)])
def test_where_a_pools_gradient_is_gathered(platform: str, scatters: int) -> None:
    lines = lowered(
        lambda x: jax.vjp(lambda x: fast_layers.max_pool(x, 2, 2, ((0, 0), (0, 0))), x)[1](x[:, :4, :4])[0],
        platform,
        jnp.ones((2, 8, 8, 3)),
    )
    assert sum("select_and_scatter" in line for line in lines) == scatters


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_stored_is_the_array_whatever_lies_beside(value: float, dtype: Any) -> None:
    with jax.enable_x64(True):
        x = jnp.arange(6, dtype=dtype)
        assert np.array_equal(jax.jit(fast_layers.stored)(x, jnp.full(2, value, dtype)), x)


@pytest.mark.parametrize(("platform", "times"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_only_a_cpu_stores_a_batchs_gradient(platform: str, times: int) -> None:
    def step(*given: jax.Array) -> Any:
        return with_gradients(normed, *given)

    lines = lowered(step, platform, jnp.ones((2, 3, 3, 4)), jnp.ones(4), jnp.ones(4))
    assert sum("stablehlo.popcnt" in line for line in lines) == times


POOLS = [(3, 2, 1, (9, 10)), (2, 2, 0, (8, 8)), (3, 1, 1, (9, 9)), (3, 2, 0, (11, 12)), (2, 3, 0, (11, 12))]


@pytest.mark.parametrize(("window", "stride", "padding", "size"), quick(POOLS, POOLS[0]))
def test_a_pools_gradient_goes_to_the_first_maximum(window: int, stride: int, padding: int, size: Any) -> None:
    """As XLA's does, whose rule is torch's; rounded numbers are often equal."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).round()
    sides: Any = ((padding, padding), (padding, padding))

    def native(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (window, window), (stride, stride), sides)

    with jax.enable_x64(True):
        found = with_gradients(lambda x: fast_layers.max_pool(x, window, stride, sides), jnp.asarray(x))
        assert_equal(found, with_gradients(native, jnp.asarray(x)))
