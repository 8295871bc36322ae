"""Layers with PyTorch's meaning beside PyTorch's own, values and gradients in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Not "torch": without PyTorch, the folder of this file would be found as a namespace package of that name.
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
import torch

from jaxclf.models import layers
from tests.tiers import quick

POOLS = [
    *((6, 3, 2, 0, True), (7, 3, 2, 0, True), (5, 2, 2, 0, True), (7, 3, 3, 1, True), (6, 5, 3, 2, True)),
    *((6, 3, 1, 1, False), (7, 3, 2, 1, False), (5, 2, 2, 0, False)),
]
"""Size, window, stride, padding, ceil_mode; the last window of a ceil_mode begins in the image, in the padding, or
beyond it, where there is none."""


def compare(ours: Callable[[jax.Array], Any], theirs: Callable[[Any], Any], *shape: int) -> None:
    """Hold a function of images [n h w c] and its gradient against PyTorch's of [n c h w]."""
    x = np.random.default_rng(0).standard_normal(shape)
    given = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = theirs(given)
    factors = np.cos(np.arange(expected.numel())).reshape(expected.shape)
    (expected * torch.tensor(factors)).sum().backward()
    assert given.grad is not None
    with jax.enable_x64(True):
        y, pull = jax.vjp(ours, jnp.asarray(x))
        (gradient,) = pull(jnp.asarray(factors.transpose(0, 2, 3, 1)))
    for found, one in ((y, expected.detach()), (gradient, given.grad)):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, one.numpy().transpose(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "window", "stride", "padding", "ceil"), quick(POOLS, POOLS[0]))
def test_pools_are_torchs(size: int, window: int, stride: int, padding: int, ceil: bool) -> None:
    given: Any = {"stride": stride, "padding": padding}
    shape = (2, size, size + 1, 3)
    compare(
        lambda x: layers.max_pool(x, window, **given, ceil=ceil),
        torch.nn.MaxPool2d(window, **given, ceil_mode=ceil),
        *shape,
    )
    for counted in (False, True):
        compare(
            lambda x, counted=counted: layers.avg_pool(x, window, **given, ceil=ceil, count_padding=counted),
            torch.nn.AvgPool2d(window, **given, ceil_mode=ceil, count_include_pad=counted),
            *shape,
        )


@pytest.mark.slow
@pytest.mark.parametrize(("sides", "size"), [((1, 1), (7, 7)), ((6, 6), (12, 5)), ((7, 5), (3, 14)), ((2, 3), (7, 5))])
def test_an_adaptive_pool_is_torchs(sides: tuple[int, int], size: tuple[int, int]) -> None:
    compare(lambda x: layers.adaptive_avg_pool(x, *sides), torch.nn.AdaptiveAvgPool2d(sides), 2, *size, 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])
def test_local_response_normalisation_is_torchs(size: int) -> None:
    given: dict[str, float] = {"alpha": 0.3, "beta": 0.6, "k": 2.0}
    compare(
        lambda x: layers.local_response_norm(x, size, **given), torch.nn.LocalResponseNorm(size, **given), 2, 3, 2, 7
    )


@pytest.mark.slow
def test_group_norm_is_torchs() -> None:
    theirs = torch.nn.GroupNorm(4, 8, eps=1e-3).double()
    ours = layers.GroupNorm(groups=4, eps=1e-3)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.linspace(0.5, 2, 8)))
        theirs.bias.copy_(torch.tensor(np.linspace(-1, 1, 8)))
    with jax.enable_x64(True):
        params: Any = {"params": {name: jnp.asarray(one.detach().numpy()) for name, one in theirs.named_parameters()}}
    compare(lambda x: ours.apply(params, x), theirs, 2, 3, 5, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"dilation": 2, "padding": 2}),
        (3, {"dilation": 2, "groups": 8}),
        (3, {"groups": 4, "stride": 2, "padding": 1}),
        (5, {"groups": 8, "stride": 2, "padding": 2}),
        ((1, 7), {"padding": ((0, 0), (3, 3))}),
        ((3, 1), {"padding": ((1, 1), (0, 0))}),
    ],
    ids=str,
)
def test_convolutions_are_torchs(kernel: Any, options: dict[str, Any]) -> None:
    padding: Any = options.get("padding", 0)
    sides = padding if isinstance(padding, int) else tuple(low for low, _ in padding)
    theirs_options: Any = options | {"padding": sides}
    theirs = torch.nn.Conv2d(8, 8, kernel, bias=False, **theirs_options).double()
    ours = layers.conv(8, kernel, name="conv", **options)
    with jax.enable_x64(True):
        weight = jnp.asarray(theirs.weight.detach().numpy().transpose(2, 3, 1, 0))
    compare(lambda x: ours.apply({"params": {"kernel": weight}}, x), theirs, 2, 9, 8, 8)
