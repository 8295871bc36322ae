"""Training over two replicas by pmap, against torch's DistributedDataParallel over two processes (gloo).

The same start, the same batches, ResNet-20 of test_resnet20_training.py, everything in float64, as the recipe's rate
needs (that file says why). DDP gets `broadcast_buffers=False`, so that each process keeps the running statistics of its
own parts: those of process 0 are what DDP's default leaves, and their mean is what replicas are evaluated with
otherwise. Each role is a process of its own: this file run as a program.
"""

import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

STEPS, SIDE, REPLICAS, TOLERANCE = 10, 16, 2, 1e-4
RATES: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def single() -> ModuleType:
    """The comparison on one device, whose PyTorch network and batches these are."""
    spec = importlib.util.spec_from_file_location("single", Path(__file__).parent / "test_resnet20_training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_torch(rank: int, port: int, out: Path) -> None:
    """Be one of DDP's processes; the first one also leaves the start."""
    import torch
    import torch.distributed
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    shared = single()
    torch.manual_seed(0)
    net = shared.ResNet20().double()
    if rank == 0:
        start: dict[str, Any] = {name: value.numpy() for name, value in net.state_dict().items()}
        np.savez(out / "start.npz", **start)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=REPLICAS)
    parallel = DistributedDataParallel(net, broadcast_buffers=False)
    inputs = torch.from_numpy(shared.normalised(SIDE)).permute(0, 3, 1, 2).double()
    targets = torch.from_numpy(shared.digits(SIDE)[1].astype(np.int64))
    sgd, each, losses = torch.optim.SGD(net.parameters(), **RATES), shared.BATCH // REPLICAS, []
    for group in sgd.param_groups:
        group["lr"] = float(np.float32(group["lr"]))  # jaxclf's rates are float32, which shows in float64
    for step in range(STEPS):
        own = slice(step * shared.BATCH + rank * each, step * shared.BATCH + (rank + 1) * each)
        loss = F.cross_entropy(parallel(inputs[own]), targets[own])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    state: dict[str, Any] = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez(out / f"torch{rank}.npz", losses=np.array(losses), **state)
    torch.distributed.destroy_process_group()


def train_ours(statistics: Any, out: Path) -> None:
    """Train over two virtual devices from the start that torch left."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_num_cpu_devices", REPLICAS)
    jax.config.update("jax_enable_x64", True)
    from jaxclf.config import AugmentConfig, LossConfig, OptimConfig
    from jaxclf.devices.layout import over_devices
    from jaxclf.models.classifier import create_model
    from jaxclf.models.torch_weights import load_torch, to_torch
    from jaxclf.training import losses, parallel
    from jaxclf.training.schedules import Timeline
    from jaxclf.training.step import Program, init_state

    shared, model, layout = single(), create_model("resnet20", num_classes=10), over_devices(replicas=True)
    timeline = Timeline(STEPS, 1, STEPS * shared.BATCH)
    plain = AugmentConfig(pad=0, flip=False)
    program = Program(model, OptimConfig(**RATES), timeline, LossConfig(), plain, shared.MEAN, shared.STD)
    program = dataclasses.replace(program, spread=layout.spread(training=True, kept=statistics))
    with np.load(out / "start.npz") as file:
        start = load_torch(model, dict(file))
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start)
    state = init_state(program, (SIDE, SIDE, 3), 0, 0).replace(
        params=start["params"], batch_stats=start["batch_stats"], opt_state=program.tx.init(start["params"])
    )
    state = layout.whole(state, training=True)
    images, labels = layout.whole(shared.digits(SIDE), training=True)
    history = []
    for step in range(STEPS):
        rows = np.arange(step * shared.BATCH, (step + 1) * shared.BATCH, dtype=np.int32)[None]
        state = state.replace(sums=layout.whole(losses.zeros(), training=True))
        state = parallel.train_steps(program, state, images, labels, rows, rows)
        history.append(losses.means(state.sums)["loss"])
    variables = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(variables))
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
        commands = [[sys.executable, __file__, *role, str(out)] for role in roles]
        started = [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in commands]
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors

    run(("torch", "0", port), ("torch", "1", port))
    run(("ours", "first"), ("ours", "average"))
    found = {}
    for file in out.glob("*.npz"):
        with np.load(file) as arrays:
            found[file.stem] = dict(arrays)
    return found


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["first", "average"])
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
        train_ours(rest[0], Path(directory))
