"""Pools: their values, their gradients where a power has none, and what is refused."""

import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import ModelConfig
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.pooling import POOLS, Power, create_pool
from tests.models.drawn import drawn
from tests.tiers import quick


def maps(*values: float) -> jax.Array:
    """One image, one channel, the values in a row of positions."""
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def test_config_names_the_pools_of_the_table() -> None:
    assert typing.get_args(typing.get_type_hints(ModelConfig)["pool"]) == tuple(POOLS)
    assert ModelConfig().pool == "average"


def test_pooled_values_of_four_positions() -> None:
    x = maps(0.0, 1.0, 4.0, 9.0)
    assert create_pool("average")(x).item() == 3.5
    assert create_pool("max")(x).item() == 9.0
    expected = {0.5: 2.25, 1.0: 3.5, 1.5: 9.0**0.0 * (36 / 4) ** (2 / 3), 2.0: (98 / 4) ** 0.5, 4.0: (6818 / 4) ** 0.25}
    for exponent, value in expected.items():
        assert create_pool("power", pool_power=exponent)(x).item() == pytest.approx(value, rel=1e-6)


def test_pools_keep_images_and_channels_apart() -> None:
    x = np.random.default_rng(0).random((2, 3, 5, 4)).astype(np.float32)
    for pool, expected in (
        ("average", x.mean((1, 2))),
        ("max", x.max((1, 2))),
        ("power", np.sqrt((x**2).mean((1, 2)))),  # 2 is the default power
    ):
        np.testing.assert_allclose(create_pool(pool)(jnp.asarray(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0, 4.0])
def test_the_power_pools_gradient_is_its_formula(exponent: float) -> None:
    x = np.array([0.5, 1.0, 4.0, 9.0])
    mean = (x**exponent).mean()
    expected = mean ** (1 / exponent - 1) * x ** (exponent - 1) / 4
    gradient = jax.grad(lambda x: Power(exponent)(x).sum())(maps(*x))
    np.testing.assert_allclose(gradient.reshape(-1), expected, rtol=2e-6)


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0, 1.5, 2.0, 4.0])
def test_the_power_pool_and_its_gradient_are_finite(exponent: float) -> None:
    for values in ((0.0, 0.0), (0.0, 4.0), (1e-30, 1e-38), (1e30, 3e30), (1e-38, 3e38), (-1.0, 2.0)):
        value, gradient = jax.value_and_grad(lambda x: Power(exponent)(x).sum())(maps(*values))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert 0 <= value <= max(values) * 1.001


def test_the_power_pool_takes_negative_values_as_zero() -> None:
    assert Power(0.5)(maps(-5.0, 4.0)).item() == pytest.approx(1.0)
    assert Power(2.0)(maps(-5.0, -4.0)).item() == 0.0


def test_soft_attention_is_a_softmax_over_positions() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    pool: Any = create_pool("attention", pool_units=7)
    variables = pool.init(jax.random.key(0), jnp.asarray(x))
    first, second = (variables["params"][name] for name in ("attention_0", "attention_2"))
    assert [first["kernel"].shape, first["bias"].shape] == [(5, 7), (7,)]
    assert [second["kernel"].shape, second["bias"].shape] == [(7, 1), (1,)]
    assert np.abs(first["kernel"]).max() <= 5**-0.5
    assert np.abs(second["kernel"]).max() <= 7**-0.5

    a, b, c, d = (np.asarray(layer[leaf]) for layer in (first, second) for leaf in ("kernel", "bias"))
    flat = x.reshape(2, 12, 5)
    score = np.tanh(flat @ a + b) @ c + d
    weight = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    np.testing.assert_allclose(pool.apply(variables, jnp.asarray(x)), (weight * flat).sum(1), rtol=1e-5, atol=1e-6)


def test_soft_attention_has_32_units_unless_told() -> None:
    assert create_pool("attention") == create_pool("attention", pool_units=32)
    assert create_pool("power") == create_pool("power", pool_power=2.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "averge"}, "unknown pool 'averge'; did you mean 'average'? Valid: attention, average, max, power"),
        (
            {"name": "average", "pool_power": 2.0},
            "pool average has no option 'pool_power' (pool power has); its options: none",
        ),
        (
            {"name": "power", "pool_units": 32},
            "pool power has no option 'pool_units' (pool attention has); its options: pool_power",
        ),
        ({"name": "power", "pool_power": 0.0}, "pool_power is 0.0 but must be above 0 and finite"),
        ({"name": "power", "pool_power": float("nan")}, "pool_power is nan but must be above 0 and finite"),
        ({"name": "attention", "pool_units": 0}, "pool_units is 0 but must be at least 1"),
    ],
)
def test_what_a_pool_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_pool(**arguments)
    assert str(caught.value) == text


@functools.cache
def resnet(**options: Any) -> Any:
    return create_model("resnet8", num_classes=4, **options)


IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32))


def test_relu_before_the_pool_removes_what_is_negative() -> None:
    plain, rectified = (resnet(head="identity", maps=4, relu_before_pool=relu) for relu in (False, True))
    variables = drawn(plain, 16, 16, 3)
    maps = plain.apply(variables, IMAGES, method="class_maps")
    assert maps.shape == (2, 4, 4, 4)
    assert maps.min() < 0
    positive = np.maximum(maps, 0)
    np.testing.assert_allclose(rectified.apply(variables, IMAGES), positive.mean((1, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rectified.apply(variables, IMAGES, method="class_maps"), positive, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pool", quick(["max", "power", "attention"], "power"))
def test_class_maps_do_not_depend_on_the_pool(pool: str) -> None:
    average, other = (resnet(pool=name) for name in ("average", pool))
    variables = drawn(other, 16, 16, 3)
    assert set(variables["params"]) == {"backbone", "head"} | ({"pool"} if pool == "attention" else set())
    same = {**variables, "params": {name: variables["params"][name] for name in ("backbone", "head")}}
    assert not np.allclose(other.apply(variables, IMAGES), average.apply(same, IMAGES))
    ours, theirs = (
        model.apply(given, IMAGES, method="class_maps") for model, given in ((other, variables), (average, same))
    )
    assert np.array_equal(ours, theirs)
