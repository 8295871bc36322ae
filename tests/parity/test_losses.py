"""Every loss and regulariser against torch's own: values and gradients, in float64 and in float32."""

import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import LossConfig
from jaxclf.training import losses

CLASSES, EXAMPLES = 7, 5
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-6}


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
    return importlib.import_module("torch")


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


def assert_close(ours: Any, theirs: Any, dtype: Any) -> None:
    """Equal within the dtype's tolerance of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.dtype == theirs.dtype == dtype
    assert np.abs(ours - theirs).max() < TOLERANCE[dtype] * np.abs(theirs).max()


def torch_loss(torch: Any, config: LossConfig, logits: Any, targets: Any) -> Any:
    if config.name == "cross_entropy":
        return torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)(logits, targets)
    if config.name == "mse":
        return torch.nn.MSELoss()(logits, targets)
    targets = (1 - config.label_smoothing) * targets + config.label_smoothing / CLASSES
    return torch.nn.BCEWithLogitsLoss()(logits, targets)


@pytest.mark.parametrize("kind", ["hard", "mixed"])
@pytest.mark.parametrize(
    ("name", "smoothing"),
    [("cross_entropy", 0.0), ("cross_entropy", 0.1), ("binary", 0.0), ("binary", 0.1), ("mse", 0.0)],
)
def test_losses_and_gradients_are_torchs(
    torch: Any, dtype: Any, name: Literal["cross_entropy", "binary", "mse"], smoothing: float, kind: str
) -> None:
    config = LossConfig(name, label_smoothing=smoothing)
    logits = 3 * np.random.default_rng(0).standard_normal((EXAMPLES, CLASSES)).astype(dtype)
    targets = labels_of(kind).astype(dtype)
    leaf = torch.from_numpy(logits).requires_grad_()
    theirs = torch_loss(torch, config, leaf, torch.from_numpy(targets))
    theirs.backward()

    def loss(logits: jax.Array) -> jax.Array:
        return losses.example_losses(config, logits, jnp.asarray(targets)).mean()

    ours, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    assert_close(ours, theirs, dtype)
    assert_close(gradient, leaf.grad, dtype)


@pytest.mark.parametrize("name", ["cross_entropy", "binary", "mse"])
def test_losses_of_single_examples_are_torchs(
    torch: Any, dtype: Any, name: Literal["cross_entropy", "binary", "mse"]
) -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((EXAMPLES, CLASSES)).astype(dtype)
    targets = labels_of("mixed").astype(dtype)
    given = (torch.from_numpy(logits), torch.from_numpy(targets))
    own = torch.stack([torch_loss(torch, LossConfig(name), *(part[i : i + 1] for part in given)) for i in range(5)])
    ours = losses.example_losses(LossConfig(name), jnp.asarray(logits), jnp.asarray(targets))
    assert_close(ours, own, dtype)


def test_hard_labels_are_torchs_class_indices(torch: Any, dtype: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((EXAMPLES, CLASSES)).astype(dtype)
    labels = labels_of("hard").argmax(1)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=0.1, reduction="none"
    )
    targets = jnp.asarray(labels_of("hard").astype(dtype))
    assert_close(losses.example_losses(LossConfig(label_smoothing=0.1), jnp.asarray(logits), targets), theirs, dtype)


@pytest.mark.parametrize("name", ["l1", "l2", "so", "dso"])
def test_regularisers_and_gradients_are_torchs(torch: Any, dtype: Any, name: str) -> None:
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
    theirs = (
        0.025
        * {
            "l1": sum(leaf.abs().sum() for leaf in leaves),
            "l2": sum((leaf**2).sum() for leaf in leaves) / 2,
            "so": columns,
            "dso": columns + rows,
        }[name]
    )
    ours, gradient = jax.value_and_grad(term)(params)
    gradients = torch.autograd.grad(theirs, leaves, materialize_grads=True)
    assert_close(ours, theirs, dtype)
    assert_close(gradient["backbone"]["conv1"]["kernel"].transpose(3, 2, 0, 1), gradients[0], dtype)
    np.testing.assert_allclose(gradient["head"]["bias"], gradients[1].numpy(), rtol=TOLERANCE[dtype])
