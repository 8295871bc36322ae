"""Every loss and regulariser against torch's own: values and gradients, in float64 and in float32."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Not "torch": without PyTorch, the folder of this file would be found as a namespace package of that name.
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
import torch

from jaxclf.config import LossConfig
from jaxclf.models.heads import create_head
from jaxclf.models.matrices import matrix
from jaxclf.training import losses
from tests.parity import torch_twin
from tests.tiers import quick

CLASSES, EXAMPLES = 7, 5
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-6}


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[Any]:
    with ExitStack() as stack:
        if request.param is np.float64:
            stack.enter_context(jax.enable_x64(True))
        yield request.param


def labels_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == "mixed":
        return rng.dirichlet(np.ones(CLASSES), EXAMPLES)
    return np.eye(CLASSES)[rng.integers(0, CLASSES, EXAMPLES)]


def assert_close(ours: Any, theirs: Any, dtype: Any, tolerance: float | None = None) -> None:
    """Equal within a tolerance, or the dtype's, of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.dtype == theirs.dtype == dtype
    assert np.abs(ours - theirs).max() < (tolerance or TOLERANCE[dtype]) * np.abs(theirs).max()


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@pytest.mark.parametrize(
    ("name", "smoothing"),
    [
        *(("cross_entropy", 0.0), ("cross_entropy", 0.1), ("binary", 0.0), ("binary", 0.1)),
        *(("mse", 0.0), ("dot_regression", 0.0)),
    ],
)
def test_losses_of_each_example_and_gradients_are_torchs(
    dtype: Any, name: Literal["cross_entropy", "binary", "mse", "dot_regression"], smoothing: float, kind: str
) -> None:
    config = LossConfig(name, label_smoothing=smoothing)
    logits = 3 * np.random.default_rng(0).standard_normal((EXAMPLES, CLASSES)).astype(dtype)
    targets, leaf = labels_of(kind).astype(dtype), torch.from_numpy(logits).requires_grad_()
    theirs = torch_twin.example_losses(config, leaf, torch.from_numpy(targets))
    theirs.mean().backward()

    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = losses.example_losses(config, logits, jnp.asarray(targets))
        return each.mean(), each

    gradient, ours = jax.grad(loss, has_aux=True)(jnp.asarray(logits))
    assert_close(ours, theirs, dtype)
    assert_close(gradient, leaf.grad, dtype)


def test_hard_labels_are_torchs_class_indices(dtype: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((EXAMPLES, CLASSES)).astype(dtype)
    labels = labels_of("hard").argmax(1)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=0.1, reduction="none"
    )
    targets = jnp.asarray(labels_of("hard").astype(dtype))
    assert_close(losses.example_losses(LossConfig(label_smoothing=0.1), jnp.asarray(logits), targets), theirs, dtype)


ROWS, FEATURES = 7, 16


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows over their norm + 1e-8, the guard that Hoffer's code puts on it."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "hadamard": lambda h, w, scale, bias: bias - scale * (unit(h) @ w.T),
    "hoffer_orthogonal": lambda h, w, scale, bias: scale * (unit(h) @ w.T) + bias,
    "orthogonal": lambda h, w, bias: h @ w.T + bias,
    "reponet_simplex": lambda h, w, neck: (h @ neck) @ w.T,
    "reponet_orthoplex": lambda h, w, neck: (h @ neck) @ w.T,
    "reponet_cube": lambda h, w, neck: (h @ neck) @ w.T,
    "kasarla": lambda h, w, neck: (h @ neck) @ w.T,
    "etf_dr": lambda h, w: unit(h) @ w.T,
    "etf_dr both": lambda h, w: unit(h) @ unit(w).T,
    "ebv": lambda h, w: unit(h) @ w.T / 0.07,
    "normface": lambda h, w, scale: scale * (unit(h) @ unit(w).T),
    "cosface": lambda h, w: 64 * (unit(h) @ unit(w).T),
    "arcface": lambda h, w: 64 * (unit(h) @ unit(w).T),
}
"""Logits of a combination of the literature: features [n d], its matrix [k d], fixed or learned, and what it learns."""


def combinations() -> Iterator[tuple[str, str, float, str]]:
    """Every combination: head, loss, label smoothing, kind of labels."""
    for head in FORMULAS:
        own = {"etf_dr": "dot_regression", "etf_dr both": "cosine", "cosface": "cosface", "arcface": "arcface"}
        yield head, own.get(head, "cross_entropy"), 0.0, "hard"
        yield head, own.get(head, "cross_entropy"), 0.0 if head.startswith("etf_dr") else 0.1, "mixed"


@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize(
    ("head", "name", "smoothing", "kind"),
    quick(combinations(), ("arcface", "arcface", 0.1, "mixed")),
)
def test_combinations_of_the_literature_are_their_formulas_in_torch(
    head: str, name: Any, smoothing: float, kind: str
) -> None:
    config, rng = LossConfig(name, label_smoothing=smoothing), np.random.default_rng(2)
    module = create_head(head.split()[0], ROWS, FEATURES, normalise="both" if name == "cosine" else None)
    h, targets = rng.standard_normal((EXAMPLES, FEATURES)), labels_of(kind)
    shapes: Any = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(h.shape, np.float32))
    learned = {key: rng.standard_normal(leaf.shape) for key, leaf in shapes.get("params", {}).items()}
    fixed = {key: matrix(key, *leaf.shape) for key, leaf in shapes.get("fixed", {}).items()}
    if "kernel" in learned:  # the first example is beyond pi less the margin of its label
        learned["kernel"][:, targets[0].argmax()] = 0.01 * learned["kernel"][:, 0] - h[0]
    scale = losses.cosine_scale(config, module)
    with jax.enable_x64(True):

        def loss(h: jax.Array, learned: Any) -> jax.Array:
            logits: Any = module.apply({"params": learned, "fixed": jax.tree.map(jnp.asarray, fixed)}, h)
            return losses.example_losses(config, logits, jnp.asarray(targets), scale).mean()

        ours, gradients = jax.value_and_grad(loss, (0, 1))(jnp.asarray(h), jax.tree.map(jnp.asarray, learned))
    leaf = torch.from_numpy(h).requires_grad_()
    leaves = {key: torch.from_numpy(value).requires_grad_() for key, value in learned.items()}
    rows = [torch.from_numpy(value) for value in fixed.values()] or [leaves["kernel"].T]
    others = {key: value for key, value in leaves.items() if key != "kernel"}
    logits = FORMULAS[head](leaf, *rows, **others)
    theirs = torch_twin.example_losses(config, logits, torch.from_numpy(targets), scale).mean()
    theirs.backward()
    assert_close(ours, theirs, np.float64, 1e-12)
    assert_close(gradients[0], leaf.grad, np.float64, 1e-12)
    for key, value in leaves.items():
        assert_close(gradients[1][key], value.grad, np.float64, 1e-12)


@pytest.mark.parametrize("name", quick(["l1", "l2", "so", "dso"], "l1", "dso"))
def test_regularisers_and_gradients_are_torchs(dtype: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((3, 3, 4, 8)).astype(dtype), np.array([-1.0, 0.0, 2.0], dtype)
    params = {"backbone": {"conv1": {"kernel": jnp.asarray(kernel)}}, "head": {"bias": jnp.asarray(bias)}}
    decayed, config = jax.tree.map(lambda _: True, params), dataclasses.replace(LossConfig(), **{name: 0.025})

    def term(params: Any) -> jax.Array:
        return losses.regularisers(config, params, decayed=decayed, last_conv="conv1")[name]

    leaves = [torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()), torch.from_numpy(bias)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weight = leaves[0].reshape(8, -1)
    columns = ((weight.T @ weight - torch.eye(36, dtype=weight.dtype)) ** 2).sum()
    rows = ((weight @ weight.T - torch.eye(8, dtype=weight.dtype)) ** 2).sum()
    terms = {"l1": sum(leaf.abs().sum() for leaf in leaves), "l2": sum((leaf**2).sum() for leaf in leaves) / 2}
    theirs = 0.025 * (terms | {"so": columns, "dso": columns + rows})[name]
    ours, gradient = jax.value_and_grad(term)(params)
    gradients = torch.autograd.grad(theirs, leaves, materialize_grads=True)
    assert_close(ours, theirs, dtype)
    assert_close(gradient["backbone"]["conv1"]["kernel"].transpose(3, 2, 0, 1), gradients[0], dtype)
    np.testing.assert_allclose(gradient["head"]["bias"], gradients[1].numpy(), rtol=TOLERANCE[dtype])
