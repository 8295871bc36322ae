"""Twenty steps of SGD on ResNet-20, against a PyTorch written here after akamaster/pytorch_resnet_cifar@d5489e8.

The same start, the same batches, a drop of the learning rate inside; ours is training.parallel.train_steps itself.
Distances are relative: max|a - b| / max|b| per tensor, |a / b - 1| for a step's loss.

Training with BatchNorm is chaotic. From the torch start, at rate 0.1, rounding grows tenfold a step: after 20 steps
PyTorch in float32 is 20 % away from PyTorch in float64 in the loss and 100 % in some parameters, so float32 could not
tell a right step from a wrong one. Hence two comparisons, both from a network that has settled for 20 steps: the
recipe's rate with both sides in float64 (measured: loss 3e-14; variables 6e-8, the float32 in which load_torch hands
them over), and float32, as users run it, at a rate that leaves rounding below the tolerance (measured: 3e-6; PyTorch's
own float32 is 3e-5 away).
"""

import copy
import dataclasses
import functools
import math
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

from jaxclf.config import AugmentConfig, DataConfig, LossConfig, OptimConfig
from jaxclf.data.augment import normalise
from jaxclf.data.datasets import Digits
from jaxclf.data.transforms import resize_images
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.torch_weights import load_torch
from jaxclf.training import losses
from jaxclf.training.parallel import train_steps
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, TrainState, init_state

BATCH, TOLERANCE = 16, 1e-4
MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)
RECIPE = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, milestones=(1,))
History = tuple[list[float], dict[str, np.ndarray]]


class Block(nn.Module):
    """BasicBlock; with `rebuilt`, the thesis's ClsfBlock: `planes` maps out, no ReLU after the sum."""

    def __init__(self, width: int, planes: int, stride: int, option: str, rebuilt: bool = False):
        super().__init__()
        self.planes, self.stride, self.rebuilt = planes, stride, rebuilt
        middle = width if rebuilt else planes
        self.conv1 = nn.Conv2d(width, middle, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = None
        if option == "B" and width != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        width = x.shape[1]
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.planes > width:
            front = (self.planes - width) // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.planes - width - front))
        elif self.planes < width:
            front = (width - self.planes) // 2
            x = x[:, front : front + self.planes]
        return y + x if self.rebuilt else F.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self, maps: int | None = None, option: str = "A"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = [Block(16 if stage == 1 else width // 2, width, 1 if stage == 1 else 2, "A")]
            blocks += [Block(width, width, 1, "A") for _ in range(2)]
            if stage == 3 and maps is not None:
                blocks[-1] = Block(width, maps, 1, option, rebuilt=True)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10) if maps is None else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        h = x.mean((2, 3))
        return h if self.linear is None else self.linear(h)


torch.set_num_threads(1)  # two spin against each other, and against XLA's, as soon as the machine has other work


@functools.cache
def digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """320 digits as colour images, uint8."""
    split = Digits(DataConfig("digits")).read("train")
    order = np.random.default_rng(0).permutation(len(split.labels))[:320]
    return np.repeat(resize_images(split.images[order], side), 3, axis=3), split.labels[order]


@functools.cache
def normalised(side: int) -> np.ndarray:
    """The digits as both sides see them: jaxclf's float32 values (test_augment.py compares them with torchvision's)."""
    return np.array(jax.jit(normalise, static_argnums=(1, 2))(jnp.asarray(digits(side)[0]), MEAN, STD))


def train_torch(net: nn.Module, optim: OptimConfig, steps: int, per_epoch: int, side: int = 32) -> History:
    """Train in place; return the losses and the last state dict."""
    inputs = torch.from_numpy(normalised(side)).permute(0, 3, 1, 2).to(next(net.parameters()).dtype)
    targets = torch.from_numpy(digits(side)[1].astype(np.int64))
    sgd = torch.optim.SGD(net.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, list(optim.milestones), optim.gamma)
    net.train()
    history = []
    for step in range(steps):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        loss = F.cross_entropy(net(inputs[batch]), targets[batch])
        sgd.zero_grad()
        loss.backward()
        rate = sgd.param_groups[0]["lr"]
        sgd.param_groups[0]["lr"] = float(np.float32(rate))  # jaxclf's rates are float32, which shows in float64
        sgd.step()
        sgd.param_groups[0]["lr"] = rate
        history.append(loss.item())
        if (step + 1) % per_epoch == 0:
            scheduler.step()
    return history, {key: value.numpy() for key, value in net.state_dict().items()}


def train_jax(
    model: Classifier, start: Any, optim: OptimConfig, steps: int, per_epoch: int, side: int = 32
) -> tuple[list[float], TrainState]:
    """Return the losses and the last state; the dtype is that of `start`."""
    timeline = Timeline(per_epoch, math.ceil(steps / per_epoch), per_epoch * BATCH)
    program = Program(model, optim, timeline, LossConfig(), AugmentConfig(pad=0, flip=False), MEAN, STD)
    state: TrainState = init_state(program, (side, side, 3), 0, 0)
    params, batch_stats = (jax.tree.map(jnp.asarray, start[name]) for name in ("params", "batch_stats"))
    state = state.replace(params=params, batch_stats=batch_stats, opt_state=program.tx.init(params))
    images, labels = (jnp.asarray(part) for part in digits(side))
    history = []
    for step in range(steps):
        indices = np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32)[None]
        state = train_steps(program, state.replace(sums=losses.zeros()), images, labels, indices)
        history.append(losses.means(state.sums)["loss"])
    return history, state


def check(
    model: Classifier,
    net: nn.Module,
    optim: OptimConfig,
    tolerance: float,
    *,
    float64: bool,
    steps: int,
    per_epoch: int,
    side: int = 32,
) -> None:
    """Train both from `net`'s state, PyTorch in float64, and compare every loss and every variable at the end."""
    start: Any = load_torch(model, {key: value.numpy() for key, value in net.state_dict().items()})
    their_losses, state_dict = train_torch(copy.deepcopy(net).double(), optim, steps, per_epoch, side)
    if float64:  # the images stay float32 and are promoted, so strictness must give way here
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            start = jax.tree.map(lambda leaf: leaf.astype(np.float64), start)
            our_losses, state = train_jax(model, start, optim, steps, per_epoch, side)
    else:
        our_losses, state = train_jax(model, start, optim, steps, per_epoch, side)
    far = np.abs(np.array(our_losses) / np.array(their_losses) - 1)
    assert len(far) == steps
    assert far.max() < tolerance, f"losses are off by {far}"

    theirs = load_torch(model, state_dict)
    ours = {"params": state.params, "batch_stats": state.batch_stats}
    theirs = {name: theirs[name] for name in ours}
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    moved = 0
    for (path, a), b, c in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), jax.tree.leaves(start), strict=True
    ):
        assert a.dtype == (np.float64 if float64 else np.float32)
        far = np.abs(np.asarray(a) - b).max() / np.abs(b).max()
        assert far < tolerance, f"{jax.tree_util.keystr(path)} is off by {far:.1e}"
        moved += np.abs(b - c).max() > tolerance * np.abs(b).max()
    assert moved > 0.9 * len(jax.tree.leaves(ours))  # a comparison of what did not move would prove nothing


@pytest.fixture(scope="module")
def settled() -> nn.Module:
    """ResNet-20 after 20 steps."""
    torch.manual_seed(0)
    net = ResNet20()
    train_torch(net, OptimConfig(lr=0.05), steps=20, per_epoch=20)
    return net


@pytest.mark.slow
def test_twenty_steps_of_the_recipe_are_torchs(settled: nn.Module) -> None:
    check(create_model("resnet20", num_classes=10), settled, RECIPE, 1e-6, float64=True, steps=20, per_epoch=10)


@pytest.mark.slow
def test_twenty_steps_in_float32_are_torchs(settled: nn.Module) -> None:
    optim = dataclasses.replace(RECIPE, lr=3e-4)
    check(create_model("resnet20", num_classes=10), settled, optim, TOLERANCE, float64=False, steps=20, per_epoch=10)


@pytest.mark.slow
@pytest.mark.parametrize("option", "AB")
def test_five_steps_without_a_classifier_layer_are_torchs(option: str) -> None:
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=10, head="identity", maps=10, maps_shortcut=option)
    check(model, ResNet20(10, option), RECIPE, 1e-6, float64=True, steps=5, per_epoch=3, side=16)
