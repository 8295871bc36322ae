"""Two processes that do not see the same files: each says so within seconds and ends, before anything is trained.

Working directories stand for hosts: what a relative path leads to is another file in each.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import config, recipe_of

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path: Path, photo_folder: Path) -> list[Path]:
    """Two directories with the same recipe and photographs."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        shutil.copytree(photo_folder, place / "photos")
        recipe_of(config(), place)
    return places


def refusal(launch: Callable[..., Any], hosts: list[Path], *flags: str, workdir: Path) -> str:
    """Return the line with which all processes end, which is the same one."""
    began = time.monotonic()
    started = launch("train", "recipe.py", *flags, workdir=workdir, processes=2, places=hosts)
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [2, 2], ended
    assert time.monotonic() - began < 30
    first, second = ([line for line in said.splitlines() if line.startswith("jaxclf: ")] for said, _ in ended)
    assert len(first) == 1
    assert first == second
    return first[0]


def test_a_workdir_that_they_do_not_share(launch: Callable[..., Any], hosts: list[Path]) -> None:
    said = refusal(launch, hosts, workdir=Path("run"))
    assert "process 1 on " in said
    assert "cannot see what process 0 on " in said
    assert "writes to run: the processes of a run need a --workdir on a file system that all of them share" in said
    assert not (hosts[0] / "run" / ".shared").exists()
    assert not (hosts[0] / "run" / "metrics.jsonl").exists()


def test_other_images(launch: Callable[..., Any], hosts: list[Path], tmp_path: Path) -> None:
    next((hosts[1] / "photos" / "train").rglob("*.jpg")).unlink()
    flags = ["--data.dataset", "folder:photos", "--data.image-size", "8", "--data.batch-size", "4"]
    said = refusal(launch, hosts, *flags, workdir=tmp_path / "run")
    assert "the processes have other data than process 0 on " in said
    assert "has train images 31, not 32, train images of SHA-256 " in said


def test_another_recipe(launch: Callable[..., Any], hosts: list[Path], tmp_path: Path) -> None:
    given = config()
    recipe_of(dataclasses.replace(given, optim=dataclasses.replace(given.optim, lr=0.07)), hosts[1])
    said = refusal(launch, hosts, workdir=tmp_path / "run")
    assert "the processes have other fields of the config than process 0 on " in said
    assert "has optim.lr 0.07, not " in said
    assert not (tmp_path / "run").exists()
