"""Layers with PyTorch's meaning beside PyTorch's own, values and gradients in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Not "torch": without PyTorch, the folder of this file would be found as a namespace package of that name.
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
import torch

from jaxclf.models import layers
from jaxclf.models.backbones.shufflenet_v2 import channel_shuffle
from tests.tiers import quick

POOLS = [
    *((6, 3, 2, 0, True), (7, 3, 2, 0, True), (5, 2, 2, 0, True), (7, 3, 3, 1, True), (6, 5, 3, 2, True)),
    *((6, 3, 1, 1, False), (7, 3, 2, 1, False), (5, 2, 2, 0, False)),
]
"""Size, window, stride, padding, ceil_mode; the last window of a ceil_mode begins in the image, in the padding, or
beyond it, where there is none."""


def compare(ours: Callable[..., Any], theirs: Callable[[Any], Any], *shape: int, weights: Sequence[Any] = ()) -> None:
    """Hold a function of images [n h w c] and of kernels HWIO, and its gradients, against PyTorch's.

    PyTorch's takes images [n c h w], and its kernels are `weights`, OIHW.
    """
    x = np.random.default_rng(0).standard_normal(shape)
    given = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = theirs(given)
    factors = np.cos(np.arange(expected.numel())).reshape(expected.shape)
    (expected * torch.tensor(factors)).sum().backward()
    with jax.enable_x64(True):
        kernels = [jnp.asarray(one.detach().numpy().transpose(2, 3, 1, 0)) for one in weights]
        y, pull = jax.vjp(ours, jnp.asarray(x), *kernels)
        gradient, *of_kernels = pull(jnp.asarray(factors.transpose(0, 2, 3, 1)))
    pairs = [(found, one.grad, (2, 3, 1, 0)) for found, one in zip(of_kernels, weights, strict=True)]
    for found, one, axes in ((y, expected.detach(), (0, 2, 3, 1)), (gradient, given.grad, (0, 2, 3, 1)), *pairs):
        assert one is not None
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, one.numpy().transpose(axes), rtol=1e-10, atol=1e-12)


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
@pytest.mark.parametrize(("groups", "channels"), [(1, 5), (2, 10), (3, 12), (7, 7)])
def test_channel_shuffle_is_torchs(groups: int, channels: int) -> None:
    compare(lambda x: channel_shuffle(x, groups), torch.nn.ChannelShuffle(groups), 2, 3, 5, channels)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_pools_drawn_at_random_are_torchs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    window, stride, ceil, counted = (int(draw.integers(*ends)) for ends in ((2, 6), (1, 5), (0, 2), (0, 2)))
    padding = int(draw.integers(0, window // 2 + 1))
    height, width, *bins = (int(side) for side in (*draw.integers(window, 14, 2), *draw.integers(1, 8, 2)))
    given: Any = {"stride": stride, "padding": padding}
    shape = (2, height, width, 3)
    for ours, theirs in (
        (
            lambda x: layers.max_pool(x, window, **given, ceil=bool(ceil)),
            torch.nn.MaxPool2d(window, **given, ceil_mode=bool(ceil)),
        ),
        (
            lambda x: layers.avg_pool(x, window, **given, ceil=bool(ceil), count_padding=bool(counted)),
            torch.nn.AvgPool2d(window, **given, ceil_mode=bool(ceil), count_include_pad=bool(counted)),
        ),
        (lambda x: layers.adaptive_avg_pool(x, bins[0], bins[1]), torch.nn.AdaptiveAvgPool2d((bins[0], bins[1]))),
    ):
        compare(ours, theirs, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dilated", "grouped", "depthwise", "separable"])
def test_convolutions_drawn_at_random_are_torchs(kind: str) -> None:
    draw = np.random.default_rng(sum(map(ord, kind)))
    kernel, dilation = int(draw.choice([3, 5])), int(draw.choice([2, 3])) if kind == "dilated" else 1
    groups = {"dilated": 1, "grouped": 3}.get(kind, 6)
    height, width, padding, stride = (int(draw.integers(*ends)) for ends in ((13, 18), (13, 18), (0, 3), (1, 4)))
    fields: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    theirs = [torch.nn.Conv2d(6, 6, kernel, bias=False, **fields).double()]
    ours: list[Any] = [layers.conv(6, kernel, **fields, name="first")]
    if kind == "separable":  # a depthwise convolution and a 1x1 one
        theirs.append(torch.nn.Conv2d(6, 9, 1, bias=False).double())
        ours.append(layers.conv(9, 1, name="second"))

    def apply(x: jax.Array, *kernels: jax.Array) -> jax.Array:
        for layer, weight in zip(ours, kernels, strict=True):
            x = layer.apply({"params": {"kernel": weight}}, x)
        return x

    weights = [layer.weight for layer in theirs]
    compare(apply, torch.nn.Sequential(*theirs), 2, height, width, 6, weights=weights)


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
    weights = [theirs.weight]
    compare(lambda x, one: ours.apply({"params": {"kernel": one}}, x), theirs, 2, 9, 8, 8, weights=weights)
