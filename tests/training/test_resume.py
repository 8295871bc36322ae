"""A run that is stopped, at any moment and by any means, ends with the bits of one that was never stopped."""

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig
from jaxclf.devices.cluster import Stops
from jaxclf.errors import Stopped, UsageError
from jaxclf.training import loop, recovery
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.run_directory import RunDirectory, read_config
from tests.tiers import quick
from tests.training.runs import TINY, Stop, complete_steps, config, ended, recipe_of, rows_of, stop_before_step

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.long
SERVER = multiprocessing.get_context("forkserver")
PER_EPOCH = 21
"""Steps: 1,352 images in batches of 64, the rest left out."""

CONFIGS = {
    "saves inside epochs": config(checkpoint_every=5),
    "evaluates every other epoch": config(eval_every=2),
    "saves where it does not evaluate": config(eval_every=2, checkpoint_every=PER_EPOCH),
    "smaller last batch": config(drop_last=False, checkpoint_every=9),
    "four steps a dispatch": config(steps_per_dispatch=4, checkpoint_every=6),
    "pairs that every epoch draws anew": dataclasses.replace(
        config(checkpoint_every=5), data=DataConfig(dataset="digit_pairs", batch_size=476, drop_last=True)
    ),
    "every option at once": dataclasses.replace(
        config(checkpoint_every=5, recalibrate=4),
        data=DataConfig(batch_size=64, drop_last=True, validation=0.1),
        augment=AugmentConfig(pad=1, flip=True, pad_mode="reflect", erasing=0.5, mixup=0.2, cutmix=1.0, test="flip"),
        model=ModelConfig(backbone=TINY, head="orthogonal", dropout=0.2, dtype="bfloat16"),
        loss=LossConfig(label_smoothing=0.1, so=0.025, l1=1e-5),
        optim=OptimConfig(
            **{"name": "nadam", "lr": 0.003, "accumulate": 2, "ema": 0.9, "ema_warmup": True, "clip_norm": 5.0},
            **{"schedule": "cosine", "schedule_every": "step", "warmup": 0.5, "freeze": ("backbone/conv1/*",)},
        ),
    ),
}
CONFIGS |= {
    f"head applied by {how}": config(head, model={"head_apply": how}, checkpoint_every=5)
    for how, head in (("gather", "orthoplex"), ("transform", "biorthogonal_hadamard"))
}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a config's run that nothing stops; each is run once."""

    @functools.cache
    def run(name: str) -> Path:
        workdir = tmp_path_factory.mktemp("uninterrupted")
        loop.train(CONFIGS[name], workdir, quiet=True)
        return workdir

    return run


def check_end(name: str, workdir: Path, uninterrupted: Callable[[str], Path]) -> None:
    """Let a stopped run go on; it must end as the one that was never stopped."""
    assert not (workdir / "result.json").exists()
    loop.train(CONFIGS[name], workdir, quiet=True)
    assert ended(workdir) == ended(uninterrupted(name))


@pytest.mark.parametrize("name", quick(CONFIGS, "saves inside epochs"))
def test_run_stopped_three_times_equals_the_uninterrupted_one(
    name: str, tmp_path: Path, uninterrupted: Callable[[str], Path]
) -> None:
    for step in (3, 34, 50):  # before the first checkpoint, inside the second epoch, inside the third
        stop_before_step(CONFIGS[name], tmp_path, step)
    check_end(name, tmp_path, uninterrupted)


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
        pytest.param(RunDirectory, "write_rows", 2, False, id="before the second epoch's row", marks=SLOW),
        pytest.param(RunDirectory, "write_rows", 2, True, id="between the row and its checkpoint", marks=SLOW),
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
        pytest.param(
            RunDirectory, "write_predictions", 1, True, id="between the predictions and the result", marks=SLOW
        ),
    ],
)
def test_run_stopped_between_two_files_equals_the_uninterrupted_one(
    owner: type, method: str, number: int, after: bool, tmp_path: Path, uninterrupted: Callable[[str], Path]
) -> None:
    name = "saves inside epochs"
    with pytest.MonkeyPatch.context() as patch:
        stop_at_call(patch, owner, method, number, after=after)
        with pytest.raises(Stop):
            loop.train(CONFIGS[name], tmp_path, quiet=True)
    check_end(name, tmp_path, uninterrupted)


# What asks whether to stop: 21 training steps an epoch, 7 batches of test images; to measure collapse 22 batches of
# training images and 7 of test images, twice each; 4 batches to recalibrate.
STOPS = {
    "evaluation": ({}, 21 + 3, 21),
    "measures": ({"collapse": True}, 21 + 7 + 30, 21),
    "recalibration": ({"recalibrate": 4}, 21 + 7 + 21 + 2, 42),
    "recalibration of replicas": ({"recalibrate": 4, "parallel": "pmap"}, 21 + 7 + 21 + 2, 42),
    "last evaluation": ({}, 2 * (21 + 7) + 3, 42),
}
"""Fields of run, at which question it is to stop, and behind which step that is."""


def stopped_at(number: int, given: Config, workdir: Path) -> str:
    """Train until a question whether to stop, which is answered by yes; return what is said."""
    count = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stops, "asked", lambda _: next(count) == number)
        with pytest.raises(Stopped) as stopping:
            loop.train(given, workdir, quiet=True)
    return str(stopping.value)


def evaluated_in_batches(**run: Any) -> Config:
    given = config(epochs=2, **run)
    return dataclasses.replace(given, data=dataclasses.replace(given.data, eval_batch_size=64))


@pytest.mark.parametrize("where", quick(STOPS, "evaluation"))
def test_a_run_stopped_in_an_evaluation_keeps_the_epoch_and_ends_with_the_same_bits(where: str, tmp_path: Path) -> None:
    fields, number, step = STOPS[where]
    given, stopped = evaluated_in_batches(**fields), tmp_path / "stopped"
    loop.train(given, tmp_path / "whole", quiet=True)
    assert f"stopped in the evaluation behind step {step} by " in stopped_at(number, given, stopped)
    waits = where != "last evaluation"
    assert complete_steps(stopped) == list(range(21, step + (not waits), 21))
    assert (stopped / "unevaluated" / str(step)).exists() == waits
    loop.train(given, stopped, quiet=True)
    assert ended(stopped) == ended(tmp_path / "whole")
    assert not (stopped / "unevaluated").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_that_waited_for_its_evaluation_is_not_gone_back_to(damaged: bool, tmp_path: Path) -> None:
    """It is left behind by a kill after the evaluation; or its file is damaged, and the run begins anew."""
    given, stopped = evaluated_in_batches(), tmp_path / "stopped"
    loop.train(given, tmp_path / "whole", quiet=True)
    stopped_at(STOPS["evaluation"][1], given, stopped)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        if damaged:
            (stopped / "unevaluated" / "21" / "state" / "manifest.ocdbt").write_bytes(b"damaged")
            for said in ("the checkpoint of step 21 is damaged", "set aside; starting again from step 0"):
                stack.enter_context(pytest.warns(UserWarning, match=said))
        else:
            patch.setattr(recovery, "forget_unevaluated", stop_here)
            with pytest.raises(Stop):
                loop.train(given, stopped, quiet=True)
            patch.undo()
            assert complete_steps(stopped) == [21]
        loop.train(given, stopped, quiet=True)
    assert ended(stopped) == ended(tmp_path / "whole")
    assert not (stopped / "unevaluated").exists()


def stop_here(*_: object) -> None:
    raise Stop


@SLOW
def test_a_run_on_a_matrix_from_a_file_goes_on_with_that_matrix_alone(tmp_path: Path) -> None:
    file = tmp_path / "own.npy"
    rows = np.random.default_rng(0).standard_normal((10, 8))
    np.save(file, rows)
    given = config(f"file:{file}", checkpoint_every=5)
    loop.train(given, tmp_path / "whole", quiet=True)
    stop_before_step(given, tmp_path / "stopped", 34)
    kept = file.read_bytes()
    np.save(file, -rows)
    with pytest.raises(UsageError, match="this version of the code builds another matrix, or its file was changed"):
        loop.train(given, tmp_path / "stopped", quiet=True)
    file.write_bytes(kept)
    loop.train(given, tmp_path / "stopped", quiet=True)
    assert ended(tmp_path / "stopped") == ended(tmp_path / "whole")


def test_rows_are_written_once_each_whatever_was_there(tmp_path: Path) -> None:
    """A row past the restored checkpoint is computed again and replaces the old one."""
    name = "evaluates every other epoch"
    stop_before_step(CONFIGS[name], tmp_path, 2 * PER_EPOCH + 5)
    file = tmp_path / "metrics.jsonl"
    assert len(file.read_text().splitlines()) == 2
    file.write_text(file.read_text() + '{"epoch": 3, "step": 63, "lr": 7.0}\n')
    loop.train(CONFIGS[name], tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["lr"] == pytest.approx(0.01)


# Real processes, killed with SIGKILL.


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return recipe_of(config(checkpoint_every=4, eval_every=2), tmp_path / "recipes")


def run_command(words: list[str], errors: Path) -> None:
    """Act as `python -m jaxclf WORDS >ERRORS 2>&1` in a process that has the package imported."""
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(words))


def start(recipe: Path, workdir: Path, epochs: int) -> ForkServerProcess:
    """Start a run in a process of its own, forked from one that imports the package once for all of them."""
    SERVER.set_forkserver_preload([__name__])
    words = ["train", str(recipe), "--workdir", str(workdir), "--run.epochs", str(epochs)]
    process = SERVER.Process(target=run_command, args=(words, errors_of(workdir)))
    process.start()
    return process


def errors_of(workdir: Path) -> Path:
    return workdir.with_suffix(".stderr")


def finish(process: ForkServerProcess, workdir: Path) -> None:
    process.join(300)
    assert process.exitcode == 0, errors_of(workdir).read_text()
    assert "Traceback" not in errors_of(workdir).read_text()


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
            assert process.is_alive(), errors_of(workdir).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        known = complete_steps(workdir)
        if target and known[-1] >= target:
            time.sleep(rng.uniform(0.0, 0.15))
        while writing and not being_written(workdir):
            assert process.is_alive(), "the run ended before the kill"
            time.sleep(0.0005)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before the kill"
    assert not (workdir / "result.json").exists()
    return Kill(max(complete_steps(workdir), default=0), being_written(workdir))


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_twenty_kills_change_no_bit(recipe: Path, tmp_path: Path) -> None:
    """Kill one run many times, at rising steps; it must end as a run that nothing disturbed."""
    rng, kills, epochs = random.Random(20), 20, 20
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(recipe, undisturbed, epochs), undisturbed)
    targets = [round(0.9 * epochs * PER_EPOCH * (index + rng.random()) / kills) for index in range(kills)]
    hits = [kill_once(recipe, killed, epochs, target, index % 2 == 1, rng) for index, target in enumerate(targets)]
    finish(start(recipe, killed, epochs), killed)
    assert ended(killed) == ended(undisturbed)
    assert [(row["epoch"], row["step"]) for row in rows_of(killed)] == [
        (e, e * PER_EPOCH) for e in range(1, epochs + 1)
    ]
    assert not being_written(killed)
    assert not (killed / "damaged_checkpoints").exists()  # a kill damages nothing: checkpoints are whole or absent
    assert len(hits) == 20
    assert len({hit.step for hit in hits}) >= 10, hits
    assert sum(hit.writing for hit in hits) >= 5, hits


@pytest.mark.slow
def test_a_finished_run_can_be_given_more_epochs(tmp_path: Path) -> None:
    short, long = config(epochs=2), config(epochs=3)
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    loop.train(long, whole, quiet=True)
    first = loop.train(short, extended, quiet=True)
    with pytest.raises(UsageError, match=r"holds a run of another config \(run\.epochs: 2 != 3\); .* by --extend$"):
        loop.train(long, extended, quiet=True)
    other = dataclasses.replace(long, optim=dataclasses.replace(long.optim, lr=0.2))
    with pytest.raises(UsageError, match=r"holds a run of another config \(optim\.lr: 0\.1 != 0\.2\)"):
        loop.train(other, extended, extend=True, quiet=True)
    loop.train(long, extended, extend=True, quiet=True)
    assert ended(extended) == ended(whole)
    assert json.loads((extended / "segments.jsonl").read_text()) == {"from_epochs": 2, "to_epochs": 3}
    assert json.loads((extended / "result-2.json").read_text())["sha256"] == first.sha256
    assert loop.train(long, extended, quiet=True).step == 63


def test_a_run_without_a_checkpoint_may_begin_anew_with_other_options(tmp_path: Path) -> None:
    RunDirectory(tmp_path, config()).close()
    with pytest.warns(UserWarning, match=r"begins anew: no checkpoint was saved .* \(run\.epochs: 3 != 2\)"):
        RunDirectory(tmp_path, config(epochs=2)).close()
    assert read_config(tmp_path) == config(epochs=2)


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
    command = [sys.executable, "-m", "jaxclf", "train", str(recipe), "--workdir", str(held)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (2, f"jaxclf: another process is running in {held}\n")
