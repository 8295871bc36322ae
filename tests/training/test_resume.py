"""A run that is stopped, at any moment and by any means, ends with the bits of one that was never stopped."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.training import loop
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.run_directory import Result, RunDirectory

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.long
PER_EPOCH = 21
"""Steps: 1,352 images in batches of 64, the rest left out."""

RECIPE = """
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

def get_config():
    return Config(
        data=DataConfig(batch_size=64, drop_last=True), augment=AugmentConfig(pad=1, flip=False),
        model=ModelConfig(backbone="tests.tiny:Tiny", head="orthogonal"),
        optim=OptimConfig(lr=0.1, milestones=(2,)),
        run=RunConfig(epochs=3, checkpoint_every=4, eval_every=2),
    )
"""


class Stop(BaseException):
    """Stands for a kill inside this process: nothing catches it."""


def config(*, drop_last: bool = True, **run: int) -> Config:
    """Return a recipe whose learning rate falls between the epochs, so that a wrong step would show."""
    return Config(
        data=DataConfig(batch_size=64, drop_last=drop_last),
        augment=AugmentConfig(pad=1, flip=False),
        model=ModelConfig(backbone="tests.tiny:Tiny", head="orthogonal"),
        optim=OptimConfig(lr=0.1, milestones=(2,)),
        run=RunConfig(**dict[str, Any]({"epochs": 3} | run)),
    )


CONFIGS = {
    "saves inside epochs": config(checkpoint_every=5),
    "evaluates every other epoch": config(eval_every=2),
    "saves where it does not evaluate": config(eval_every=2, checkpoint_every=PER_EPOCH),
    "smaller last batch": config(drop_last=False, checkpoint_every=9),
    "four steps a dispatch": config(steps_per_dispatch=4, checkpoint_every=6),
    "every option at once": dataclasses.replace(
        config(checkpoint_every=5, recalibrate=4),
        data=DataConfig(batch_size=64, drop_last=True, validation=0.1),
        augment=AugmentConfig(pad=1, flip=True, pad_mode="reflect", erasing=0.5, mixup=0.2, cutmix=1.0, test="flip"),
        model=ModelConfig(backbone="resnet8", head="orthogonal", dropout=0.2, dtype="bfloat16"),
        loss=LossConfig(label_smoothing=0.1, so=0.025, l1=1e-5),
        optim=OptimConfig(
            **{"name": "nadam", "lr": 0.003, "accumulate": 2, "ema": 0.9, "ema_warmup": True, "clip_norm": 5.0},
            **{"schedule": "cosine", "schedule_every": "step", "warmup": 0.5, "freeze": ("backbone/conv1/*",)},
        ),
    ),
}
SLOW = pytest.mark.slow
LATER = ("saves where it does not evaluate", "smaller last batch", "four steps a dispatch", "every option at once")
"""Slow: the last three cost a second compilation each."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """All that two runs of one config must share."""

    sha256: str
    metrics: bytes
    table: bytes
    predictions: list[int]
    top1: float


def ended(workdir: Path, result: Result | None = None) -> Ended:
    values = dataclasses.asdict(result) if result else json.loads((workdir / "result.json").read_text())
    with np.load(workdir / "predictions.npz") as file:
        predictions = file["predictions"].tolist()
    return Ended(
        values["sha256"],
        (workdir / "metrics.jsonl").read_bytes(),
        (workdir / "metrics.csv").read_bytes(),
        predictions,
        values["top1"],
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ended]:
    """How a config ends when nothing stops it; each is run once."""
    known: dict[str, Ended] = {}

    def run(name: str) -> Ended:
        if name not in known:
            workdir = tmp_path_factory.mktemp("uninterrupted")
            known[name] = ended(workdir, loop.train(CONFIGS[name], workdir, quiet=True))
        return known[name]

    return run


def stop_before_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = loop.train_steps

    def stopping(program, state, images, labels, rows, examples):
        if int(state.step) + len(rows) > step:
            raise Stop
        return real(program, state, images, labels, rows, examples)

    monkeypatch.setattr(loop, "train_steps", stopping)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LATER else ()) for name in CONFIGS]
)
def test_run_stopped_three_times_equals_the_uninterrupted_one(
    name: str, tmp_path: Path, uninterrupted: Callable[[str], Ended]
) -> None:
    for step in (3, 34, 50):  # before the first checkpoint, inside the second epoch, inside the third
        with pytest.MonkeyPatch.context() as patch:
            stop_before_step(patch, step)
            with pytest.raises(Stop):
                loop.train(CONFIGS[name], tmp_path, quiet=True)
        assert not (tmp_path / "result.json").exists()
    assert ended(tmp_path, loop.train(CONFIGS[name], tmp_path, quiet=True)) == uninterrupted(name)


def stop_at_call(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: int, *, after: bool) -> None:
    real, calls = getattr(owner, method), iter(range(1, 1000))

    def stopping(*args, **kwargs):
        now = next(calls) == number
        if now and not after:
            raise Stop
        value = real(*args, **kwargs)
        if now:
            raise Stop
        return value

    monkeypatch.setattr(owner, method, stopping)


@pytest.mark.parametrize(
    ("owner", "method", "number", "after"),
    [
        pytest.param(RunDirectory, "write_rows", 2, False, id="before the second epoch's row"),
        pytest.param(RunDirectory, "write_rows", 2, True, id="between the row and its checkpoint"),
        pytest.param(
            RunDirectory, "write", 6, True, id="between metrics.csv and metrics.jsonl of an epoch", marks=SLOW
        ),
        pytest.param(Checkpoints, "save", 4, False, id="before a checkpoint inside an epoch", marks=SLOW),
        pytest.param(Checkpoints, "save", 5, True, id="after the checkpoint at the end of an epoch", marks=SLOW),
        pytest.param(
            RunDirectory,
            *("write_predictions", 1, False),
            id="between the last checkpoint and the predictions",
            marks=SLOW,
        ),
        pytest.param(RunDirectory, "write_predictions", 1, True, id="between the predictions and the result"),
    ],
)
def test_run_stopped_between_two_files_equals_the_uninterrupted_one(
    owner: type, method: str, number: int, after: bool, tmp_path: Path, uninterrupted: Callable[[str], Ended]
) -> None:
    name = "saves inside epochs"
    with pytest.MonkeyPatch.context() as patch:
        stop_at_call(patch, owner, method, number, after=after)
        with pytest.raises(Stop):
            loop.train(CONFIGS[name], tmp_path, quiet=True)
    assert not (tmp_path / "result.json").exists()
    assert ended(tmp_path, loop.train(CONFIGS[name], tmp_path, quiet=True)) == uninterrupted(name)


def test_rows_are_written_once_each_whatever_was_there(tmp_path: Path) -> None:
    """A row past the restored checkpoint is computed again and replaces the old one."""
    name = "evaluates every other epoch"
    with pytest.MonkeyPatch.context() as patch:
        stop_before_step(patch, 2 * PER_EPOCH + 5)
        with pytest.raises(Stop):
            loop.train(CONFIGS[name], tmp_path, quiet=True)
    file = tmp_path / "metrics.jsonl"
    assert len(file.read_text().splitlines()) == 2
    file.write_text(file.read_text() + '{"epoch": 3, "step": 63, "lr": 7.0}\n')
    loop.train(CONFIGS[name], tmp_path, quiet=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["lr"] == pytest.approx(0.01)


# Real processes, killed with SIGKILL.


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipes" / "tiny.py"
    file.parent.mkdir()
    file.write_text(RECIPE)
    return file


def start(recipe: Path, workdir: Path, epochs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jaxclf", "train", str(recipe), "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, "--run.epochs", str(epochs)],
        cwd=ROOT,
        env=os.environ.copy(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def complete_steps(workdir: Path) -> list[int]:
    """List the steps that have a complete checkpoint, as a stranger sees them."""
    directory = workdir / "checkpoints"
    return (
        sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()) if directory.is_dir() else []
    )


def being_written(workdir: Path) -> bool:
    directory = workdir / "checkpoints"
    return directory.is_dir() and any("orbax-checkpoint-tmp" in entry.name for entry in directory.iterdir())


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a kill hit."""

    step: int
    """Of the newest complete checkpoint; 0 before the first."""
    writing: bool
    """A half-written checkpoint was left."""


def kill_once(recipe: Path, workdir: Path, epochs: int, target: int, writing: bool, rng: random.Random) -> Kill:
    """Start the run, wait for a checkpoint of `target` or later, then kill it: while it writes one, or anywhere."""
    process = start(recipe, workdir, epochs)
    deadline = time.monotonic() + 120
    try:
        while max(complete_steps(workdir), default=0) < target:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        known = complete_steps(workdir)
        if target and known[-1] >= target:
            time.sleep(rng.uniform(0.0, 0.15))
        while writing and not being_written(workdir):
            assert process.poll() is None, "the run ended before the kill"
            time.sleep(0.0005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before the kill"
    assert not (workdir / "result.json").exists()
    return Kill(max(complete_steps(workdir), default=0), being_written(workdir))


def check_kills(recipe: Path, tmp_path: Path, *, kills: int, epochs: int) -> list[Kill]:
    """Kill one run many times, at rising steps; it must end as a run that nothing disturbed."""
    rng, total = random.Random(20), epochs * PER_EPOCH
    finish(start(recipe, tmp_path / "undisturbed", epochs))
    killed = tmp_path / "killed"
    targets = [round(0.9 * total * (index + rng.random()) / kills) for index in range(kills)]
    hits = [kill_once(recipe, killed, epochs, target, index % 2 == 1, rng) for index, target in enumerate(targets)]
    finish(start(recipe, killed, epochs))
    assert ended(killed) == ended(tmp_path / "undisturbed")
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(e, e * PER_EPOCH) for e in range(1, epochs + 1)]
    assert not being_written(killed)
    assert not (killed / "damaged_checkpoints").exists()  # a kill damages nothing: checkpoints are whole or absent
    return hits


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_three_kills_change_no_bit(recipe: Path, tmp_path: Path) -> None:
    hits = check_kills(recipe, tmp_path, kills=3, epochs=4)
    assert len({hit.step for hit in hits}) >= 2, hits


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_twenty_kills_change_no_bit(recipe: Path, tmp_path: Path) -> None:
    hits = check_kills(recipe, tmp_path, kills=20, epochs=40)
    assert len(hits) == 20
    assert len({hit.step for hit in hits}) >= 10, hits
    assert sum(hit.writing for hit in hits) >= 5, hits


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run directory that this process is running in."""
    with RunDirectory(tmp_path / "held", config()) as directory:
        yield directory.path


def test_directory_of_a_running_process_is_refused(
    held: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--workdir", str(held)]) == 2
    assert capsys.readouterr().err == f"jaxclf: another process is running in {held}\n"


def test_directory_of_another_process_is_refused(held: Path, recipe: Path) -> None:
    process = start(recipe, held, 3)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors == f"jaxclf: another process is running in {held}\n"
