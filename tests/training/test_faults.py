"""Each bad input gives one clear line on stderr, no traceback, and exit code 2; what was good stays on the disk."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import Config, OptimConfig
from jaxclf.errors import RunError, UsageError, one_line
from jaxclf.models.classifier import create_model
from jaxclf.training import loop
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.evaluation import evaluate_split, restore
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.step import TrainState
from tests.tiers import quick
from tests.training.runs import config, ended, recipe_of

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]

CONFIG = config(checkpoint_every=8)
"""A whole run leaves the checkpoints 56 and 63; inside the first two epochs, 8 to 40 and 42."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose get_config() gives CONFIG."""
    return str(recipe_of(CONFIG, tmp_path_factory.mktemp("project") / "configs"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(CONFIG, workdir, quiet=True)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused, and return its one line."""

    def run(*args: str) -> str:
        capfd.readouterr()
        assert main(args) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("jaxclf: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err.removeprefix("jaxclf: ").rstrip()

    return run


# Asking for what there is not.


def test_without_a_recipe_file(refused: Callable[..., str], tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.py"
    assert refused("train", str(missing), "--workdir", str(tmp_path)) == f"there is no file {missing}"


def test_recipe_without_get_config(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    assert refused("train", str(file), "--workdir", str(tmp_path / "w")) == f"{file} defines no get_config()"
    assert refused("table", str(file), "--workdir", str(tmp_path / "w")) == f"{file} defines no get_table()"
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--model.head", "identiy"],
            "unknown head 'identiy'; did you mean 'identity' or 'block_identity'? Valid: arcface, biorthogonal",
        ),
        (["--model.backbone", "resnet18x"], "unknown backbone 'resnet18x'; did you mean 'resnet18' or 'resnet8'?"),
        (["--data.dataset", "digit"], "unknown data set 'digit'; did you mean 'digits' or 'digit_pairs'?"),
        (
            ["--model.head", "identity", "--model.maps", "5"],
            "identity gives each class a feature of its own, but there are 10 classes and 5 features; "
            "end the backbone in maps=10, or use a head that can: learned, orthogonal, hadamard",
        ),
        (["--model.backbone", "lenet5", "--model.shortcut", "A"], "backbone lenet5 has no option 'shortcut'"),
        (
            ["--model.backbone", "resnet8", "--model.maps-shortcut", "B"],
            "maps_shortcut names the shortcut of the block that maps rebuilds",
        ),
        (
            ["--model.backbone", "resnet8", "--model.maps", "10", "--model.maps-shortcut", "H"],
            "unknown maps_shortcut 'H'",
        ),
        (["--model.backbone", "lenet5"], "lenet5 takes images of 28x28 and larger; got 8x8"),
        (["--data.batch-size", "5000"], "data.batch_size 5000 leaves no whole batch of 1352"),
        (["--data.classes", "11"], "classes is 11 but digits allows 2 to 10"),
        (["--data.mean", "0.5", "0.5"], "data.mean (0.5, 0.5) and data.std (0.3756,) must have 1 numbers each"),
        (["--data.std", "0.0"], "std above 0"),
        (["--optim.milestones", "3", "1"], "optim.milestones is (3, 1) but must be strictly increasing"),
        (["--optim.milestones", "1", "1"], "optim.milestones is (1, 1) but must be strictly increasing"),
        (
            ["--optim.lr", "0", "--run.eval-every", "0", "--optim.momentum", "1.5"],
            "; optim.momentum is 1.5 but must be from 0 to below 1; run.eval_every is 0 but must be at least 1",
        ),
        (["--optim.nesterov", "--optim.momentum", "0"], "optim.nesterov is True but must be off without momentum"),
        (
            [
                "--data.no-drop-last",
                "--data.batch-size",
                "193",
                "--data.image-size",
                "32",
                "--model.backbone",
                "resnet18",
            ],
            "data.batch_size 193 leaves 1 of 1,352 images for an epoch's last batch, on which BatchNorm cannot train",
        ),
        (
            ["--data.image-size", "32", "--model.backbone", "resnet18", "--optim.accumulate", "338"],
            "the replicas leave a part of 1 image, on which BatchNorm cannot train",
        ),
        (["--data.image-size", "100000"], "images of 100000 x 100000 pixels would take "),
        (["--data.dataset", "/tmp"], "data.dataset is '/tmp' but images in a directory are 'folder:/tmp'"),
        (["--run.seed", "-1"], "run.seed is -1 but must be from 0 to 2**32 - 1"),
        (["--run.checkpoint-every", "0"], "run.checkpoint_every is 0 but must be"),
    ],
)
def test_impossible_config_is_refused_before_anything_is_made(
    flags: list[str], expected: str, refused: Callable[..., str], recipe: str, tmp_path: Path
) -> None:
    assert expected in refused("train", recipe, "--workdir", str(tmp_path / "w"), *flags)
    assert not (tmp_path / "w").exists()


def test_identity_needs_a_feature_for_each_class() -> None:
    with pytest.raises(UsageError, match=r"there are 100 classes and 64 features; end the backbone in maps=100"):
        create_model("resnet20", num_classes=100, head="identity")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--optim.lrr", "0.1"], ("--optim.lrr", "--optim.lr FLOAT")),
        (["--optim.lr", "fast"], ("--optim.lr", "'fast'")),
        (["--optim.schedule", "linea"], ("--optim.schedule", "constant", "multistep")),
        (["--run.epochs", "1.5"], ("--run.epochs", "1.5")),
    ],
)
def test_bad_flag_names_itself_and_what_is_allowed(
    flags: list[str], expected: tuple[str, ...], recipe: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused("train", recipe, "--workdir", str(tmp_path / "w"), *flags)
    assert all(words in line for words in expected), line


def test_unknown_data_set(refused: Callable[..., str]) -> None:
    assert refused("data", "info", "minst").startswith("unknown data set 'minst'; did you mean 'mnist'")


def test_real_process_says_one_line_and_exits_2(recipe: str, tmp_path: Path) -> None:
    """A data set that is not there, through the whole program (TFDS is loaded there, not here)."""
    flags = ["--data.dataset", "cifar100", "--data.data-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "jaxclf", "train", recipe, "--workdir", str(tmp_path / "w"), *flags],
        cwd=ROOT,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"jaxclf: cifar100 is not prepared: there is no {tmp_path}/cifar100/")
    assert f"run `jaxclf data prepare cifar100 --data-dir {tmp_path}`" in done.stderr
    assert not (tmp_path / "w").exists()


# Directories.


def test_directory_of_another_config_is_refused_with_the_fields(
    refused: Callable[..., str], recipe: str, whole: tuple[Path, Result]
) -> None:
    workdir, _ = whole
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    line = refused("train", recipe, "--workdir", str(workdir), "--run.epochs", "4", "--optim.lr", "0.2")
    assert line == (
        f"{workdir} holds a run of another config (optim.lr: 0.1 != 0.2; run.epochs: 3 != 4); choose another --workdir"
    )
    after = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    assert {file for file in before if before[file] != after[file]} <= {workdir / "lock"}


@pytest.mark.parametrize("flags", [[], ["--checkpoint", "best"]])
def test_directory_that_is_no_run_is_refused_and_not_made(
    flags: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refused("eval", "--workdir", str(tmp_path / "w"), *flags)
    assert line == f"{tmp_path}/w is not a run directory: it has no config.json"
    assert not (tmp_path / "w").exists()


def test_run_without_checkpoints_cannot_be_evaluated(refused: Callable[..., str], tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG).close()
    assert refused("eval", "--workdir", str(tmp_path)) == f"{tmp_path} has no checkpoint; train into it first"


@pytest.mark.parametrize("name", ["lr[0.1]", "a*", "what?", "back\\slash"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(
    name: str, refused: Callable[..., str], recipe: str, tmp_path: Path
) -> None:
    line = refused("train", recipe, "--workdir", str(tmp_path / name))
    assert line.startswith(f"--workdir {tmp_path / name} contains ")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", quick(["environment.json", "data.json", "result.json"], "data.json"))
def test_a_damaged_file_of_a_run_is_one_line(
    name: str, refused: Callable[..., str], recipe: str, whole: tuple[Path, Result], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    if name != "result.json":
        (copy / "result.json").unlink()
    for text in (b"", b"{", b"[]", b"\xff\xfe"):
        (copy / name).write_bytes(text)
        line = refused("train", recipe, "--workdir", str(copy))
        assert line.startswith(f"{copy / name} is damaged (")
        assert line.endswith("; remove it, and the same command goes on from the last checkpoint")


def test_reading_a_run_changes_nothing_and_needs_no_write_access(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    half = copy / "checkpoints" / "99.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "being_written").write_text("x")
    (copy / "lock").unlink()
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    with RunDirectory(tmp_path / "other", CONFIG), monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", None)
        assert main(["eval", "--workdir", str(copy)]) == 0
        assert main(["convert", str(copy), str(tmp_path / "w.safetensors")]) == 0
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"lock cannot be locked \(Function not implemented\): .* start only one"):
        RunDirectory(tmp_path / "w", CONFIG).close()


@pytest.mark.parametrize("broken", ["params", "batch_stats"])
def test_an_evaluation_of_numbers_that_are_not_finite_stops(broken: str, whole: tuple[Path, Result]) -> None:
    with set_up(CONFIG) as setup, RunDirectory(whole[0], CONFIG, create=False) as directory:
        state = restore(setup, directory)
        tree = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), getattr(state, broken))
        with pytest.raises(RunError, match=r"^step \d+: .* values that are not finite, and \d+ more arrays"):
            evaluate_split(setup, state.replace(**{broken: tree}), "test")


@pytest.mark.parametrize(("ema", "warmup"), [(0.999, False), (0.999, True), (0.5, False)])
def test_a_moving_average_that_cannot_have_warmed_up_is_warned_of(ema: float, warmup: bool) -> None:
    config = dataclasses.replace(CONFIG, optim=OptimConfig(ema=ema, ema_warmup=warmup))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with set_up(config):
            pass
    texts = [str(one.message) for one in said]
    assert [text for text in texts if "of the initial parameters in what is evaluated" in text] == (
        texts if ema == 0.999 and not warmup else []
    )


def test_path_below_a_file_cannot_be_written(refused: Callable[..., str], recipe: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused("train", recipe, "--workdir", str(tmp_path / "file" / "w"))
    assert line == f"cannot write to the run directory {tmp_path}/file/w: Not a directory"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small disk; skips where that is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting a tmpfs needs root")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        call = subprocess.run(command, capture_output=True, text=True, check=False)
        if call.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {call.stderr.strip()}")
        return disk

    yield mount
    if disk.is_mount():
        for ballast in disk.glob("ballast"):
            ballast.unlink()  # what threads still hold open lives on behind the unmounting, with all of its bytes
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_read_only_disk_cannot_be_written(
    refused: Callable[..., str], recipe: str, mounted: Callable[..., Path]
) -> None:
    disk = mounted("ro")
    line = refused("train", recipe, "--workdir", str(disk / "w"))
    assert line == f"cannot write to the run directory {disk}/w: Read-only file system"


def test_full_disk_before_the_first_file(
    refused: Callable[..., str], recipe: str, mounted: Callable[..., Path]
) -> None:
    disk = mounted("size=64k")
    fill(disk)
    line = refused("train", recipe, "--workdir", str(disk / "w"))
    assert line in (
        f"{disk}/w/config.json could not be written: No space left on device",
        f"cannot write to the run directory {disk}/w: No space left on device",
    )


def fill(disk: Path) -> None:
    """Leave no byte on a disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def test_what_the_disk_refuses_for_is_said_behind_a_long_path() -> None:
    path, reason = "/long" * 100, os.strerror(errno.ENOSPC)
    assert one_line(OSError(f"Error writing {path}: [{reason}]")).endswith(f"... {reason}")
    assert one_line(OSError(f"Error writing:\n [{reason}]")) == f"OSError: Error writing: [{reason}]"
    assert one_line(OSError(path)) == f"OSError: {path}"[:300]


@pytest.mark.filterwarnings("default:heartbeat failed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads, as they fail
@pytest.mark.parametrize(("failed", "kept"), quick([(32, 24), (42, 40)], (32, 24)))
def test_full_disk_stops_with_the_step_and_goes_on_when_there_is_room(
    failed: int,
    kept: int,
    recipe: str,
    whole: tuple[Path, Result],
    mounted: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = mounted("size=16m")
    command = ["train", recipe, "--workdir", str(disk / "w")]
    real = Checkpoints.save

    def filling(checkpoints: Checkpoints, state: TrainState, **about: Any) -> None:
        if int(state.step) == failed:
            checkpoints.settle()  # the one before is written beside the steps, and makes room by deleting an older one
            fill(disk)
        real(checkpoints, state, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", filling)
        assert main(command) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    *_, line = err.splitlines()
    said = re.match(
        r"jaxclf: step (\d+): .*No space left on device.* the last good (one|checkpoint) is of step (\d+)", line
    )
    assert said, line
    assert (int(said[1]), int(said[3])) == (failed, kept)
    assert (disk / "w" / "checkpoints" / str(kept) / "sha256.json").is_file()
    assert not (disk / "w" / "checkpoints" / str(failed)).exists()
    (disk / "ballast").unlink()
    assert main(command) == 0
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert ended(disk / "w") == ended(whole[0])
    assert not (disk / "w" / "damaged_checkpoints").exists()


# Divergence.


@pytest.mark.parametrize("every", quick([None, 5], 5))
def test_divergence_stops_with_its_step_and_keeps_a_good_checkpoint(
    every: int | None, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rate rises by 1e30 after the first epoch, so step 22 is good and its parameters are not."""
    flags = ["--optim.gamma", "1e30", "--optim.milestones", "1"]
    flags += ["--run.checkpoint-every", str(every)]
    command = ["train", recipe, "--workdir", str(tmp_path), *flags]
    assert main(command) == 2
    first = capfd.readouterr().err.splitlines()[-1]
    assert first.startswith("jaxclf: step 2")
    assert "loss or update is not finite" in first
    assert "the last good checkpoint is of step 21 in" in first
    assert not (tmp_path / "result.json").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    given = Config.from_json((tmp_path / "config.json").read_text())
    with RunDirectory(tmp_path, given, create=False) as directory:
        state = restore(set_up(given), directory)
    assert int(state.step) == 21
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert main(["eval", "--workdir", str(tmp_path)]) == 0
    assert "step 21 " in capfd.readouterr().out
    assert main(command) == 2  # and the same command says the same again
    assert capfd.readouterr().err.splitlines()[-1] == first


def test_divergence_before_any_checkpoint(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = loop.train_steps

    def spoiling(*given: Any) -> TrainState:
        return real(*given).replace(bad_step=jnp.ones((), jnp.int32))

    monkeypatch.setattr(loop, "train_steps", spoiling)
    assert main(["train", recipe, "--workdir", str(tmp_path)]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("jaxclf: step 1: loss or update is not finite (lr 0.1); there is no checkpoint before it in")
    assert not (tmp_path / "metrics.jsonl").exists()


# Damaged checkpoints.


@pytest.fixture
def unfinished(whole: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the finished run as it was before its last files were written."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "result.json").unlink()
    (workdir / "predictions.npz").unlink()
    return workdir


def largest(directory: Path) -> Path:
    return max((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def cut(file: Path, size: int | None = None) -> None:
    os.truncate(file, file.stat().st_size // 2 if size is None else size)


def flip(file: Path) -> None:
    values = bytearray(file.read_bytes())
    values[len(values) // 2] ^= 1
    file.write_bytes(values)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": lambda step: cut(largest(step)),
    "empty": lambda step: cut(largest(step), 0),
    "flip": lambda step: flip(largest(step)),
    "delete_data": lambda step: largest(step).unlink(),
    "delete_record": lambda step: (step / "record" / "metadata").unlink(),
    "cut_tree": lambda step: cut(step / "state" / "_METADATA", 1000),
    "cut_metrics": lambda step: cut(step / "metrics" / "metrics", 9),
    "empty_metrics": lambda step: cut(step / "metrics" / "metrics", 0),
    "delete_state": lambda step: shutil.rmtree(step / "state"),
}


def run_with_warnings(command: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run a command whose warnings are not errors; return its exit code and its lines on stderr."""
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(command)
    err = capfd.readouterr().err
    assert "Traceback" not in err, err[:2000]
    return code, [line for line in err.splitlines() if line.startswith("jaxclf: ")]


@pytest.mark.parametrize("damage", quick(DAMAGES, "cut", "delete_record", "empty_metrics"))
def test_damaged_newest_checkpoint_is_named_set_aside_and_done_without(
    damage: str,
    recipe: str,
    unfinished: Path,
    whole: tuple[Path, Result],
    capfd: pytest.CaptureFixture[str],
) -> None:
    DAMAGES[damage](unfinished / "checkpoints" / "63")
    code, lines = run_with_warnings(["train", recipe, "--workdir", str(unfinished)], capfd)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith("jaxclf: warning: the checkpoint of step 63 is damaged (")
    assert (unfinished / "damaged_checkpoints" / "63.0").is_dir()
    assert ended(unfinished) == ended(whole[0])
    assert main(["eval", "--workdir", str(unfinished)]) == 0  # the checkpoint written anew is a good one
    assert whole[1].sha256 in capfd.readouterr().out


def test_damaged_twice_is_kept_twice(
    recipe: str, unfinished: Path, whole: tuple[Path, Result], capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        flip(largest(unfinished / "checkpoints" / "63"))
        code, _ = run_with_warnings(["train", recipe, "--workdir", str(unfinished)], capfd)
        assert code == 0
        assert (unfinished / "damaged_checkpoints" / f"63.{number}").is_dir()
        (unfinished / "result.json").unlink()


def test_nothing_but_damaged_checkpoints_stops(
    recipe: str, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = sorted(int(directory.name) for directory in (unfinished / "checkpoints").iterdir())
    for step in steps:
        flip(largest(unfinished / "checkpoints" / str(step)))
    code, lines = run_with_warnings(["train", recipe, "--workdir", str(unfinished)], capfd)
    assert code == 2
    assert [line for line in lines if "warning" not in line] == [lines[-1]]
    assert lines[-1].startswith(f"jaxclf: no readable checkpoint in {unfinished}/checkpoints: step 63 (")
    assert {path.name for path in (unfinished / "damaged_checkpoints").iterdir()} == {f"{step}.0" for step in steps}
    assert not (unfinished / "result.json").exists()


@pytest.mark.parametrize("flags", [[], ["--checkpoint", "63"]])
def test_evaluating_a_damaged_checkpoint_moves_nothing_and_the_newest_may_be_the_one_before(
    flags: list[str], unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flip(largest(unfinished / "checkpoints" / "63"))
    before = sorted(unfinished.rglob("*"))
    code, lines = run_with_warnings(["eval", "--workdir", str(unfinished), *flags], capfd)
    assert (code, len(lines)) == (2 if flags else 0, 1)
    if flags:
        assert lines[0].startswith(f"jaxclf: no readable checkpoint in {unfinished}/checkpoints: step 63 (")
    else:
        assert lines[0].startswith("jaxclf: warning: the checkpoint of step 63 is damaged (")
        assert lines[0].endswith("; taking the one before")
    assert sorted(unfinished.rglob("*")) == before


def test_metrics_shorter_than_the_checkpoint_says_are_refused(
    recipe: str, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "metrics.jsonl").write_text("")
    code, lines = run_with_warnings(["train", recipe, "--workdir", str(unfinished)], capfd)
    assert code == 2
    assert lines == [f"jaxclf: {unfinished}/metrics.jsonl has 0 rows but the checkpoint was written after 3"]


@pytest.mark.parametrize("text", ["", "{", '{"data": 3}', '{"modle": {}}', "[]"])
def test_unreadable_config_of_a_run_is_one_line(
    text: str, recipe: str, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "config.json").write_text(text)
    for command in (["train", recipe], ["eval"]):
        code, lines = run_with_warnings([*command, "--workdir", str(unfinished)], capfd)
        assert code == 2
        assert len(lines) == 1


def test_other_environment_is_a_warning(
    recipe: str, unfinished: Path, whole: tuple[Path, Result], capfd: pytest.CaptureFixture[str]
) -> None:
    file = unfinished / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"jax": "0.0.1"}))
    code, lines = run_with_warnings(["train", recipe, "--workdir", str(unfinished)], capfd)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith(f"jaxclf: warning: {unfinished} goes on under another environment: jax 0.0.1 -> ")
    assert ended(unfinished) == ended(whole[0])
