"""The small run that tests start, stop, kill and compare: two convolutions on the digits, 21 steps an epoch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, Loader, ModelConfig, OptimConfig, RunConfig
from jaxclf.training import loop

TINY = "tests.tiny:Tiny"


def config(
    head: str = "orthogonal", *, backbone: str = TINY, drop_last: bool = True, model: Any = (), **run: Any
) -> Config:
    """Return a recipe whose learning rate falls after two of three epochs, so that a wrong step would show."""
    return Config(
        data=DataConfig(batch_size=64, drop_last=drop_last),
        augment=AugmentConfig(pad=1, flip=False),
        model=ModelConfig(backbone=backbone, head=head, **dict(model)),
        optim=OptimConfig(lr=0.1, milestones=(2,)),
        run=RunConfig(**dict[str, Any]({"epochs": 3} | run)),
    )


def recipe_of(given: Config, directory: Path, more: str = "") -> Path:
    """Write a file whose get_config() gives a config, and what else it is to define."""
    directory.mkdir(exist_ok=True)
    (directory / "recipe.json").write_text(given.to_json())
    file = directory / "recipe.py"
    file.write_text(
        "import pathlib\nfrom jaxclf.config import Config\n\ndef get_config():\n"
        f"    return Config.from_json((pathlib.Path(__file__).parent / 'recipe.json').read_text())\n{more}"
    )
    return file


class Stop(BaseException):
    """Stands for a kill inside this process: nothing catches it."""


def stop_before_step(given: Config, workdir: Path, step: int, loader: Loader | None = None) -> None:
    """Train up to a step and no further."""
    real = loop.train_steps

    def stopping(program: Any, state: Any, images: Any, labels: Any, rows: Any, examples: Any) -> Any:
        if int(state.step) + (1 if rows is None else len(rows)) > step:
            raise Stop
        return real(program, state, images, labels, rows, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_steps", stopping)
        with pytest.raises(Stop):
            loop.train(given, workdir, loader=loader or Loader(), quiet=True)
    assert not (workdir / "result.json").exists()


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def complete_steps(workdir: Path) -> list[int]:
    """List the steps that have a complete checkpoint, as a stranger sees them."""
    directory = workdir / "checkpoints"
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def ended(workdir: Path) -> dict[str, Any]:
    """Return all that two runs of one config must share, to the bit."""
    result = json.loads((workdir / "result.json").read_text())
    with np.load(workdir / "predictions.npz") as file:
        predictions = {name: file[name].tolist() for name in file}
    files = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")}
    return {name: result[name] for name in ("sha256", "top1", "loss", "skipped")} | files | predictions
