"""A run in a bucket is the run in a directory, to the bit."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclf import storage
from jaxclf.cli.main import main
from jaxclf.config import AugmentConfig, DataConfig, Loader, Watching
from jaxclf.errors import UsageError
from jaxclf.storage import claims, location, places
from jaxclf.training import loop, weights
from jaxclf.training.evaluation import evaluate
from jaxclf.training.watch import Watch
from tests.training.runs import TINY, config, ended, recipe_of, stop_before_step

ROOT = Path(__file__).resolve().parents[2]

CONFIG = config(checkpoint_every=5, epochs=2)


def downloaded(url: str, directory: Path) -> Path:
    """Copy all objects below a URL into a directory."""
    place = storage.location(url)
    for name in storage.checksums(place):
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((place / name).read_bytes())
    return directory


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing stops."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    loop.train(CONFIG, workdir, quiet=True)
    return workdir


def steps(url: str) -> list[int]:
    """List the steps that have a checkpoint, whole or not."""
    return sorted(int(name) for name in storage.names(location(url) / "checkpoints") if name.isdigit())


def require_same_end(url: str, local: Path, copy: Path) -> None:
    """Let a stopped run go on; it must end as the one that was never stopped."""
    loop.train(CONFIG, url, quiet=True)
    assert ended(downloaded(url, copy)) == ended(local)


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_stopped_ends_as_the_local_one(bucket: str, local: Path, tmp_path: Path) -> None:
    url = f"{bucket}/runs/one"
    stop_before_step(CONFIG, location(url), 34)
    left = ["checkpoints", "config.json", "data.json", "environment.json", "heartbeat.json", "metrics.csv"]
    assert storage.names(location(url)) == [*left, "metrics.jsonl"]
    require_same_end(url, local, tmp_path / "copy")
    result = loop.train(CONFIG, url, quiet=True)
    assert (result.workdir, result.sha256) == (url, json.loads((local / "result.json").read_text())["sha256"])


KILLS = int(os.environ.get("JAXCLF_BUCKET_KILLS", "2"))


@pytest.mark.slow
def test_two_processes_that_share_only_a_bucket_are_killed_and_end_as_two_on_a_disk(
    bucket: str, launch: Callable[..., Any], tmp_path: Path
) -> None:
    """When there is a new checkpoint: SIGKILL to both, SIGTERM to process 1, and so on, JAXCLF_BUCKET_KILLS times."""
    command = ("train", str(recipe_of(config(checkpoint_every=5, epochs=3 + KILLS), tmp_path / "recipes")))
    places, url, rng = [tmp_path / "a", tmp_path / "b"], f"{bucket}/run", random.Random(0)
    for place in places:
        place.mkdir()

    def start(workdir: str | Path) -> list[subprocess.Popen[str]]:
        return launch(*command, workdir=workdir, processes=2, places=places, peer_timeout=5)

    def newest() -> int:
        with contextlib.suppress(OSError):  # before the first object, and while a half-written checkpoint is cleared
            return max(steps(url), default=0)
        return 0

    def finish(workdir: str | Path) -> None:
        for one in start(workdir):
            _, errors = one.communicate(timeout=300)
            assert one.returncode == 0, errors

    finish(tmp_path / "disk")
    for number in range(KILLS):
        before, started, deadline = newest(), start(url), time.monotonic() + 180
        while newest() <= before:
            assert time.monotonic() < deadline
            assert all(one.poll() is None for one in started)
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        for rank in (1,) if number % 2 else (0, 1):
            started[rank].send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        said = [one.communicate(timeout=60)[1] for one in started]
        assert [one.returncode for one in started] == ([75, 75] if number % 2 else [-9, -9]), said
    finish(url)
    assert ended(downloaded(url, tmp_path / "copy")) == ended(tmp_path / "disk")


@pytest.mark.slow
def test_a_flipped_bit_is_found_and_its_checkpoint_set_aside(bucket: str, local: Path, tmp_path: Path) -> None:
    url = f"{bucket}/run"
    stop_before_step(CONFIG, location(url), 34)
    assert steps(url) == [21, 25, 30]
    newest = location(url) / "checkpoints" / "30"
    file = _arrays(newest)
    flipped, name = bytearray(file.read_bytes()), f"state/d/{file.name}"
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(bytes(flipped))
    before = storage.checksums(newest)
    with pytest.warns(
        UserWarning, match=rf"the checkpoint of step 30 is damaged \(Damaged: {name} does not have the CRC32C"
    ):
        require_same_end(url, local, tmp_path / "copy")
    assert storage.checksums(location(url) / "damaged_checkpoints" / "30.0") == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's readers, as they fail
def test_an_object_in_the_place_of_another_is_found_when_it_is_read(bucket: str, local: Path, tmp_path: Path) -> None:
    """Both are whole files of OCDBT, whose CRC32C is one number: 48674bc7, in base64."""
    url = f"{bucket}/run"
    stop_before_step(CONFIG, location(url), 34)
    old, new = (_arrays(location(url) / "checkpoints" / step) for step in ("25", "30"))
    assert storage.checksums(new.parent)[new.name] == storage.checksums(old.parent)[old.name] == "SGdLxw=="
    new.write_bytes(old.read_bytes())
    with pytest.warns(UserWarning, match="the checkpoint of step 30 is damaged"):
        require_same_end(url, local, tmp_path / "copy")


def _arrays(checkpoint: storage.Location) -> storage.Location:
    """Return the object of a checkpoint that holds the arrays: the largest."""
    found = [checkpoint / name for name in storage.checksums(checkpoint) if name.startswith("state/d/")]
    return max(found, key=lambda file: len(file.read_bytes()))


@pytest.mark.slow
def test_a_checkpoint_without_its_marker_or_an_object_is_none(bucket: str, local: Path, tmp_path: Path) -> None:
    url = f"{bucket}/run"
    stop_before_step(CONFIG, location(url), 34)
    (location(url) / "checkpoints" / "30" / "commit_success.txt").unlink()
    (location(url) / "checkpoints" / "25" / "record" / "metadata").unlink()
    with pytest.warns(UserWarning, match="the checkpoint of step 25 is damaged .Damaged: record/metadata is missing"):
        require_same_end(url, local, tmp_path / "copy")


@pytest.mark.slow
def test_checkpoints_copied_from_a_disk_are_refused_and_not_deleted(
    bucket: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, said = location(bucket) / "run", r"run/checkpoints holds checkpoints that were written on a disk"
    for file in local.rglob("*"):
        if file.is_file() and file.name != "result.json":
            (place / str(file.relative_to(local))).write_bytes(file.read_bytes())
    before = storage.checksums(place / "checkpoints")
    monkeypatch.setattr(claims, "BEAT", 0.1)
    with pytest.warns(UserWarning, match="process unknown of unknown"), pytest.raises(UsageError, match=said):
        loop.train(CONFIG, place, quiet=True)
    with pytest.raises(UsageError, match=said):
        evaluate(CONFIG, place)
    assert storage.checksums(place / "checkpoints") == before
    assert len(before) > 20


@pytest.mark.slow
def test_a_killed_run_is_taken_over(bucket: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process, killed with SIGKILL; who goes on waits until its lock is stale."""
    url, recipe = f"{bucket}/run", recipe_of(CONFIG, tmp_path / "recipes")
    command = [sys.executable, "-m", "jaxclf", "train", str(recipe), "--workdir", url]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while not (location(url) / "checkpoints" / "10" / "commit_success.txt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (location(url) / "result.json").exists()
    monkeypatch.setattr(claims, "STALE", 3.0)
    monkeypatch.setattr(claims, "BEAT", 1.0)
    with pytest.warns(UserWarning, match=rf"process {process.pid} of .* gives no sign of life any more"):
        require_same_end(url, local, tmp_path / "copy")


@pytest.fixture(scope="module")
def finished(new_bucket: Callable[[], str]) -> str:
    """The URL of a run of which a trace was taken, and beside which TensorBoard was written."""
    url = f"{new_bucket()}/runs/finished"
    watching = Watching(profile="3:5", tensorboard=importlib.util.find_spec("tensorboard") is not None)
    loop.train(CONFIG, url, watching=watching, quiet=True)
    return url


def lines(command: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command that succeeds and return what it prints."""
    capsys.readouterr()
    assert main(command) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_evaluated_as_the_local_one(
    finished: str, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = (lines(["eval", "--workdir", place], capsys) for place in (finished, str(local)))
    assert there[-1].split() == [*here[-1].split()[:2], finished]
    assert there[:-1] == here[:-1]


@pytest.mark.slow
def test_weights_in_a_bucket_are_converted_predicted_with_and_trained_on(
    finished: str, local: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, file, directory = tmp_path / "digit.png", f"{bucket}/w.safetensors", f"{bucket}/w"
    Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)).save(picture)
    lines(["convert", str(local), str(tmp_path / "w.safetensors")], capsys)
    lines(["convert", finished, file], capsys)
    there, here = (weights.read_state_dict(one) for one in (file, tmp_path / "w.safetensors"))
    assert {key: value.tobytes() for key, value in there.items()} == {key: here[key].tobytes() for key in here}
    assert lines(["convert", file, directory], capsys) == [f"{directory}: {TINY}, head orthogonal, 10 classes"]
    expected = lines(["predict", str(picture), "--weights", str(local)], capsys)
    for place in (finished, file, directory):
        assert lines(["predict", str(picture), "--weights", place], capsys) == expected
    with pytest.raises(UsageError, match=rf"^{directory} exists already"):
        weights.convert(file, directory)
    (location(bucket) / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=rf"^{bucket}/broken\.safetensors cannot be read as safetensors"):
        weights.read(f"{bucket}/broken.safetensors")
    starts = {"local": str(local), "run": finished, "file": file}
    ends = {}
    for name, start in starts.items():
        given = config(epochs=1, model={"weights": start})
        ends[name] = loop.train(given, tmp_path / name, quiet=True).sha256
    assert ends["local"] == ends["run"] == ends["file"]


@pytest.mark.slow
def test_a_sweep_in_a_bucket_is_the_local_one(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(config("identity", epochs=1, model={"maps": 10}), tmp_path / "recipes")
    command = ["sweep", str(recipe), "--grid", "optim.lr=0.1", "--seeds", "0", "--workdir"]
    lines([*command, f"{bucket}/sweep"], capsys)
    lines([*command, str(tmp_path / "sweep")], capsys)
    place, timed = location(bucket) / "sweep", ("images_per_second", "finished", "seconds")
    files = ["index.html", "lr-0-1", "results.jsonl", "table.md"]
    assert storage.names(place) == storage.names(tmp_path / "sweep") == files
    there, here = (
        [{**json.loads(line), **dict.fromkeys(timed)} for line in (one / "results.jsonl").read_text().splitlines()]
        for one in (place, tmp_path / "sweep")
    )
    assert there == here
    assert len(here) == 1


@pytest.mark.slow
def test_images_and_run_in_a_bucket_read_by_other_processes_end_as_local_ones(
    photo_folder: Path, bucket: str, tmp_path: Path
) -> None:
    for file in photo_folder.rglob("*.*"):
        (location(bucket) / "photos" / str(file.relative_to(photo_folder))).write_bytes(file.read_bytes())
    given = [
        dataclasses.replace(
            CONFIG,
            data=DataConfig(f"folder:{place}", batch_size=7, image_size=24),
            augment=AugmentConfig(crop="random_resized", pad=0),
        )
        for place in (photo_folder, f"{bucket}/photos")
    ]
    loop.train(given[0], tmp_path / "local", quiet=True)
    loop.train(given[1], f"{bucket}/run", loader=Loader(workers=1), quiet=True)
    copy = downloaded(f"{bucket}/run", tmp_path / "copy")
    assert ended(copy) == ended(tmp_path / "local")
    assert (copy / "data.json").read_bytes() == (tmp_path / "local" / "data.json").read_bytes()


@pytest.mark.slow
def test_a_sweep_on_ray_in_a_bucket_ends_as_the_local_one(
    ray_secret: None, bucket: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(CONFIG, tmp_path / "recipes")
    command = ["sweep", str(recipe), "--grid", "optim.lr=0.1", "--seeds", "0", "--executor", "ray", "--no-render"]
    lines([*command, "--workdir", f"{bucket}/sweep"], capsys)
    assert ended(downloaded(f"{bucket}/sweep/lr-0-1/seed0", tmp_path / "copy")) == ended(local)
    assert storage.names(location(f"{bucket}/sweep")) == ["lr-0-1"]  # the token of the driver is gone


# What is seen of a run meanwhile


def test_a_heartbeat_is_written_every_ten_seconds_at_most_and_at_the_end(bucket: str) -> None:
    now, place = [0.0], location(bucket) / "run"

    def seconds() -> float:
        return now[0]

    given = {"config": CONFIG, "step": 0, "steps": 42, "say": lambda _: None, "clock": seconds, "now": seconds}
    written = []
    with Watch(Watching(heartbeat=100.0), place, **given) as watch:
        for now[0], doing in ((1.0, "compilation"), (9.5, "saving"), (10.5, "evaluation"), (20.0, "saving")):
            watch.pause(doing)
            written.append(json.loads((place / "heartbeat.json").read_text())["doing"])
    assert written == ["starting", "starting", "evaluation", "evaluation"]
    assert json.loads((place / "heartbeat.json").read_text())["doing"] == "ended"


@pytest.mark.slow
def test_tensorboards_events_lie_in_the_bucket(finished: str) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard (the extra tensorboard)")
    place = location(finished) / "tensorboard"
    (name,) = storage.names(place)
    assert name.startswith("events.out.tfevents.")
    assert (place / name).read_bytes().count(b"test/top1") == 2  # epochs


@pytest.mark.slow
def test_the_trace_lies_in_the_bucket(finished: str) -> None:
    assert [name for name in storage.checksums(location(finished) / "profile") if name.endswith(".xplane.pb")]


@pytest.mark.slow
def test_the_compilation_cache_may_lie_in_a_bucket(bucket: str) -> None:
    """A process finds what the one before has compiled."""
    cache = f"{bucket}/cache"
    script = "import jax; jax.jit(lambda x: (x @ x).sum() * 3)(jax.numpy.ones((7, 7))).block_until_ready()"
    own = {"EPATH_USE_TF": "0", "JAX_COMPILATION_CACHE_DIR": cache, "JAX_ENABLE_COMPILATION_CACHE": "true"}
    found = []
    for _ in range(2):
        command = [sys.executable, "-W", "error", "-c", script]
        subprocess.run(command, check=True, timeout=240, env=os.environ | own, capture_output=True)
        there = places.filesystem("gs").find(cache, detail=True)
        found.append({name: one["generation"] for name, one in there.items()})
    assert found[0] == found[1]
    assert len(found[0]) > 0
