"""Twenty steps of SGD beside PyTorch: the same start, the same batches, a drop of the learning rate inside.

Ours is training.parallel.train_steps itself, theirs the twin of torch_twin.py. Distances are relative:
max|a - b| / max|b| per tensor, |a / b - 1| for a step's loss.

Training with BatchNorm is chaotic. At rate 0.1 rounding grows tenfold a step: after 20 steps of ResNet-20 from its
start, PyTorch in float32 is 20 % away from PyTorch in float64 in the loss and 100 % in some parameters, so float32
could not tell a right step from a wrong one. Hence two comparisons, both from a network that has settled for 20 steps:
the recipe's rate with both sides in float64 (measured: loss 7e-14; variables 6e-8, the float32 in which load_torch
hands them over), and float32, as users run it, at a rate that leaves rounding below the tolerance.

Whole networks of the zoo train in float64 alone, at a tenth of the recipe's rate. What their dropouts multiply by,
stochastic depth and auxiliary classifiers among them, is drawn by our step and given to PyTorch.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

# Not "torch": without PyTorch, the folder of this file would be found as a namespace package of that name.
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
from torch import nn

from benchmarks import torch_networks
from jaxclf.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from jaxclf.models.backbones import mobilenet_v2, shufflenet_v2
from jaxclf.models.classifier import Classifier
from jaxclf.models.stages import blocks
from jaxclf.models.torch_weights import load_torch
from jaxclf.training import losses
from jaxclf.training.parallel import train_steps
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import DROPOUT_STREAM, Program, train_forward
from tests.parity import torch_twin, zoo_twins
from tests.parity.pairs import BATCH, MEAN, STD, digits, first_state, normalised, pair

STEPS = 20
RECIPE = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, milestones=(1,))
PLAIN = AugmentConfig(pad=0, flip=False)


def program_of(model: Classifier, optim: OptimConfig, loss: LossConfig, batch: int) -> Program:
    """Return the program of twenty steps in two epochs."""
    return Program(model, optim, Timeline(STEPS // 2, 2, batch * STEPS // 2), loss, PLAIN, MEAN, STD)


def batch_of(program: Program) -> int:
    """Return how many images a step takes."""
    return program.timeline.examples // program.timeline.steps_per_epoch


def run_torch(net: Any, program: Program, side: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train in place; return the losses and a copy of the last state dict."""
    twin, targets = torch_twin.make_twin(program, net), np.eye(10, dtype=np.float32)[digits(side)[1]]
    history, batch = [], batch_of(program)
    for step in range(STEPS):
        part = slice(step * batch, (step + 1) * batch)
        history.append(float(twin.step(normalised(side)[part], targets[part])[0].mean()))
        if (step + 1) % program.timeline.steps_per_epoch == 0:
            twin.scheduler.step()
    return history, {key: value.numpy().copy() for key, value in net.state_dict().items()}


def run_jax(program: Program, start: Any, side: int) -> tuple[list[float], Any]:
    """Return the losses and the last state; the dtype is that of `start`."""
    images, labels = (jnp.asarray(part) for part in digits(side))
    state, history, batch = first_state(program, start), [], batch_of(program)
    for step in range(STEPS):
        indices = np.arange(step * batch, (step + 1) * batch, dtype=np.int32)[None]
        state = train_steps(program, state.replace(sums=losses.zeros()), images, labels, indices)
        history.append(losses.means(state.sums)["loss"])
    return history, state


class Case(NamedTuple):
    """A network and how it is compared."""

    config: ModelConfig
    side: int = 16
    rate: float | None = 3e-4
    """In float32; None: float64 alone, where another case has shown the network in float32."""
    moved: float = 0.75
    """Share of the variables that move in float32 by more than the tolerance."""
    linear: bool = False
    """Whether no activation stands between two of its normalisations."""
    loss: LossConfig = LossConfig()


CASES = {
    "resnet20": Case(ModelConfig("resnet20"), 32, rate=1e-3, moved=0.9),
    "identity": Case(ModelConfig("resnet8", "identity", maps=10, maps_shortcut="A")),
    "learned": Case(ModelConfig("resnet8", "learned", maps=16, maps_shortcut="B")),
    "orthogonal": Case(ModelConfig("resnet8", "orthogonal", maps=16, maps_shortcut="C")),
    "hadamard": Case(ModelConfig("resnet8", "hadamard", maps=16, maps_shortcut="D")),
    "etf_dr": Case(ModelConfig("resnet20", "etf_dr"), rate=None, loss=LossConfig("dot_regression")),
    "reponet_simplex": Case(ModelConfig("resnet20", "reponet_simplex"), rate=None),
    "normface": Case(ModelConfig("resnet20", "normface"), rate=None),
    "arcface": Case(ModelConfig("resnet8", "arcface"), 8, rate=None, loss=LossConfig("arcface", label_smoothing=0.1)),
    "densenet_bc_16_12": Case(ModelConfig("tests.tiny:SHALLOW_DENSENET"), rate=1e-3),
    "mobilenet_v2": Case(ModelConfig("mobilenet_v2", dropout=0.0), linear=True),
    "shufflenet_v2_x0_5": Case(ModelConfig("shufflenet_v2_x0_5", dropout=0.0), rate=1e-3, linear=True),
}


@pytest.fixture
def shallow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave ImageNet networks two blocks of each kind: more of the same is more compiling."""
    for family in (mobilenet_v2, shufflenet_v2):
        monkeypatch.setattr(family, "blocks", lambda *given: blocks(*given[:2]))
    monkeypatch.setattr(mobilenet_v2, "STAGES", mobilenet_v2.STAGES[:3])
    make = torch_networks._torchvision

    def shortened(name: str) -> Any:
        request.getfixturevalue("torchvision")
        net = make(name)
        if name == "mobilenet_v2":
            kept = {"0": net.features[0], **{str(place): net.features[place] for place in range(1, 6)}}
            last = nn.Sequential(nn.Conv2d(32, 1280, 1, bias=False), *list(net.features[18])[1:])
            net.features = nn.Sequential(OrderedDict(kept | {"18": last}))
        else:
            net.stage2, net.stage3, net.stage4 = (stage[:2] for stage in (net.stage2, net.stage3, net.stage4))
        return net

    monkeypatch.setattr(torch_networks, "_torchvision", shortened)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_torchs(name: str) -> None:
    case = CASES[name]
    model, _, net = pair(case.config, (case.side, case.side, 3))
    program = program_of(model, RECIPE, case.loss, BATCH)
    _, settled = run_torch(net, dataclasses.replace(program, optim=OptimConfig(lr=0.05)), case.side)
    start: Any = load_torch(model, settled)
    # The images stay float32 and are promoted, so strictness must give way where all else is float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start)
        check(case, program, wide, net, settled, tolerance=1e-6)
    if case.rate is not None:
        small = dataclasses.replace(program, optim=dataclasses.replace(RECIPE, lr=case.rate))
        check(case, small, start, net, settled, tolerance=1e-4)


class Whole(NamedTuple):
    """A whole network, its twin, and its images."""

    config: ModelConfig
    twin: Callable[[], nn.Module]
    dropouts: int = 0
    """That draw in a step."""
    batch: int = 8
    side: int = 32
    rate: float = 0.01
    """Of learning, at which twenty steps do not grow rounding to the tolerance on any processor that was tried."""


NO_DROPS, EFFICIENTNET = ModelConfig("efficientnet_b0", stochastic_depth=0.0), ModelConfig("efficientnet_b0")
WHOLE = {
    "googlenet": Whole(ModelConfig("googlenet"), zoo_twins.googlenet, dropouts=3),
    "bit_r50x1": Whole(ModelConfig("bit_r50x1"), zoo_twins.bit_r50x1, batch=4),
    "efficientnet_b0_no_drops": Whole(NO_DROPS, functools.partial(zoo_twins.efficientnet, 0.0), dropouts=1),
    "efficientnet_b0": Whole(EFFICIENTNET, functools.partial(zoo_twins.efficientnet, 0.2), dropouts=10),
    "hardnet39ds": Whole(ModelConfig("hardnet39ds"), zoo_twins.hardnet39ds, dropouts=1, side=64, rate=1e-3),
    "se_resnet50": Whole(ModelConfig("se_resnet50"), zoo_twins.se_resnet50, batch=4),
    "wrn40_2": Whole(ModelConfig("wrn40_2"), zoo_twins.wrn40_2, side=16),
}


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", WHOLE)
def test_twenty_steps_of_a_whole_network_are_torchs(name: str) -> None:
    config, twin, dropouts, batch, side, rate = WHOLE[name]
    torch_twin.torch.manual_seed(0)  # of the dropouts before the comparison
    model, _, net = pair(config, (side, side, 3), twin)
    program = program_of(model, dataclasses.replace(RECIPE, lr=rate), LossConfig(), batch)
    _, settled = run_torch(net, dataclasses.replace(program, optim=OptimConfig(lr=0.01)), side)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), load_torch(model, settled))
        draws = [
            [np.moveaxis(np.array(one), -1, 1) for one in drawn(program, wide, jnp.int32(step), side)]
            for step in range(STEPS if dropouts else 1)
        ]
        assert len(draws[0]) == dropouts
        zoo_twins.follow(net, draws if dropouts else [[]] * STEPS)
        check(Case(config, side), program, wide, net, settled, tolerance=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 3))
def drawn(program: Program, variables: Any, step: jax.Array, side: int) -> list[jax.Array]:
    """Return what the dropouts of a training step multiply by, 0 or 1 / (1 - rate), in the order of their calls.

    The steps' seed is 0. Nothing else of the network is computed: each dropout is shown ones and leaves its input.
    """
    factors = []

    def show(call: Any, given: tuple[Any, ...], options: dict[str, Any], context: Any) -> Any:
        if not isinstance(context.module, flax.linen.Dropout) or context.method_name != "__call__":
            return call(*given, **options)
        if context.module.rate and not context.module.deterministic:
            factors.append(call(jnp.ones_like(given[0])))
        return given[0]

    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(jnp.uint32(0)), DROPOUT_STREAM), step)
    with flax.linen.intercept_methods(show):
        train_forward(program, variables, jnp.zeros((batch_of(program), side, side, 3), jnp.float32), rng)
    return factors


def check(case: Case, program: Program, start: Any, net: Any, settled: Any, *, tolerance: float) -> None:
    """Train on, PyTorch in float64, and compare every loss and every variable at the end."""
    net.double().load_state_dict({key: torch_twin.torch.from_numpy(value) for key, value in settled.items()})
    their_losses, state_dict = run_torch(net, program, case.side)
    our_losses, state = run_jax(program, start, case.side)
    off = np.abs(np.array(our_losses) / np.array(their_losses) - 1)
    dtype = np.dtype(jax.tree.leaves(start)[0].dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {dtype}
    assert len(off) == STEPS
    assert off.max() < tolerance, f"losses are off by {off}"
    a: dict[str, Any] = traverse_util.flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    b: dict[str, Any] = traverse_util.flatten_dict(load_torch(program.model, state_dict), sep="/")
    c: dict[str, Any] = traverse_util.flatten_dict(start, sep="/")
    b = {name: value for name, value in b.items() if not name.startswith("fixed/")}
    assert a.keys() == b.keys()
    far = {name: float((np.abs(np.asarray(a[name]) - b[name]) / unit(name, b, case, dtype)).max()) for name in b}
    moved = np.mean([np.abs(b[name] - c[name]).max() > tolerance * np.abs(b[name]).max() for name in b])
    worst = max(far, key=lambda name: far[name])
    print(f"{dtype}: loss {off.max():.1e}, {worst} {far[worst]:.1e}, {moved:.2f} of them moved")
    assert far[worst] < tolerance, f"{worst} is off by {far[worst]:.1e}"
    assert moved > (case.moved if dtype == np.float32 else 0.9)  # what did not move would prove nothing


def unit(name: str, values: dict[str, Any], case: Case, dtype: np.dtype) -> Any:
    """Return what a distance is measured in, the largest value of the tensor.

    But in float32, where no activation stands between two normalisations, the running standard deviations for running
    means, and BatchNorm's weights for its biases: the second one's means and the first one's bias gradients are zero
    but for rounding, means of 1e-8, in which PyTorch's own float32 is as far from its float64 as ours is.
    """
    layer = name.partition("/")[2].rpartition("/")[0]
    if case.linear and dtype == np.float32 and f"batch_stats/{layer}/running_var" in values:
        if name.endswith("running_mean"):
            return np.sqrt(values[f"batch_stats/{layer}/running_var"])
        if name.endswith("bias"):
            return np.abs(values[f"params/{layer}/weight"]).max()
    return np.abs(values[name]).max()
