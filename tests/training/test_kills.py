"""A run of two processes that is killed again and again ends with the bits of one that nothing disturbed.

JAXCLF_KILLS says how many kills (6 in the slow tier; 100 take about half an hour on two cores). Each one is SIGKILL or
SIGTERM, to one process or to both, at a random moment between the start of Python and the last step, and every third
restart is one process with two devices instead of two processes with one.
"""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import complete_steps, config, ended, recipe_of, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("own_cache")]
KILLS = int(os.environ.get("JAXCLF_KILLS", "6"))
PER_EPOCH = 22
SECONDS = 20
"""After which what a kill left is killed too, as launchers do: a process waits minutes for others that never start."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """What a kill met and left."""

    signal: str
    killed: tuple[int, ...]
    processes: int
    codes: tuple[int, ...]
    step: int
    """Of the newest checkpoint afterwards."""


def disturb(
    start: Callable[[int], list[subprocess.Popen[str]]], workdir: Path, target: int, number: int, rng: random.Random
) -> Hit:
    """Start the run, wait for a checkpoint of `target` or later, or no time at all, and kill it."""
    processes = 1 if number % 3 == 2 else 2
    started, deadline = start(processes), time.monotonic() + 300
    if number % 5 == 4:
        time.sleep(rng.uniform(0, 8))  # while it starts, connects, or compiles
    else:
        while max(complete_steps(workdir), default=0) < target and all(one.poll() is None for one in started):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
    kind = rng.choice((signal.SIGKILL, signal.SIGTERM))
    victims = tuple(range(processes)) if rng.random() < 0.5 else (rng.randrange(processes),)
    for rank in victims:
        started[rank].send_signal(kind)
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up and any(one.poll() is None for one in started):
        time.sleep(0.05)
    for one in started:
        one.kill()
        _, errors = one.communicate(timeout=60)
        assert "no readable checkpoint" not in errors
        assert "damaged" not in errors
    codes = tuple(one.returncode for one in started)
    return Hit(kind.name, victims, processes, codes, max(complete_steps(workdir), default=0))


def test_kills_of_one_and_of_all_processes_change_no_bit(tmp_path: Path, launch: Callable[..., Any]) -> None:
    epochs, rng = max(4, KILLS // 5), random.Random(6)
    given = config(drop_last=False, epochs=epochs, checkpoint_every=3, eval_every=2)
    recipe = recipe_of(given, tmp_path / "recipes")

    def run(workdir: Path, processes: int) -> list[subprocess.Popen[str]]:
        return launch(
            *("train", str(recipe)), workdir=workdir, processes=processes, devices=2 // processes, peer_timeout=5
        )

    def finish(workdir: Path) -> None:
        for one in run(workdir, 2):
            _, errors = one.communicate(timeout=600)
            assert one.returncode == 0, errors

    finish(tmp_path / "undisturbed")
    killed, total = tmp_path / "killed", epochs * PER_EPOCH
    hits: list[Hit] = []
    for number in range(KILLS):
        target = round(0.9 * total * (number + rng.random()) / KILLS)
        hits.append(disturb(lambda n: run(killed, n), killed, target, number, rng))
        print(hits[-1], flush=True)
        assert not (killed / "result.json").exists(), hits
    finish(killed)
    assert ended(killed) == ended(tmp_path / "undisturbed")
    assert [(row["epoch"], row["step"]) for row in rows_of(killed)] == [
        (e, e * PER_EPOCH) for e in range(1, epochs + 1)
    ]
    assert not (killed / "damaged_checkpoints").exists()
    assert {hit.signal for hit in hits} == {"SIGKILL", "SIGTERM"}
    assert all(later.step >= hit.step for hit, later in itertools.pairwise(hits)), hits
    asked = [hit for hit in hits if hit.signal == "SIGTERM" and 0 not in hit.codes and min(hit.codes) > 0]
    assert any(set(hit.codes) == {75} for hit in asked), hits


def test_a_request_in_an_evaluation_stops_both_processes_and_changes_no_bit(
    tmp_path: Path, launch: Callable[..., Any]
) -> None:
    """Process 1 hears it, when process 0 says that it evaluates: 223 batches of test images."""
    given = config(epochs=2)
    given = dataclasses.replace(given, data=dataclasses.replace(given.data, eval_batch_size=2))
    command = ("train", str(recipe_of(given, tmp_path / "recipes")), "--heartbeat", "0.05")

    def finish(workdir: Path) -> None:
        for one in launch(*command, workdir=workdir, processes=2):
            _, errors = one.communicate(timeout=300)
            assert one.returncode == 0, errors

    finish(tmp_path / "undisturbed")
    stopped = tmp_path / "stopped"
    started, deadline = launch(*command, workdir=stopped, processes=2), time.monotonic() + 120
    while doing(stopped) != "evaluation" and all(one.poll() is None for one in started):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    started[1].send_signal(signal.SIGTERM)
    ended_by = [one.communicate(timeout=60)[1] for one in started]
    assert [one.returncode for one in started] == [75, 75], ended_by
    assert "stopped in the evaluation behind step 21 by another process of the run" in ended_by[0]
    assert "stopped in the evaluation behind step 21 by SIGTERM" in ended_by[1]
    assert (stopped / "unevaluated" / "21").is_dir()
    finish(stopped)
    assert ended(stopped) == ended(tmp_path / "undisturbed")
    assert not (stopped / "unevaluated").exists()


def doing(workdir: Path) -> str | None:
    """Return what the heartbeat says that a run does; None before it says anything."""
    file = workdir / "heartbeat.json"
    return json.loads(file.read_text())["doing"] if file.exists() else None
