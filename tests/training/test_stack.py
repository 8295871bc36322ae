"""Which runs can be stacked in one program; that they end as single ones do is in test_parallel_runs.py."""

import dataclasses
from pathlib import Path

import jax
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import DataConfig, OptimConfig
from jaxclf.data import pipeline
from jaxclf.data.datasets import Digits
from jaxclf.errors import UsageError
from jaxclf.training import stack
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.loop import train
from jaxclf.training.run_directory import RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.stack import check_stack, room, step_bytes, train_stacked
from tests.tiers import quick
from tests.training.runs import config, rows_of


def test_what_cannot_be_stacked_is_refused_and_all_of_it_is_named(tmp_path: Path) -> None:
    first = config(epochs=1, rollbacks=1, parallel="pmap", max_loss=10.0)
    other = dataclasses.replace(first, run=dataclasses.replace(first.run, epochs=3, seed=1))
    with pytest.raises(UsageError) as error:
        train_stacked([first, other], [tmp_path / "a", tmp_path / "b"], quiet=True)
    said = str(error.value)
    assert "runs 0 and 1 differ in run.epochs: 1 != 3" in said
    assert "run.rollbacks is 1 but must be 0" in said
    assert "run.parallel is 'pmap' but must be 'jit'" in said
    assert not (tmp_path / "a").exists()


def test_a_streamed_set_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    streamed = dataclasses.replace(config(), data=DataConfig(dataset=f"folder:{tmp_path}", image_size=32))
    with pytest.raises(UsageError, match="which is streamed, but must be resident"):
        check_stack([streamed, dataclasses.replace(streamed, run=dataclasses.replace(streamed.run, seed=1))])


def test_seeds_of_runs_and_of_heads_may_differ() -> None:
    check_stack([config(), config(seed=1), config(model={"head_seed": 7})])


def test_runs_at_different_steps_are_named_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    """Run 1 is two checkpoints ahead, which is more than a kill leaves of a stack."""
    with set_up(config()) as setup:
        state = setup.init_state()
    with (
        RunDirectory(tmp_path / "1", config(seed=1), stacked=2),
        Checkpoints(tmp_path / "1" / "checkpoints") as checkpoints,
    ):
        for step in (5, 10):
            checkpoints.save(state.replace(step=jax.numpy.asarray(step, jax.numpy.int32)), rows=0, top1=None)
    with pytest.raises(UsageError) as error:
        train_stacked([config(), config(seed=1)], [tmp_path / "0", tmp_path / "1"], quiet=True)
    assert str(error.value).endswith(f"train them singly: {tmp_path}/0 at 0, {tmp_path}/1 at 10")
    assert (tmp_path / "1" / "checkpoints" / "10").is_dir()


def test_as_many_are_stacked_as_the_device_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 runs are halved to 3, and 3 to 2."""
    configs = [config(seed=seed) for seed in range(5)]
    assert room(configs) == 5  # the CPU does not say what it has
    device = type(jax.devices()[0])
    monkeypatch.setattr(stack, "step_bytes", lambda setup, count: 100 * count)
    for limit, count in ((500, 5), (499, 3), (299, 2), (199, 1), (1, 1)):
        monkeypatch.setattr(device, "memory_stats", lambda _, limit=limit: {"bytes_limit": limit})
        assert room(configs) == count


@pytest.mark.slow
def test_stacked_runs_have_their_own_draws_of_a_set_that_is_drawn_anew(tmp_path: Path) -> None:
    data, optim = DataConfig(dataset="digit_pairs", batch_size=500), OptimConfig(lr=1e-3)
    configs = [dataclasses.replace(config(seed=seed, epochs=2), data=data, optim=optim) for seed in range(2)]
    train_stacked(configs, [tmp_path / "stacked0", tmp_path / "stacked1"], quiet=True)
    seen = []
    for seed, given in enumerate(configs):
        train(given, tmp_path / f"alone{seed}", quiet=True)
        own, alone = (rows_of(tmp_path / f"{name}{seed}") for name in ("stacked", "alone"))
        seen.append([row["train_loss"] for row in alone])
        assert [row["train_loss"] for row in own] == pytest.approx(seen[-1], rel=1e-5)
    assert seen[0] != pytest.approx(seen[1], rel=1e-4)


@pytest.mark.slow
def test_the_memory_of_a_step_grows_with_the_runs() -> None:
    given = config(backbone="resnet8")
    with set_up(given) as setup:
        images = sum(part.nbytes for part in pipeline.load(Digits(given.data)).arrays["train"])
        one, two = (step_bytes(setup, count) - images for count in (1, 2))
    assert 1.8 < two / one < 2.2


@pytest.mark.parametrize("others", quick([["--executor", "ray"], ["--jobs", "2"]], ["--jobs", "2"]))
def test_one_program_is_not_shared_out(others: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    experiment = Path(__file__).parents[2] / "experiments" / "digits_heads.py"
    assert main(["table", str(experiment), "--workdir", str(tmp_path / "w"), "--stack", *others]) == 2
    line = capfd.readouterr().err
    assert line.startswith("jaxclf: --stack given with --executor")
    assert line.endswith("but it is one program of one process: --executor local --jobs 1\n")
