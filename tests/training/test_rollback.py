"""A run that diverges and may go back: to the last good checkpoint, with other draws, saying that it did."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxclf.data.order import reseeded
from jaxclf.errors import RunError
from jaxclf.training import loop
from tests.training.runs import Stop, config, rows_of


def diverge(patch: pytest.MonkeyPatch, *, seed: int, step: int, stop: int = 1000) -> None:
    """Make the run meet a bad step under one seed only, and be killed before step `stop` under any other."""
    real = loop.train_steps

    def spoiling(program: Any, state: Any, *batch: Any) -> Any:
        own, now = int(state.seed), int(state.step) + 1
        if own != seed and now == stop:
            raise Stop
        after = real(program, state, *batch)
        return after.replace(bad_step=jnp.asarray(now, jnp.int32)) if (own, now) == (seed, step) else after

    patch.setattr(loop, "train_steps", spoiling)


@pytest.mark.slow
def test_it_goes_back_once_and_says_so_and_a_kill_after_that_changes_no_bit(tmp_path: Path) -> None:
    given, other = config(rollbacks=2), reseeded(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        diverge(patch, seed=0, step=30)
        with pytest.warns(UserWarning, match=r"^step 30: loss or update is not finite .*; going back to step 21, with"):
            result = loop.train(given, tmp_path / "undisturbed", quiet=True)
    assert (result.rollbacks, result.step) == (1, 63)
    assert json.loads((tmp_path / "undisturbed" / "heartbeat.json").read_text())["step"] == 63
    record = json.loads((tmp_path / "undisturbed" / "rollbacks.jsonl").read_text())
    assert record == {"number": 1, "diverged": 30, "back_to": 21, "seed": other}
    assert [row["step"] for row in rows_of(tmp_path / "undisturbed")] == [21, 42, 63]

    for stop in (35, 50):  # before and behind the next checkpoint
        workdir = tmp_path / f"killed{stop}"
        with pytest.MonkeyPatch.context() as patch:
            diverge(patch, seed=0, step=30, stop=stop)
            with pytest.warns(UserWarning, match="going back to step 21"), pytest.raises(Stop):
                loop.train(given, workdir, quiet=True)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            diverge(patch, seed=0, step=30)
            again = loop.train(given, workdir, quiet=True)
        assert len([one for one in caught if "going back" in str(one.message)]) == (1 if stop == 35 else 0)
        assert (again.sha256, again.rollbacks) == (result.sha256, 1)


@pytest.mark.slow
def test_it_stops_when_it_has_gone_back_as_often_as_it_may(tmp_path: Path) -> None:
    """No batch of a fresh network has so low a loss."""
    with pytest.warns(UserWarning, match="going back to step 0") as caught, pytest.raises(RunError) as error:
        loop.train(config(rollbacks=2, max_loss=0.01), tmp_path, quiet=True)
    assert len([one for one in caught if "going back" in str(one.message)]) == 2
    assert str(error.value).startswith("step 1: loss or update is not finite or the loss above 0.01 (lr 0.1)")
    seeds = [json.loads(line)["seed"] for line in (tmp_path / "rollbacks.jsonl").read_text().splitlines()]
    assert seeds == [reseeded(0, 1), reseeded(0, 2)]
