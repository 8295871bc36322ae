"""Two processes on hosts of their own: what they must share is asked for within seconds, what they need not is kept.

Working directories stand for hosts: what a relative path leads to is another file in each.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import config, recipe_of

pytestmark = pytest.mark.slow
GIVEN = ("train", "recipe.py", "--deterministic", "--run.epochs", "1")


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
    started = launch("train", "recipe.py", *flags, workdir=workdir, processes=2, places=hosts)
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [2, 2], ended
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


def test_each_host_keeps_its_compiled_programs(
    launch: Callable[..., Any], hosts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And flags of the compiler are written down, those of --deterministic included."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "cache")
    kept = []
    for workdir in (tmp_path / "run", tmp_path / "again"):
        for process in launch(*GIVEN, workdir=workdir, processes=2, places=hosts):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        kept.append([{file.name for file in (host / "cache").glob("*-cache")} for host in hosts])
    assert kept[0] == kept[1]  # nothing was compiled a second time
    for host in kept[0]:
        assert {"jit_take_steps", "jit_eval_step"} <= {name.split("-")[0] for name in host}
    stated = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert stated["XLA_FLAGS"].split()[-1] == "--xla_gpu_exclude_nondeterministic_ops=true"
