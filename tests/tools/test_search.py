"""Search over settings: costs are counted once and added, candidates stay within the budget."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import Searching
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.models.elastic import Choices, Setting
from jaxclf.tools.search import Costs, Evolution, search
from jaxclf.training.loop import train
from jaxclf.training.weights import read
from tests.training.runs import config
from tests.training.test_elastic import whole_config

CHOICES = Choices((5, 3), (6, 4, 3), (3, 2, 1))
LEAST = Setting.of(CHOICES, 2, kernels=(3,), expansions=(3,), depths=(1,))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("ofa_mbv3_tiny", 28), ("ofa_mbv3_w1_0", 224)])
def test_the_cost_of_a_setting_is_that_of_its_network(name: str, side: int) -> None:
    model = create_model(name, num_classes=10)
    body, rng = model.backbone, np.random.default_rng(0)
    costs = Costs(model, (side, side, 3))
    for _ in range(3):
        lengths = (len(body.setting.kernels), len(body.setting.kernels), len(body.stages))
        kernels, expansions, depths = (
            tuple(int(rng.choice(own)) for _ in range(n)) for own, n in zip(body.choices, lengths, strict=True)
        )
        part = create_model(name, num_classes=10, kernels=kernels, expansions=expansions, depths=depths)
        counted = count(part, (side, side, 3))
        cost = costs.of(part.backbone.setting)
        assert (cost.macs, cost.parameters) == (counted.total("macs"), counted.total("trainable"))


def evolved(seed: int) -> tuple[list[Setting], dict[Setting, float]]:
    """Search for many large kernels where settings of more than 10 blocks' worth are over the budget."""
    evolution = Evolution(
        CHOICES,
        LEAST,
        Searching(seed=seed, population=12, generations=8, mutation=0.2),
        within=lambda s: sum(s.expansions[block] for block in s.blocks()) <= 14,
        top1=lambda s: float(sum(s.kernels[block] for block in s.blocks())),
    )
    return list(evolution.run()), evolution.known


def test_evolution_finds_the_best_within_the_budget_and_is_a_function_of_its_seed() -> None:
    best, known = evolved(0)
    assert (best, known) == evolved(0)
    assert known != evolved(1)[1]
    assert all(sum(s.expansions[block] for block in s.blocks()) <= 14 for s in known)
    values = [known[one] for one in best]
    assert values == sorted(values)
    assert values[-1] == max(known.values()) == 20.0  # four blocks of expansion 3, kernels of 5


def test_settings_that_are_one_network_are_evaluated_once() -> None:
    given = Setting((3, 5, 3, 3, 5, 3), (6, 3, 4, 3, 3, 4), (1, 2))
    other = Setting((3, 3, 5, 3, 5, 5), (6, 4, 3, 3, 3, 3), (1, 2))
    assert (
        given.canonical(CHOICES) == other.canonical(CHOICES) == Setting((3, 5, 5, 3, 5, 5), (6, 6, 6, 3, 3, 6), (1, 2))
    )
    assert given.blocks() == [0, 3, 4]


@pytest.mark.slow
def test_a_search_finds_networks_within_the_budget_and_writes_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "best.safetensors"
    train(whole_config(), run, quiet=True)
    flags = [
        "search",
        str(run),
        "--parameters",
        "3000",
        "--population",
        "4",
        "--generations",
        "1",
        "--recalibrate",
        "2",
    ]
    assert main([*flags, "--json", "--out", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == sorted(rows, key=lambda row: -row["top1"])
    assert all(row["parameters"] <= 3000 for row in rows)
    weights = read(out)
    assert list(weights.record.options["depths"]) == rows[0]["depths"]
    assert main(flags) == 0
    assert "--model.depths" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(UsageError, match="the smallest setting takes"):
        search(run, Searching(), macs=10)
    with pytest.raises(UsageError, match="a search takes one budget"):
        search(run, Searching())


def test_a_run_without_validation_images_is_not_searched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config().to_json())
    with pytest.raises(UsageError, match="holds no validation images out"):
        search(tmp_path, Searching(), macs=10**9)
