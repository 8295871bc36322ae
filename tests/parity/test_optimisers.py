"""Every optimiser, schedule, clipping and average of OptimConfig, against PyTorch's own.

Fifty steps of a small network with BatchNorm, the rate dropping twice inside, weight decay on. Both sides compute their
gradients themselves, from the same start on the same batches, in float64: training with BatchNorm is chaotic, and
float32's rounding would hide an error. Distances are max|a - b| / max|b| per tensor, at every step.

Measured, the worst of all steps and tensors: 5e-14; nadam 1e-8, as torch keeps its product of momenta in float32. Our
float32 against torch's float64: 2e-6 for sgd, rmsprop_tf, adagrad, adadelta, lbfgs, adamw, and where eps is not tiny;
1e-4 for rmsprop, 1e-5 for adamax and nadam and 7e-3 for adam with eps 1e-8, which blow up the rounding of gradients
that are nearly zero with the decay added (torch's own float32: 3e-6, 2e-6, 3e-6 and 3e-2). TensorFlow is not run:
rmsprop_tf is compared with its documented formula.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Not "torch": without PyTorch, the folder of this file would be found as a namespace package of that name.
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from jaxclf.config import OptimConfig
from jaxclf.training.optim import average, transformation
from jaxclf.training.schedules import Timeline, learning_rate
from tests.parity import torch_twin
from tests.tiers import quick

STEPS, PER_EPOCH, CLASSES = 50, 20, 5
TIMELINE = Timeline(PER_EPOCH, epochs=3, examples=320)
Flat = dict[str, np.ndarray]

torch.set_num_threads(1)  # two spin against each other, and against XLA's, as soon as the machine has other work


def network() -> nn.Sequential:
    """Two convolutions with BatchNorm and a linear layer; the names are the paths of the other side."""
    torch.manual_seed(0)
    layers = {"backbone/conv1": nn.Conv2d(3, 8, 3, padding=1, bias=False), "backbone/bn1": nn.BatchNorm2d(8)}
    layers |= {"relu1": nn.ReLU(), "backbone/conv2": nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)}
    layers |= {"backbone/bn2": nn.BatchNorm2d(8), "relu2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
    layers |= {"flat": nn.Flatten(), "head": nn.Linear(8, CLASSES)}
    return nn.Sequential(OrderedDict(layers)).double().train()


def linen_name(name: str) -> str:
    layer, leaf = name.split(".")
    return f"{layer}/{leaf if leaf == 'bias' else 'scale' if 'bn' in layer else 'kernel'}"


def arrays(net: nn.Sequential) -> Flat:
    """Copy the parameters into Linen's layout."""
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    named = [(linen_name(name), value.detach().numpy().copy()) for name, value in net.named_parameters()]
    return {name: value.transpose(order[value.ndim]) for name, value in named}


def nested(flat: Flat, dtype: Any) -> Any:
    tree: Any = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), path, tree)[leaf] = jnp.asarray(value, dtype)
    return tree


def flattened(tree: Any) -> Flat:
    leaves = jax.tree.leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.cache
def problem() -> tuple[np.ndarray, np.ndarray]:
    """A batch of images [16 8 8 3] and labels [16] for every step."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((STEPS, 16, 8, 8, 3)), rng.integers(0, CLASSES, (STEPS, 16))


def conv_norm_relu(params: Any, layer: int, x: jax.Array, stride: int) -> jax.Array:
    kernel, norm = params[f"conv{layer}"]["kernel"], params[f"bn{layer}"]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=layout)
    x = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
    return jax.nn.relu(x * norm["scale"][None, None, None] + norm["bias"][None, None, None])


@jax.jit
@jax.grad
def gradient(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    x = conv_norm_relu(params["backbone"], 1, images, 1)
    x = conv_norm_relu(params["backbone"], 2, x, 2).mean((1, 2))
    logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def by_jaxclf(config: OptimConfig, start: Flat, same_batch: bool, dtype: Any) -> Iterator[Flat]:
    """Yield the parameters after every step."""
    images, labels = problem()
    tx = transformation(config, TIMELINE)
    update = jax.jit(tx.update)
    params = nested(start, dtype)
    state = tx.init(params)
    for step in range(STEPS):
        batch = 0 if same_batch else step
        grads = gradient(params, jnp.asarray(images[batch], dtype), jnp.asarray(labels[batch]))
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        yield flattened(params)


class TensorFlowRMSProp(torch.optim.Optimizer):
    """tf.raw_ops.ApplyRMSProp as its documentation has it, `ms` from 1 (tf.compat.v1.train.RMSPropOptimizer).

    ms <- rho * ms + (1 - rho) * g^2; mom <- momentum * mom + lr * g / sqrt(ms + epsilon); var <- var - mom
    """

    def __init__(self, params: Any, lr: float, alpha: float, momentum: float, eps: float, weight_decay: float):
        settings = {"lr": lr, "rho": alpha, "momentum": momentum, "epsilon": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    def step(self, closure: Any = None) -> None:
        del closure
        for group in self.param_groups:
            for var in group["params"]:
                slots = self.state[var]
                value, g = var.detach().numpy(), var.grad.numpy() + group["weight_decay"] * var.detach().numpy()
                ms = group["rho"] * slots.get("ms", np.ones_like(g)) + (1 - group["rho"]) * g**2
                mom = group["momentum"] * slots.get("mom", 0.0) + group["lr"] * g / np.sqrt(ms + group["epsilon"])
                slots |= {"ms": ms, "mom": mom}
                value -= mom


def optimiser(config: OptimConfig, net: nn.Sequential) -> torch.optim.Optimizer:
    """Return torch's, with its own defaults for all that the config leaves at None."""
    trained = [p for p in net.parameters() if p.requires_grad]
    spared = [p for p in trained if config.decay == "weights" and p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if not any(p is other for other in spared)]}]
    groups += [{"params": spared, "weight_decay": 0.0}] if spared else []
    if config.name == "lbfgs":
        return torch.optim.LBFGS(net.parameters(), config.lr, max_iter=1)
    if config.name == "rmsprop_tf":
        given = {"alpha": config.alpha or 0.9, "eps": config.eps or 1.0, "momentum": config.momentum}
        return TensorFlowRMSProp(groups, config.lr, weight_decay=config.weight_decay, **given)
    return torch_twin.optimiser_of(config, groups)


def by_torch(config: OptimConfig, net: nn.Sequential, same_batch: bool) -> Iterator[Flat]:
    """Yield the parameters after every step."""
    images, labels = (torch.from_numpy(part) for part in problem())
    for name, p in net.named_parameters():
        p.requires_grad_(
            not linen_name(name).startswith(tuple(pattern.rstrip("*") for pattern in config.freeze or "-"))
        )
    opt = optimiser(config, net)
    scheduler = lr_scheduler.MultiStepLR(opt, [PER_EPOCH * m for m in config.milestones], config.gamma)
    for step in range(STEPS):
        batch = 0 if same_batch else step

        def closure(batch: int = batch) -> Any:
            opt.zero_grad()
            loss = F.cross_entropy(net(images[batch].permute(0, 3, 1, 2)), labels[batch])
            loss.backward()
            for p in net.parameters() if config.name == "lbfgs" else ():  # it has no weight_decay
                assert p.grad is not None
                p.grad += config.weight_decay * p.detach()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], config.clip_norm)
            return loss

        with torch_twin.float32_rates(opt):
            if config.name == "lbfgs":
                opt.step(closure)
            else:
                closure()
                opt.step()
        scheduler.step()
        yield arrays(net)


def distances(config: OptimConfig, *, same_batch: bool = False, dtype: Any = np.float64) -> tuple[np.ndarray, float]:
    """Return each step's greatest distance over the tensors, and the least way that a trained tensor has come."""
    start, worst, ours, theirs = arrays(network()), [], {}, {}
    with jax.enable_x64(dtype is np.float64):
        both = zip(by_jaxclf(config, start, same_batch, dtype), by_torch(config, network(), same_batch), strict=True)
        for ours, theirs in both:
            assert ours.keys() == theirs.keys()
            assert {leaf.dtype for leaf in ours.values()} == {np.dtype(dtype)}
            worst.append(max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours))
    ways = {name: np.abs(theirs[name] - start[name]).max() / np.abs(theirs[name]).max() for name in theirs}
    return np.asarray(worst), min(way for name, way in ways.items() if not (config.freeze and "conv1" in name))


def recipe(name: Any, lr: float, **fields: Any) -> OptimConfig:
    return OptimConfig(**{"name": name, "lr": lr, "weight_decay": 1e-2, "milestones": (1, 2), "gamma": 0.3} | fields)


RECIPES = {
    "sgd": recipe("sgd", 0.1, momentum=0.0),
    "sgd momentum": recipe("sgd", 0.05),
    "sgd dampening": recipe("sgd", 0.05, dampening=0.5),
    "sgd nesterov": recipe("sgd", 0.05, nesterov=True),
    "sgd frozen": recipe("sgd", 0.1, clip_norm=0.5, decay="weights", freeze=("backbone/conv1/*",)),
    "rmsprop": recipe("rmsprop", 1e-3, momentum=0.0),
    "rmsprop momentum": recipe("rmsprop", 1e-4),
    "rmsprop torchvision": recipe("rmsprop", 1e-3, alpha=0.9, eps=0.0316),
    "rmsprop_tf": recipe("rmsprop_tf", 0.05),
    "rmsprop_tf small eps": recipe("rmsprop_tf", 3e-3, eps=1e-3, momentum=0.5, alpha=0.8),
    "adam": recipe("adam", 1e-2),
    "adam betas": recipe("adam", 1e-2, betas=(0.8, 0.95), eps=1e-3),
    "adamw": recipe("adamw", 1e-2, weight_decay=0.1),
    "adagrad": recipe("adagrad", 1e-2),
    "adagrad accumulator": recipe("adagrad", 0.1, accumulator=0.1),
    "adadelta": recipe("adadelta", 1.0),
    "adamax": recipe("adamax", 1e-2),
    "nadam": recipe("nadam", 1e-2),
    "lbfgs": recipe("lbfgs", 0.5),
}


@pytest.mark.parametrize("name", quick(RECIPES, "sgd frozen", "rmsprop_tf", "adam", "lbfgs"))
def test_fifty_steps_are_torchs_at_every_step(name: str) -> None:
    config = RECIPES[name]
    far, way = distances(config, same_batch=config.name == "lbfgs")
    assert len(far) == STEPS
    assert far.max() < 1e-5, f"off by {far.max():.1e} after step {far.argmax() + 1}"
    assert way > 1e-2  # a comparison of what did not move would prove nothing


@pytest.mark.parametrize("name", quick(["sgd momentum", "rmsprop_tf", "adam betas", "lbfgs"], "sgd momentum"))
def test_fifty_steps_in_float32_are_torchs(name: str) -> None:
    far, _ = distances(RECIPES[name], same_batch=RECIPES[name].name == "lbfgs", dtype=np.float32)
    assert far.max() < 1e-5, f"off by {far.max():.1e} after step {far.argmax() + 1}"


Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
EPOCHS, SPE = 9, 7
TOTAL = EPOCHS * SPE


def rates_of(make: Scheduler, lr: float, steps: int, every: int = 1) -> list[float]:
    """Return torch's rates of some steps, the scheduler being stepped after every so many updates."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler, rates = make(sgd), []
    for step in range(1, steps + 1):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        if step % every == 0:
            scheduler.step()
    return rates


def main(config: OptimConfig, unit: int, total: int) -> Scheduler:
    """Return what makes torch's scheduler, for `unit` scheduler steps an epoch and `total` of them."""
    return functools.partial(torch_twin.scheduler_of, config, unit=unit, total=total)


def check_rates(config: OptimConfig, theirs: list[float]) -> None:
    """Compare the rates on the host; test_optim.py ties those inside jit to them."""
    timeline = Timeline(SPE, EPOCHS, examples=100)
    ours = [learning_rate(config, timeline, step) for step in range(TOTAL)]
    assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-15 * config.lr)  # torch's are products of many factors


SCHEDULES = {
    "constant": OptimConfig(schedule="constant"),
    "multistep": OptimConfig(milestones=(2, 5, 6)),
    "step": OptimConfig(schedule="step", step_size=2, gamma=0.3),
    "exponential": OptimConfig(schedule="exponential", gamma=0.98, lr=0.02),
    "linear": OptimConfig(schedule="linear", lr=0.5),
    "cosine": OptimConfig(schedule="cosine", lr=0.05),
    "polynomial": OptimConfig(schedule="polynomial", power=2.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_every_step_is_torchs(name: str) -> None:
    config = SCHEDULES[name]
    check_rates(config, rates_of(main(config, 1, EPOCHS), config.lr, TOTAL, every=SPE))
    config = dataclasses.replace(config, schedule_every="step")
    check_rates(config, rates_of(main(config, SPE, TOTAL), config.lr, TOTAL))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "steps", "start"), [(2.0, 14, 0.1), (1.3, 9, 1 / 3), (0.5, 4, 0.01)])
def test_the_rate_of_every_step_after_a_warmup_is_torchs(name: str, warmup: float, steps: int, start: float) -> None:
    config = dataclasses.replace(SCHEDULES[name], schedule_every="step", warmup=warmup, warmup_start=start)

    def both(sgd: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rising = lr_scheduler.LinearLR(sgd, start, total_iters=steps)
        return lr_scheduler.SequentialLR(sgd, [rising, main(config, SPE, TOTAL - steps)(sgd)], [steps])

    check_rates(config, rates_of(both, config.lr, TOTAL))


@pytest.mark.parametrize("name", SCHEDULES)
def test_whole_epochs_count_from_the_end_of_the_warmup(name: str) -> None:
    config = dataclasses.replace(SCHEDULES[name], warmup=2.0, warmup_start=0.2)
    rising = rates_of(lambda sgd: lr_scheduler.LinearLR(sgd, 0.2, total_iters=2 * SPE), config.lr, 2 * SPE)
    check_rates(config, rising + rates_of(main(config, 1, EPOCHS - 2), config.lr, TOTAL - 2 * SPE, every=SPE))


@pytest.mark.parametrize("scale", [1e-7, 1e-2, 1.0, 100.0])
def test_clipping_is_clip_grad_norm(scale: float) -> None:
    rng = np.random.default_rng(0)
    grads = {"a": scale * rng.standard_normal((3, 4)), "b": scale * rng.standard_normal(5)}
    params = [nn.Parameter(torch.zeros(grad.shape, dtype=torch.float64)) for grad in grads.values()]
    for p, grad in zip(params, grads.values(), strict=True):
        p.grad = torch.from_numpy(grad.copy())
    norm = nn.utils.clip_grad_norm_(params, 0.5 * scale).item()
    assert norm > 0.5 * scale
    config = OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.5 * scale)
    with jax.enable_x64(True):
        tx = transformation(config, TIMELINE)
        trees = jax.tree.map(jnp.asarray, grads)
        updates: Any = jax.jit(tx.update)(trees, tx.init(trees), trees)[0]
    for p, update in zip(params, updates.values(), strict=True):
        assert p.grad is not None
        np.testing.assert_allclose(-update, p.grad.numpy(), rtol=1e-14)


def walk() -> list[np.ndarray]:
    return list(np.cumsum(np.random.default_rng(0).standard_normal((31, 4)), axis=0))


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.99, 1), (0.4, 1), (0.9, 5)])
def test_the_average_is_torchs(decay: float, every: int) -> None:
    layer = nn.Linear(4, 1, bias=False).double()
    model = swa_utils.AveragedModel(layer, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    config = OptimConfig(ema=decay, ema_every=every)
    with jax.enable_x64(True):
        ours: Any = {"weight": jnp.asarray(walk()[0])}
        update = jax.jit(functools.partial(average, config))
        for step, weight in enumerate(walk()):
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight)[None])
            if step % every == 0:
                model.update_parameters(layer)  # at step 0 it copies
            if step:
                ours = update(ours, {"weight": jnp.asarray(weight)}, jnp.asarray(step, jnp.int32))
            theirs = next(model.parameters()).detach().numpy()[0]
            np.testing.assert_allclose(ours["weight"], theirs, rtol=1e-13)


@pytest.mark.parametrize(("decay", "every"), [(0.9999, 1), (0.5, 1), (0.5, 3)])
def test_the_average_with_warmup_is_tensorflows(decay: float, every: int) -> None:
    """tf.train.ExponentialMovingAverage: shadow -= (1 - min(decay, (1 + n) / (10 + n))) * (shadow - variable)."""
    config = OptimConfig(ema=decay, ema_every=every, ema_warmup=True)
    shadow, updates = walk()[0].copy(), 0
    with jax.enable_x64(True):
        ours: Any = jnp.asarray(shadow)
        for step, variable in enumerate(walk()[1:], start=1):
            if step % every == 0:
                shadow -= (1 - min(decay, (1 + updates) / (10 + updates))) * (shadow - variable)
                updates += 1
            ours = average(config, ours, jnp.asarray(variable), jnp.asarray(step, jnp.int32))
            np.testing.assert_allclose(ours, shadow, rtol=1e-13)
    assert updates == 30 // every


def test_lbfgs_skips_stores_and_forgets_as_torchs_does() -> None:
    """On a noisy bowl: gradients of nearly zero, curvature of either sign, and more pairs than the history holds."""
    noise, bowl, scales = np.random.default_rng(0).standard_normal((300, 6)) / 2, np.linspace(1.0, 3.0, 6), np.ones(300)
    scales[[0, 1, 60, 61, 150, 151, 152]] = 1e-8  # nothing happens
    scales[[2, 3, 100, 101, 200, 201, 202]] = 1e-6  # no step where the direction is level
    theirs = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    opt, far = torch.optim.LBFGS([theirs], 0.25, max_iter=1), []
    with jax.enable_x64(True):
        tx = transformation(OptimConfig(name="lbfgs", lr=0.25, weight_decay=0.0, schedule="constant"), TIMELINE)
        update, ours = jax.jit(tx.update), jnp.zeros(6)
        state: Any = tx.init(ours)
        for step, scale in enumerate(scales):
            before, slots = theirs.detach().numpy().copy(), opt.state[theirs]
            theirs.grad = torch.from_numpy(scale * (bowl * (before - 1) + noise[step]))
            opt.step(lambda: 0.0)
            move, state = update(scale * (bowl * (ours - 1) + noise[step]), state)
            assert np.array_equal(before, theirs.detach().numpy()) == (not np.asarray(ours + move != ours).any())
            ours = ours + move
            assert state[1].iterations == slots["n_iter"]
            assert np.count_nonzero(state[1].inverse) == len(slots.get("old_dirs", ()))
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-6)
            if "d" in slots:
                want = slots["d"].numpy() * float(slots["t"])
                far.append(np.abs(state[1].step - want).max() / np.abs(want).max())
    assert len(far) == 298
    assert max(far) < 1e-3  # measured 3e-5: differences of noise make a history that magnifies rounding
    assert len(opt.state[theirs]["old_dirs"]) == 100
