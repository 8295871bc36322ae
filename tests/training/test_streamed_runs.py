"""Runs on streamed sets: what stops them, what they leave, and that they go on with the same bits, whoever reads."""

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, Loader, ModelConfig, OptimConfig, RunConfig
from jaxclf.data.sources import Folder
from jaxclf.errors import RunError, UsageError
from jaxclf.training import loop
from jaxclf.training.evaluation import evaluate
from tests.conftest import script
from tests.training.runs import complete_steps, ended, recipe_of, rows_of, stop_before_step

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.long
PER_EPOCH = 5
"""Steps: 32 images in batches of 7, the last one of 4."""


def config(folder: Path, *, on_error: Any = "raise", data: Any = (), augment: Any = (), **run: Any) -> Config:
    return Config(
        data=DataConfig(
            f"folder:{folder}", batch_size=7, eval_batch_size=5, image_size=24, on_error=on_error, **dict(data)
        ),
        augment=AugmentConfig(crop="random_resized", pad=0, **dict(augment)),
        model=ModelConfig("tests.tiny:Tiny"),
        optim=OptimConfig(lr=0.05, milestones=(2,)),
        run=RunConfig(**dict[str, Any]({"epochs": 3, "checkpoint_every": 3} | run)),
    )


EVERY_OPTION: dict[str, Any] = {
    "data": {"classes": 3, "validation": 0.25, "drop_last": True, "resize": 30, "interpolation": "bicubic"},
    "augment": {"erasing": 0.5, "mixup": 0.2, "jitter": (0.4, 0.0, 0.0, 0.0), "test": "flip"},
    "recalibrate": 3,
    "eval_every": 2,
}


@pytest.fixture
def folder(photo_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(photo_folder, tmp_path / "images")


@pytest.fixture(scope="module")
def undisturbed(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    loop.train(config(photo_folder), workdir, quiet=True)
    return workdir


def test_a_run_says_what_its_images_are(undisturbed: Path, photo_folder: Path) -> None:
    stated = json.loads((undisturbed / "data.json").read_text())
    assert stated["class_names"] == ["ant", "bee", "cat", "dog"]
    assert {split: part["images"] for split, part in stated["splits"].items()} == {"train": 32, "test": 12}
    assert stated["splits"]["test"]["sha256"] == Folder(photo_folder / "val").fingerprint()
    assert not (undisturbed / "skipped.jsonl").exists()
    assert [row["step"] for row in rows_of(undisturbed)] == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
    with np.load(undisturbed / "predictions.npz") as file:
        assert file["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_finished_run_evaluates_to_its_result(undisturbed: Path, photo_folder: Path) -> None:
    result = json.loads((undisturbed / "result.json").read_text())
    again = evaluate(config(photo_folder), undisturbed, loader=Loader(threads=3))
    assert (again.sha256, again.top1, again.loss) == (result["sha256"], result["top1"], result["loss"])


@pytest.mark.slow
def test_a_run_goes_on_inside_an_epoch_with_other_readers(
    undisturbed: Path, photo_folder: Path, tmp_path: Path
) -> None:
    before, plain = threading.active_count(), config(photo_folder)
    for step, threads in ((2, 1), (8, 4), (13, 2)):
        stop_before_step(plain, tmp_path, step, Loader(threads=threads))
        assert threading.active_count() <= before
    loop.train(plain, tmp_path, loader=Loader(threads=3), quiet=True)
    assert ended(tmp_path) == ended(undisturbed)


@pytest.mark.slow
def test_a_run_with_every_option_goes_on_with_other_processes(photo_folder: Path, tmp_path: Path) -> None:
    whole = config(photo_folder, **EVERY_OPTION)
    loop.train(whole, tmp_path / "undisturbed", quiet=True)
    for step, loader in ((3, Loader(workers=1)), (5, Loader(threads=3))):
        stop_before_step(whole, tmp_path / "stopped", step, loader)
    loop.train(whole, tmp_path / "stopped", loader=Loader(workers=2), quiet=True)
    assert ended(tmp_path / "stopped") == ended(tmp_path / "undisturbed")
    assert not multiprocessing.active_children()


def test_a_run_does_not_go_on_with_other_images(folder: Path, tmp_path: Path) -> None:
    stop_before_step(config(folder), tmp_path / "run", 4, Loader())
    shutil.copy(folder / "train" / "ant" / "0.jpg", folder / "train" / "ant" / "more.jpg")
    with pytest.raises(UsageError) as caught:
        loop.train(config(folder), tmp_path / "run", quiet=True)
    assert str(caught.value) == (
        f"{tmp_path}/run holds a run on other data (train images, 32 then and 33 now); choose another --workdir"
    )
    (folder / "train" / "ant" / "more.jpg").unlink()
    loop.train(config(folder), tmp_path / "run", quiet=True)


def test_a_broken_image_stops_the_run_and_costs_nothing_that_was_done(
    undisturbed: Path, folder: Path, tmp_path: Path
) -> None:
    workdir, plain = tmp_path / "run", config(folder)
    stop_before_step(plain, workdir, 7, Loader())
    images = {file: file.read_bytes() for file in folder.glob("train/*/*.jpg")}
    for file in images:
        file.write_bytes(b"no image")
    with pytest.raises(RunError) as caught:
        loop.train(plain, workdir, quiet=True)
    message = str(caught.value)
    assert "/train/" in message
    assert message.endswith(f"; the last good checkpoint is of step 6 in {workdir}/checkpoints")
    for file, data in images.items():
        file.write_bytes(data)
    loop.train(plain, workdir, quiet=True)
    assert ended(workdir) == ended(undisturbed)


@pytest.fixture
def broken(folder: Path) -> Path:
    """The images with one in training and one in testing that cannot be read."""
    (folder / "train" / "bee" / "2.jpg").write_bytes(b"no image")
    (folder / "val" / "ant" / "0.png").write_bytes(b"")
    return folder


@pytest.fixture
def quiet_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_what_is_skipped_is_named_once_counted_and_kept(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = loop.train(config(broken, on_error="skip"), tmp_path / "run")
    told = sorted(str(warning.message) for warning in caught if "skipped" in str(warning.message))
    assert [text.split(" cannot be read")[0] for text in told] == [
        f"skipped: {broken}/train/bee/2.jpg",
        f"skipped: {broken}/val/ant/0.png",
    ]
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted((row["split"], row["index"]) for row in rows) == [("test", 0), ("train", 10)]
    assert result.skipped == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == 2
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        assert file["labels"].tolist() == [-1, 0, 0] + [1] * 3 + [2] * 3 + [3] * 3
        assert (file["predictions"] == -1).tolist() == [True] + [False] * 11
        right = (file["predictions"] == file["labels"])[1:].mean()
    assert result.top1 == pytest.approx(100 * right)
    assert "skipped" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_skips_goes_on_with_the_same_bits(broken: Path, tmp_path: Path, quiet_warnings: None) -> None:
    skipping = config(broken, on_error="skip")
    loop.train(skipping, tmp_path / "undisturbed", quiet=True)
    stop_before_step(skipping, tmp_path / "stopped", 8, Loader())
    loop.train(skipping, tmp_path / "stopped", loader=Loader(threads=4), quiet=True)
    assert ended(tmp_path / "stopped") == ended(tmp_path / "undisturbed")
    assert (tmp_path / "stopped" / "skipped.jsonl").read_bytes() == (
        tmp_path / "undisturbed" / "skipped.jsonl"
    ).read_bytes()


def test_a_wrong_number_of_readers_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    for loader in (Loader(workers=-1), Loader(threads=0)):
        with pytest.raises(UsageError, match=r"^loader\.(workers|threads) is (-1|0) but must be at least [01]$"):
            loop.train(config(photo_folder), tmp_path, loader=loader)


@pytest.mark.slow
def test_a_dead_worker_stops_the_run_and_costs_nothing_that_was_done(
    undisturbed: Path, photo_folder: Path, tmp_path: Path
) -> None:
    real, plain = loop.train_steps, config(photo_folder)

    def killing(program: Any, state: Any, *batch: Any) -> Any:
        if int(state.step) == 4:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        return real(program, state, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_steps", killing)
        with pytest.raises(RunError) as caught:
            loop.train(plain, tmp_path, loader=Loader(workers=2), quiet=True)
    message = str(caught.value)
    assert message.startswith("the input stopped: worker ")
    assert "ended with signal SIGKILL; the last good checkpoint is of step " in message
    assert not multiprocessing.active_children()
    loop.train(plain, tmp_path, quiet=True)
    assert ended(tmp_path) == ended(undisturbed)


# Real processes


def start(
    recipe: Path, workdir: Path, *flags: str, devices: int = 1, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Start a run that computes on one of some virtual devices; test_parallel_runs.py computes on several."""
    where = ["--workdir", str(workdir), "--devices", "1"]
    command = [sys.executable, "-m", "jaxclf", "train", str(recipe), *where, *flags]
    # Alone, four virtual devices on two cores make four threads, over which XLA splits its sums otherwise.
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": xla, "NPROC": "4", **variables}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a good end, and return what was said on stderr."""
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return errors


def kill_after(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Kill a process as soon as something is true of what it leaves; its workers must end with it."""
    deadline = time.monotonic() + 300
    try:
        while not reached():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert workers
    while any(map(runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(process: psutil.Process) -> bool:
    """Tell whether a process is more than an entry that its new parent has yet to fetch."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def imagenet(tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a recipe over a synthetic ImageNet of some classes and some kB an image; skips as `tiny_imagenet` does."""

    @functools.cache
    def write(classes: int, kilobytes: int) -> Path:
        root = tmp_path_factory.mktemp("imagenet")
        script("synthetic_imagenet").build(root / "tfds", classes=classes, kilobytes=kilobytes)
        given = Config(
            data=DataConfig("synthetic_imagenet", data_dir=str(root / "tfds"), image_size=16, batch_size=400),
            augment=AugmentConfig(crop="random_resized", pad=0),
            model=ModelConfig("resnet8"),
            optim=OptimConfig(lr=0.05),
            run=RunConfig(checkpoint_every=3),
        )
        return recipe_of(given, root / "recipes")

    return write


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("classes", "batch", "epochs", "saved"), [(1000, 400, 1, 3), (100, 50, 2, 9)], ids=["1000", "100"]
)
def test_imagenet_killed_and_resumed_elsewhere_ends_with_the_same_bits(
    classes: int, batch: int, epochs: int, saved: int, imagenet: Callable[..., Path], tmp_path: Path
) -> None:
    """All classes are killed inside the first epoch, the first hundred inside the second."""
    recipe, steps, killed = imagenet(1000, 3), 4 * classes // batch, tmp_path / "killed"
    flags = ["--run.epochs", str(epochs), "--data.batch-size", str(batch), "--data.eval-batch-size", "500"]
    flags += [] if classes == 1000 else ["--data.classes", str(classes)]
    finish(start(recipe, tmp_path / "undisturbed", *flags))
    process = start(recipe, killed, *flags, "--loader.workers", "2", devices=4)
    kill_after(process, lambda: max(complete_steps(killed), default=0) >= saved)
    assert (epochs - 1) * steps < complete_steps(killed)[-1] < epochs * steps
    assert not (killed / "result.json").exists()
    finish(start(recipe, killed, *flags, "--loader.workers", "1", "--loader.threads", "3", devices=2))
    assert ended(killed) == ended(tmp_path / "undisturbed")
    assert json.loads((killed / "result.json").read_text())["step"] == epochs * steps
    stated = json.loads((killed / "data.json").read_text())
    images = {split: part["images"] for split, part in stated["splits"].items()}
    assert images == {"train": 4 * classes, "test": classes}
    assert len(stated["class_names"]) == classes


@dataclasses.dataclass(frozen=True)
class Used:
    """What a process and those that it started hold."""

    memory: int
    """In MiB, without mapped files; what several of them share is counted once.

    Of a library's pages that several processes map, each is charged its part: a process that starts or ends elsewhere
    on the machine moves that by 60 MiB.
    """
    files: int
    threads: int
    processes: int


def used(process: psutil.Process) -> Used | None:
    """Return what is held now; None where a process or a thread came or went while it was asked."""
    try:
        every = [process, *process.children(recursive=True)]
        return Used(
            memory=sum(anonymous(one.pid) for one in every) // 2**10,
            files=sum(one.num_fds() for one in every),
            threads=sum(one.num_threads() for one in every),
            processes=len(every),
        )
    except (psutil.Error, OSError):
        return None


def anonymous(pid: int) -> int:
    """Return the KiB of a process that no file holds, its part of what it shares with others included."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(row[1]) for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))


def held(process: psutil.Process, rows: Path) -> dict[int, list[Used]]:
    """Ask again and again, until the process ends, what it holds, by epochs that are done."""
    found: dict[int, list[Used]] = {}
    deadline = time.monotonic() + 600
    while runs(process):
        assert time.monotonic() < deadline
        epoch = len(rows.read_text().splitlines()) if rows.exists() else 0
        if (now := used(process)) is not None:
            found.setdefault(epoch, []).append(now)
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_files_and_threads_stay_flat_over_twenty_epochs(
    workers: int, imagenet: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, workdir = imagenet(20, 110), tmp_path / "run"
    flags = ["--data.eval-batch-size", "500", "--data.batch-size", "8", "--run.epochs", "20"]
    # What is freed goes back to the system at once. By itself, glibc kept 20 to 30 MB more over these epochs, and of 60
    # gave them back after the 30th.
    malloc = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    process = start(recipe, workdir, *flags, "--loader.workers", str(workers), variables=malloc)
    try:
        found = held(psutil.Process(process.pid), workdir / "metrics.jsonl")
    finally:
        process.kill()  # nothing, where it has ended
    finish(process)
    # The least of an epoch, and of that the median over six: batches and checkpoints on their way hold memory and
    # files, through a whole short epoch where the machine has other work.
    least = {
        epoch: {field.name: min(getattr(one, field.name) for one in seen) for field in dataclasses.fields(Used)}
        for epoch, seen in found.items()
        if 0 < epoch < 20 and len(seen) >= 3
    }
    early, late = ([least[epoch] for epoch in least if epoch in part] for part in (range(3, 9), range(14, 20)))
    assert len(least) >= 15, least
    assert min(one["processes"] for one in early + late) == max(one["processes"] for one in early + late)
    assert early[0]["processes"] >= 1 + workers
    for field in ("memory", "files", "threads"):
        before, after = (statistics.median(one[field] for one in part) for part in (early, late))
        assert after <= before * 1.02 + 2, (field, least)
