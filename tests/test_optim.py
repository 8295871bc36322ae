"""SGD and its schedule, against torch.optim."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.classifier import create_model
from jaxclf.config import OptimConfig
from jaxclf.optim import learning_rate, schedule, transformation
from jaxclf.step import Program, init_state, train_steps

STEPS, PER_EPOCH = 50, 10
REASON = "parity with PyTorch needs the extra `parity`"


def problem() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A small tanh network: inputs, targets and the start."""
    rng = np.random.default_rng(0)
    start = {
        "w1": rng.standard_normal((6, 8)) / 3,
        "b1": rng.standard_normal(8) / 10,
        "w2": rng.standard_normal((8, 2)),
    }
    start |= {"b2": np.zeros(2), "scale": np.ones(1)}
    inputs, targets = rng.standard_normal((STEPS, 16, 6)), rng.standard_normal((STEPS, 16, 2))
    return inputs.astype(np.float32), targets.astype(np.float32), {k: v.astype(np.float32) for k, v in start.items()}


def by_torch(config: OptimConfig) -> list[dict[str, np.ndarray]]:
    pytest.importorskip("torch.nn", reason=REASON)
    import torch

    inputs, targets, start = problem()
    p = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    sgd = torch.optim.SGD(
        p.values(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, list(config.milestones), config.gamma)
    history = []
    for step, (x, y) in enumerate(zip(torch.from_numpy(inputs), torch.from_numpy(targets), strict=True), start=1):
        out = p["scale"] * (torch.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
        sgd.zero_grad()
        (out - y).square().mean().backward()
        sgd.step()
        history.append({name: value.detach().numpy().copy() for name, value in p.items()})
        if step % PER_EPOCH == 0:
            scheduler.step()
    return history


def by_jaxclf(config: OptimConfig) -> list[dict[str, np.ndarray]]:
    inputs, targets, start = problem()
    tx = transformation(config, PER_EPOCH)

    def loss(p: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        out = p["scale"][None] * (jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None])
        return jnp.square(out - y).mean()

    @jax.jit
    def step(p: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        updates, opt_state = tx.update(jax.grad(loss)(p, x, y), opt_state, p)
        return jax.tree.map(jnp.add, p, updates), opt_state

    params = jax.tree.map(jnp.asarray, start)
    opt_state, history = tx.init(params), []
    for x, y in zip(inputs, targets, strict=True):
        params, opt_state = step(params, opt_state, x, y)
        history.append(jax.device_get(params))
    return history


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(momentum=0.0, weight_decay=0.0, milestones=()),
        OptimConfig(momentum=0.0, weight_decay=1e-2, milestones=(1, 3)),
        OptimConfig(momentum=0.9, weight_decay=0.0, milestones=(1, 3)),
        OptimConfig(momentum=0.9, weight_decay=1e-2, milestones=(1, 3)),
        OptimConfig(momentum=0.9, weight_decay=1e-2, milestones=(2,), gamma=0.2, nesterov=True),
    ],
    ids=["plain", "decay", "momentum", "momentum and decay", "nesterov"],
)
def test_sgd_is_torchs_at_every_step(config: OptimConfig) -> None:
    theirs, ours = by_torch(config), by_jaxclf(config)
    assert len(ours) == STEPS
    for name in ours[0]:
        a, b = (np.stack([params[name] for params in history]) for history in (ours, theirs))
        far = np.abs(a - b).reshape(STEPS, -1).max(1) / np.abs(b).max()
        assert far.max() < 1e-5, f"{name} is off by {far.max():.1e} after step {far.argmax() + 1}"


@pytest.mark.parametrize("milestones", [(), (3,), (2, 5, 6)])
def test_the_rate_of_every_epoch_is_torchs(milestones: tuple[int, ...]) -> None:
    pytest.importorskip("torch.nn", reason=REASON)
    import torch

    config = OptimConfig(lr=0.1, gamma=0.1, milestones=milestones)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], config.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, list(milestones), config.gamma)
    rate: Any = schedule(config, steps_per_epoch=7)
    for epoch in range(9):
        want = sgd.param_groups[0]["lr"]
        assert learning_rate(config, epoch) == pytest.approx(want, rel=1e-12)
        for step in (7 * epoch, 7 * epoch + 6):
            assert float(rate(jnp.asarray(step))) == pytest.approx(want, rel=1e-6)
        sgd.step()
        scheduler.step()


def test_a_milestone_is_the_first_epoch_at_its_rate() -> None:
    config = OptimConfig(lr=0.1, milestones=(81, 122))  # thesis table 4.1
    rates = [learning_rate(config, epoch) for epoch in (0, 80, 81, 121, 122, 163)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_constant_schedule_has_no_milestones() -> None:
    config = OptimConfig(lr=0.3, schedule="constant", milestones=(1, 2))
    assert [learning_rate(config, epoch) for epoch in range(4)] == [0.3] * 4
    rate: Any = schedule(config, 2)
    assert [float(rate(jnp.asarray(step))) for step in range(8)] == pytest.approx([0.3] * 8)


@pytest.mark.parametrize(("decay", "vector"), [("all", 0.9), ("weights", 1.0)])
def test_what_decays(decay: Any, vector: float) -> None:
    config = OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.1, decay=decay)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(1), "zero_d": jnp.ones(())}
    tx = transformation(config, 1)
    updates: Any = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
    after = {name: (params[name] + updates[name]).ravel()[0].item() for name in params}
    assert after == pytest.approx({"kernel": 0.9, "bias": vector, "scale": vector, "zero_d": vector})


@pytest.mark.parametrize("head", ["orthogonal", "hadamard"])
def test_a_fixed_matrix_never_reaches_the_optimiser(head: str) -> None:
    model = create_model("resnet8", num_classes=10, head=head, maps=32, maps_shortcut="D")
    program = Program(model, OptimConfig(weight_decay=0.1), 1, (0.5,), (0.5,), pad=0, flip=False)
    state = init_state(program, (8, 8, 1), 0, 0)
    fixed = {path[-1].key: leaf for path, leaf in jax.tree.leaves_with_path(state.fixed)}
    assert set(fixed) == {"orthoplex", head}
    buffers = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(buffers) == sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    assert not any(word in str(jax.tree.structure(state.opt_state)) for word in fixed)

    before = {name: np.array(leaf) for name, leaf in fixed.items()}
    images, labels = jnp.zeros((4, 8, 8, 1), jnp.uint8), jnp.zeros(4, jnp.int32)
    state = train_steps(program, state, images, labels, np.arange(4, dtype=np.int32)[None])
    for path, leaf in jax.tree.leaves_with_path(state.fixed):
        assert np.array_equal(leaf, before[path[-1].key])
