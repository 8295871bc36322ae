"""SO and DSO: their values, their gradients against PyTorch's, and their place in the loss and in the metrics."""

import csv
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.models.classifier import create_model
from jaxclf.training import losses
from jaxclf.training.loop import train
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, TrainState, init_state, train_step
from tests.tiers import quick

SHAPES = [(3, 3, 4, 8), (1, 1, 4, 8), (1, 1, 8, 8), (3, 3, 1, 64)]
"""Wide, tall, square and tall as out x (in*kh*kw)."""


def kernel_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) / 3


def penalty(kernel: np.ndarray, double: bool) -> float:
    """The formula as it is printed, in float64."""
    weight = kernel.astype(np.float64).transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)
    out, width = weight.shape
    rows, columns = weight @ weight.T - np.eye(out), weight.T @ weight - np.eye(width)
    return float((columns**2).sum() + double * (rows**2).sum())


@pytest.mark.parametrize("double", [False, True], ids=["so", "dso"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_printed_formula(shape: tuple[int, ...], double: bool) -> None:
    kernel = kernel_of(shape)
    assert float(losses.orthogonality(jnp.asarray(kernel), double=double)) == pytest.approx(penalty(kernel, double))


def test_values_of_small_kernels() -> None:
    def values(kernel: np.ndarray) -> tuple[float, float]:
        array = jnp.asarray(kernel, jnp.float32)
        return float(losses.orthogonality(array, double=False)), float(losses.orthogonality(array, double=True))

    assert values(np.eye(3)[None, None]) == (0.0, 0.0)
    assert values(2 * np.eye(3)[None, None]) == (27.0, 54.0)
    # two orthonormal filters of nine inputs: W W^T = I, but seven of nine input directions are lost
    assert values(np.eye(9)[:, :2].reshape(3, 3, 1, 2)) == (7.0, 7.0)
    # nine filters of two inputs with orthonormal columns: W^T W = I, and the filters cannot be orthonormal
    assert values(np.eye(9)[:2].reshape(1, 1, 2, 9)) == (0.0, 7.0)


@pytest.mark.parametrize("double", [False, True], ids=["so", "dso"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_torch_autograd(shape: tuple[int, ...], double: bool) -> None:
    torch: Any = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
    if not hasattr(torch, "from_numpy"):
        pytest.skip("this torch is no PyTorch")
    kernel = kernel_of(shape)
    leaf = torch.from_numpy(kernel.transpose(3, 2, 0, 1).astype(np.float64)).requires_grad_()
    weight = leaf.reshape(len(leaf), -1)
    loss = ((weight.T @ weight - torch.eye(weight.shape[1])) ** 2).sum()
    if double:
        loss = loss + ((weight @ weight.T - torch.eye(weight.shape[0])) ** 2).sum()
    loss.backward()
    theirs = leaf.grad.numpy().transpose(2, 3, 1, 0)
    ours = np.asarray(jax.grad(lambda kernel: losses.orthogonality(kernel, double=double))(jnp.asarray(kernel)))
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def one_step(**options: Any) -> tuple[Program, TrainState, TrainState]:
    optim, model = OptimConfig(lr=0.1, momentum=0.0, weight_decay=0.0), create_model("tests.tiny:Tiny", num_classes=10)
    plain, half = AugmentConfig(pad=0, flip=False), ((0.5,) * 3, (0.25,) * 3)
    program = Program(model, optim, Timeline(2, 1, 8), LossConfig(**options), plain, *half)
    before = init_state(program, (8, 8, 3), 0, 0)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)), jnp.uint8)
    labels = jnp.arange(4, dtype=jnp.int32)
    return program, before, jax.jit(train_step, static_argnums=0)(program, before, images, labels, labels)


@pytest.mark.parametrize(
    ("kind", "which", "convs"), quick([("so", "last", 1), ("dso", "last", 1), ("so", "all", 2)], ("so", "last", 1))
)
def test_a_step_adds_the_regularisers_gradient_and_reports_its_value_apart(
    kind: Literal["so", "dso"], which: Literal["last", "all"], convs: int
) -> None:
    _, _, plain = one_step()
    _, before, after = one_step(**{kind: 0.025}, orthogonalise=which)
    moved = {
        jax.tree_util.keystr(path): (np.asarray(a - b), path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(after.params), jax.tree.leaves(plain.params), strict=True
        )
    }
    touched = [name for name, (difference, _) in moved.items() if np.abs(difference).max() > 1e-6]
    assert len(touched) == convs
    assert all("backbone" in name and "kernel" in name for name in touched)

    name, own = "['backbone']['conv2']['kernel']", before.params["backbone"]["conv2"]["kernel"]
    gradient = jax.grad(lambda kernel: losses.orthogonality(kernel, double=kind == "dso"))(own)
    np.testing.assert_allclose(moved[name][0], -0.1 * 0.025 * np.asarray(gradient), rtol=1e-3, atol=1e-6)

    convs_before = [leaf for leaf in jax.tree.leaves(before.params["backbone"]) if leaf.ndim == 4]
    kernels = [own] if which == "last" else convs_before
    value = sum(penalty(np.asarray(kernel), double=kind == "dso") for kernel in kernels)
    assert float(after.sums[kind]) == pytest.approx(0.025 * value, rel=1e-5)
    assert float(after.sums["loss"]) == pytest.approx(float(plain.sums["loss"]), rel=1e-6)
    assert kind not in plain.sums


@pytest.mark.slow
def test_the_metrics_have_the_regulariser_in_a_last_column_where_it_is_on(tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(batch_size=338),
        augment=AugmentConfig(pad=0, flip=False),
        model=ModelConfig("tests.tiny:Tiny"),
        loss=LossConfig(so=0.025),
        optim=OptimConfig(lr=0.01),
        run=RunConfig(epochs=2),
    )
    train(config, tmp_path, quiet=True)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["test_top5", "train_so"]
    values = [float(row["train_so"]) for row in rows]
    # 8 filters of 72 inputs: 0.025 (72 - 8) is the part that no training can remove
    assert values[0] > values[1] > 1.6
