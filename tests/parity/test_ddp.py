"""Training over two replicas by pmap, against torch's DistributedDataParallel over two processes (gloo).

The same start, the same batches, ResNet-8, everything in float64, as the recipe's rate needs (test_training_steps.py
says why). DDP gets `broadcast_buffers=False`, so that each process keeps the running statistics of its
own parts: those of process 0 are what DDP's default leaves, and their mean is what replicas are evaluated with
otherwise. The roles are processes: this file run as a program.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS, SIDE, REPLICAS, TOLERANCE = 10, 16, 2, 1e-4
STATISTICS: tuple[Any, ...] = ("first", "average")
RATES: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def train_torch(rank: int, port: int, out: Path) -> None:
    """Be one of DDP's processes; the first one also leaves the start."""
    import torch
    import torch.distributed
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks import torch_networks
    from jaxclf.config import ModelConfig
    from tests.parity import pairs

    torch.manual_seed(0)
    config = ModelConfig("resnet8")
    net = torch_networks.build(config, pairs.model_of(config), (SIDE, SIDE, 3)).double()
    if rank == 0:
        start: dict[str, Any] = {name: value.numpy() for name, value in net.state_dict().items()}
        np.savez(out / "start.npz", **start)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=REPLICAS)
    parallel = DistributedDataParallel(net, broadcast_buffers=False)
    inputs = torch.from_numpy(pairs.normalised(SIDE)).permute(0, 3, 1, 2).double()
    targets = torch.from_numpy(pairs.digits(SIDE)[1].astype(np.int64))
    sgd, each, losses = torch.optim.SGD(net.parameters(), **RATES), pairs.BATCH // REPLICAS, []
    for group in sgd.param_groups:
        group["lr"] = float(np.float32(group["lr"]))  # jaxclf's rates are float32, which shows in float64
    for step in range(STEPS):
        own = slice(step * pairs.BATCH + rank * each, step * pairs.BATCH + (rank + 1) * each)
        loss = F.cross_entropy(parallel(inputs[own]), targets[own])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    state: dict[str, Any] = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez(out / f"torch{rank}.npz", losses=np.array(losses), **state)
    torch.distributed.destroy_process_group()


def train_ours(out: Path) -> None:
    """Train over two virtual devices from the start that torch left, with each kind of statistics."""
    import jax

    jax.config.update("jax_num_cpu_devices", REPLICAS)
    jax.config.update("jax_enable_x64", True)
    from jaxclf.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
    from jaxclf.devices.layout import over_devices
    from jaxclf.models.torch_weights import load_torch, to_torch
    from jaxclf.training import losses, parallel
    from jaxclf.training.schedules import Timeline
    from jaxclf.training.step import Program
    from tests.parity import pairs

    model, layout = pairs.model_of(ModelConfig("resnet8")), over_devices(replicas=True)
    timeline, plain = Timeline(STEPS, 1, STEPS * pairs.BATCH), AugmentConfig(pad=0, flip=False)
    program = Program(model, OptimConfig(**RATES), timeline, LossConfig(), plain, pairs.MEAN, pairs.STD)
    with np.load(out / "start.npz") as file:
        start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), load_torch(model, dict(file)))
    images, labels = layout.whole(pairs.digits(SIDE), training=True)
    for statistics in STATISTICS:
        program = dataclasses.replace(program, spread=layout.spread(training=True, kept=statistics))
        state, history = layout.whole(pairs.first_state(program, start), training=True), []
        for step in range(STEPS):
            rows = np.arange(step * pairs.BATCH, (step + 1) * pairs.BATCH, dtype=np.int32)[None]
            state = state.replace(sums=layout.whole(losses.zeros(), training=True))
            state = parallel.train_steps(program, state, images, labels, rows, rows)
            history.append(losses.means(state.sums)["loss"])
        variables = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(variables))
        found: dict[str, Any] = to_torch(model, variables)
        np.savez(out / f"{statistics}.npz", losses=np.array(history), **found)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Return the results of each role by its name."""
    pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
    out, port = tmp_path_factory.mktemp("ddp"), str(free_port())
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}  # images stay float32 and are promoted

    def run(*roles: tuple[str, ...]) -> None:
        commands = [[sys.executable, "-m", "tests.parity.test_ddp", *role, str(out)] for role in roles]
        given: dict[str, Any] = {"env": environment, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(one, **given) for one in commands]
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors

    run(("torch", "0", port), ("torch", "1", port))
    run(("ours",))
    found = {}
    for file in out.glob("*.npz"):
        with np.load(file) as arrays:
            found[file.stem] = dict(arrays)
    return found


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("statistics", STATISTICS)
def test_two_replicas_train_as_torchs_ddp(statistics: str, ended: dict[str, dict[str, np.ndarray]]) -> None:
    ours, (first, second), start = ended[statistics], (ended["torch0"], ended["torch1"]), ended["start"]
    assert far(ours["losses"], (first["losses"] + second["losses"]) / 2) < TOLERANCE
    names = [name for name in start if "num_batches" not in name]
    for name in names:
        running = "running" in name
        theirs = (first[name] + second[name]) / 2 if running and statistics == "average" else first[name]
        assert far(ours[name], theirs) < TOLERANCE, name
        assert running or np.array_equal(first[name], second[name]), name
    moved = [far(start[name], first[name]) > TOLERANCE for name in names]
    assert sum(moved) > 0.9 * len(names)  # a comparison of what did not move would prove nothing


@pytest.mark.slow
def test_the_two_statistics_differ(ended: dict[str, dict[str, np.ndarray]]) -> None:
    """And training itself does not read them."""
    for name, value in ended["first"].items():
        other = ended["average"][name]
        if name.endswith("running_mean"):
            assert far(value, other) > 10 * TOLERANCE, name
        elif "running" not in name:
            assert np.array_equal(value, other), name


if __name__ == "__main__":
    role, *rest, directory = sys.argv[1:]
    if role == "torch":
        train_torch(int(rest[0]), int(rest[1]), Path(directory))
    else:
        train_ours(Path(directory))
