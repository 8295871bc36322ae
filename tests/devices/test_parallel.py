"""50 steps with BatchNorm over several devices and processes, against one device: float64, at a rate of 0.1.

And of four stacked seeds against each by itself.

This file run as a program takes the steps, over virtual devices, which a test's own process does not have; the tests
compare what it leaves.
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

ROOT = Path(__file__).parents[2]
STEPS, BATCH, DEVICES, TOLERANCE = 50, 16, 4, 1e-6
SEEDS = (0, 1, 2, 3)
PROCESSES = [(2, 4), (4, 2)]
"""And devices of each."""


def cases() -> dict[str, dict[str, Any]]:
    """Return the fields of `run`, below, by name of the case."""
    drawn = {"flip": True, "pad": 1, "mixup": 0.4}
    return {
        "batch": {},
        "batch over devices": {"devices": DEVICES},
        "batch over two devices": {"devices": 2},
        "batch over eight devices": {"devices": 8},
        "every draw": {"augment": drawn, "dropout": 0.3},
        "every draw over devices": {"augment": drawn, "dropout": 0.3, "devices": DEVICES},
        "as a stream over devices": {"augment": {"flip": True, "pad": 1}, "devices": DEVICES, "streamed": True},
        "as a stream": {"augment": {"flip": True, "pad": 1}},
        "accumulated": {"accumulate": 2},
        "accumulated over devices": {"accumulate": 2, "devices": DEVICES},
        "ghosts": {"ghost_batch": BATCH // DEVICES},
        "ghosts over devices": {"ghost_batch": BATCH // DEVICES, "devices": DEVICES},
        "ghosts over more devices than there are": {"ghost_batch": BATCH // 2, "devices": DEVICES},
        "ghosts over fewer devices": {"ghost_batch": BATCH // 2},
        "replicas": {"devices": DEVICES, "replicas": True},
        "replicas of a stream": {
            **{"augment": {"flip": True, "pad": 1}, "devices": DEVICES},
            **{"replicas": True, "streamed": True},
        },
        "ghosts of a stream": {"augment": {"flip": True, "pad": 1}, "ghost_batch": BATCH // DEVICES},
        "a batch that does not split": {"size": 6},
        "a batch that does not split over devices": {"size": 6, "devices": DEVICES},
        "ghosts with a rest": {"size": 6, "ghost_batch": 4},
        "four steps a dispatch over devices": {"devices": DEVICES, "together": True},
        "class means of ghosts": {"head": "class_mean", "ghost_batch": BATCH // DEVICES},
        "class means over devices": {"head": "class_mean", "ghost_batch": BATCH // DEVICES, "devices": DEVICES},
        "class means of replicas": {"head": "class_mean", "devices": DEVICES, "replicas": True},
        "four steps a dispatch of replicas": {"devices": DEVICES, "replicas": True, "together": True},
    }


EQUAL = [
    ("batch over devices", "batch"),
    ("batch over two devices", "batch"),
    ("batch over eight devices", "batch"),
    ("batch over 2 processes", "batch"),
    ("batch over 4 processes", "batch"),
    ("every draw over devices", "every draw"),
    ("as a stream over devices", "as a stream"),
    ("accumulated over devices", "accumulated"),
    ("ghosts over devices", "ghosts"),
    ("ghosts over more devices than there are", "ghosts over fewer devices"),
    ("replicas", "ghosts"),
    ("replicas of a stream", "ghosts of a stream"),
    ("a batch that does not split over devices", "a batch that does not split"),
    ("four steps a dispatch over devices", "batch"),
    ("four steps a dispatch of replicas", "replicas"),
    ("class means over devices", "class means of ghosts"),
    ("class means of replicas", "class means of ghosts"),
    *[(f"stacked seed {seed}", f"seed {seed}") for seed in SEEDS],
]
OTHER = [("ghosts", "batch"), ("accumulated", "batch"), ("every draw", "batch"), ("ghosts with a rest", "batch")]
OTHER += [("stacked seed 0", "stacked seed 1")]


def take(out: Path, chosen: dict[str, dict[str, Any]], devices: int) -> None:
    """Run some cases, with so many devices at most, and write variables, sums and an evaluation of each."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    from jaxclf.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
    from jaxclf.devices.layout import over_devices
    from jaxclf.models.classifier import Classifier
    from jaxclf.models.heads import create_head
    from jaxclf.training import parallel
    from jaxclf.training.schedules import Timeline
    from jaxclf.training.stack import slices, stacked
    from jaxclf.training.step import Program, eval_step, init_state
    from tests.tiny import Tiny

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 5, 64, np.int32)

    def widened(state: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)

    def trained(state: Any) -> Any:
        tree = {"params": state.params, "stats": state.batch_stats, "sums": state.sums, "head": state.head_state}
        return jax.tree.map(np.asarray, tree)

    def flat(tree: Any) -> dict[str, Any]:
        leaves = jax.tree.leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def run(
        *,
        devices: int = 1,
        replicas: bool = False,
        streamed: bool = False,
        together: bool = False,
        size: int = BATCH,
        augment: dict[str, Any] | None = None,
        dropout: float = 0.0,
        accumulate: int = 1,
        ghost_batch: int | None = None,
        head: str = "learned",
    ) -> dict[str, Any]:
        layout = over_devices(devices, replicas=replicas)
        model = Classifier(Tiny(), create_head(head, 5, 8, bias=None, seed=0), dropout=dropout)
        optim = OptimConfig(lr=0.1, weight_decay=1e-3, accumulate=accumulate, clip_norm=1.0)
        drawn = AugmentConfig(**({"pad": 0, "flip": False} | (augment or {})))
        timeline, loss, mean = Timeline(10, 5, 160), LossConfig(l2=1e-4), (0.5, 0.5, 0.5)
        given, shared = ModelConfig(ghost_batch=ghost_batch), layout.spread(training=True)
        program = Program(model, optim, timeline, loss, drawn, mean, mean, model_config=given, spread=shared)
        state = init_state(program, (8, 8, 3), 0, 0)
        state = layout.whole(widened(state), training=True)
        pool_images, pool_labels = layout.whole((images, labels), training=True)
        order = np.stack([rng.permutation(64)[:size] for rng in map(np.random.default_rng, range(STEPS))])
        order = order.astype(np.int32)
        batches = [order] if together else [row[None] for row in order]
        for rows in batches:
            if streamed:
                arrays = (images[rows[0]], labels[rows[0]], rows[0])
                pixels, own, examples = layout.rows(arrays, size, training=True)
                state = parallel.train_steps(program, state, pixels, own, None, examples)
            else:
                state = parallel.train_steps(program, state, pool_images, pool_labels, rows, rows)
            if not layout.ahead:
                jax.block_until_ready(state)
        before = trained(state)
        for number, row in enumerate(order[:2], 1):
            one = row[None]
            state = parallel.recalibrate_step(program, state, pool_images, pool_labels, one, number, one)
            jax.block_until_ready(state)
        alone = dataclasses.replace(program, spread=layout.spread())
        indices, mask = np.arange(64, dtype=np.int32), np.arange(64) < 50
        tested_images, tested_labels = layout.whole((images, labels))
        sums, answers = eval_step(alone, state, tested_images, tested_labels, indices, mask)
        after = {"recalibrated": state.batch_stats, "tested": sums, "answers": answers._asdict()}
        return flat(before | jax.tree.map(np.asarray, after))

    def drawn_rows(number: int) -> list[np.ndarray]:
        """Return each seed's rows [1 b] of a step."""
        each = [np.random.default_rng((seed, number)).permutation(64)[:BATCH] for seed in SEEDS]
        return [rows.astype(np.int32)[None] for rows in each]

    def seeds(*, together: bool) -> dict[str, dict[str, Any]]:
        """Train with an orthogonal head of each seed's own, in that seed's order and draws."""
        model = Classifier(Tiny(), create_head("orthogonal", 5, 8, bias=None, seed=0), dropout=0.3)
        drawn, mean = AugmentConfig(pad=1, flip=True, mixup=0.4), (0.5, 0.5, 0.5)
        program = Program(model, OptimConfig(lr=0.1), Timeline(10, 5, 160), LossConfig(), drawn, mean, mean)
        states = [widened(init_state(program, (8, 8, 3), seed, seed)) for seed in SEEDS]
        if together:
            one = stacked(states)
            for number in range(STEPS):
                one = parallel.stacked_steps(program, one, images, labels, np.stack(drawn_rows(number)))
            states = list(slices(one, len(SEEDS)))
        else:
            for number in range(STEPS):
                pairs = zip(states, drawn_rows(number), strict=True)
                states = [parallel.train_steps(program, state, images, labels, own) for state, own in pairs]
        name = "stacked seed" if together else "seed"
        return {f"{name} {seed}": flat(trained(state)) for seed, state in zip(SEEDS, states, strict=True)}

    for name, fields in chosen.items():
        found = run(**fields)
        if jax.process_index() == 0:
            np.savez(out / f"{name}.npz", **found)
    if jax.process_count() == 1:
        for name, found in (seeds(together=True) | seeds(together=False)).items():
            np.savez(out / f"{name}.npz", **found)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    out = tmp_path_factory.mktemp("steps")
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}  # images stay float32 and are promoted
    groups = [[[]]] + [[[str(n), str(devices), str(rank)] for rank in range(n)] for n, devices in PROCESSES]
    for group in groups:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        program = [sys.executable, "-m", "tests.devices.test_parallel", str(out)]
        commands = [[*program, *place, *([port] if place else [])] for place in group]
        options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(one, **options) for one in commands]
        for process in started:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    found = {}
    for file in out.glob("*.npz"):
        with np.load(file) as arrays:
            found[file.stem] = dict(arrays)
    return found


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "alone"), EQUAL, ids=[name for name, _ in EQUAL])
def test_a_step_is_the_same(shared: str, alone: str, taken: dict[str, dict[str, np.ndarray]]) -> None:
    assert taken[shared].keys() == taken[alone].keys()
    for name, value in taken[shared].items():
        if value.dtype.kind == "i":
            assert np.array_equal(value, taken[alone][name]), name
        else:
            assert far(value, taken[alone][name]) < TOLERANCE, (name, far(value, taken[alone][name]))


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), OTHER, ids=[name for name, _ in OTHER])
def test_what_is_another_meaning_is_another_step(one: str, other: str, taken: dict[str, dict[str, np.ndarray]]) -> None:
    """Else the comparisons above would show nothing."""
    name = "params/backbone/conv1/kernel"
    assert far(taken[one][name], taken[other][name]) > 1000 * TOLERANCE


if __name__ == "__main__":
    directory, *place = sys.argv[1:]
    if place:
        import jax

        total, own, rank, port = map(int, place)
        jax.distributed.initialize(f"127.0.0.1:{port}", total, rank)
        take(Path(directory), {f"batch over {total} processes": {"devices": own}}, own)
    else:
        take(Path(directory), cases(), 8)
