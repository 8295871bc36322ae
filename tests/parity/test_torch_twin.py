"""The PyTorch twin (tests/parity/torch_twin.py) against jaxclf: networks, what a step is given, and a whole run."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.data import pipeline
from jaxclf.errors import UsageError
from jaxclf.report.experiment import Record
from jaxclf.report.tables import read_records
from jaxclf.training import loop, losses
from jaxclf.training.parallel import train_steps
from jaxclf.training.run_directory import Result, read_config
from jaxclf.training.setup import set_up

torch: Any = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
from benchmarks import torch_networks  # noqa: E402
from tests.parity import torch_twin  # noqa: E402
from tests.parity.pairs import model_of, pair  # noqa: E402
from tests.tiers import quick  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--model.backbone", "tests.tiny:Tiny")


def assert_forward(config: ModelConfig, shape: tuple[int, int, int], *, jit: bool = False) -> None:
    """In training and in evaluation both answer the same in float64."""
    model, variables, net = pair(config, shape)
    net.double()
    images = np.random.default_rng(1).standard_normal((4, *shape))
    for train in (False, True):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):

            def apply(variables: Any, images: Any, train: bool = train) -> Any:
                return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]

            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
            ours = np.asarray((jax.jit(apply) if jit else apply)(wide, jnp.asarray(images)))
        with torch.no_grad():
            theirs = net.train(train)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        assert np.abs(theirs).max() > 1e-3
        assert np.abs(ours - theirs).max() < 1e-9 * np.abs(theirs).max(), f"train {train}"


@pytest.mark.parametrize("head", ["learned", "orthogonal", "hadamard", "hadamard_printed", "identity"])
@pytest.mark.parametrize("bias", quick([True, False], True))
def test_heads_answer_the_same(head: str, bias: bool) -> None:
    assert_forward(ModelConfig("resnet8", head, bias=bias), (8, 8, 3))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["etf_dr", "reponet_simplex", "normface", "cosface"])
def test_heads_of_the_literature_answer_the_same(head: str) -> None:
    assert_forward(ModelConfig("resnet8", head), (8, 8, 3))


@pytest.mark.parametrize("option", "ABCDEFG")
def test_rebuilt_blocks_answer_the_same(option: str) -> None:
    assert_forward(ModelConfig("resnet8", "learned", maps=16, maps_shortcut=option), (8, 8, 3))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("resnet8", shortcut="B"),
        ModelConfig("resnet8", "identity", maps=10),
        ModelConfig("resnet8", "learned", maps=71),
        ModelConfig("lenet5"),
        ModelConfig("lenet5", "identity", maps=10),
        ModelConfig("lenet5_sigmoid", "orthogonal"),
        ModelConfig("lenet_like"),
        ModelConfig("lenet_like", "identity", maps=10),
    ],
    ids=lambda config: f"{config.backbone}-{config.head}-{config.maps}",
)
def test_small_networks_answer_the_same(config: ModelConfig) -> None:
    side = 28 if config.backbone.startswith("lenet") else 8
    assert_forward(config, (side, side, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "maps"),
    [
        ("resnet18", None),
        ("resnet18", 10),
        ("resnet18", 515),
        ("resnet50", 10),
        ("mobilenet_v2", 10),
        ("shufflenet_v2_x0_5", 10),
    ],
)
def test_imagenet_networks_answer_the_same(torchvision: Any, backbone: str, maps: int | None) -> None:
    head = "identity" if maps == 10 else "learned"
    assert_forward(ModelConfig(backbone, head, maps=maps), (64, 64, 3), jit=True)


@pytest.mark.parametrize("backbone", ["densenet_bc_100_12", "resnet32"])
def test_deep_networks_have_the_same_layers(backbone: str) -> None:
    """By name and shape; what their blocks compute is compared in shallow ones."""
    pair(ModelConfig(backbone), (32, 32, 3))


def test_what_the_twin_does_not_do_is_named() -> None:
    config = Config(loss=LossConfig(so=0.1), optim=OptimConfig(ema=0.9), run=RunConfig(recalibrate=1))
    with pytest.raises(UsageError, match=r"does not do loss.so, optim.ema 0.9, run.recalibrate yet"):
        torch_twin.require_twin(config)
    pooled = ModelConfig("resnet8", "conv3x3", pool="max")
    with pytest.raises(UsageError, match=r"does not have model.pool 'max', model.head 'conv3x3'"):
        torch_networks.build(pooled, model_of(pooled), (8, 8, 3))
    with pytest.raises(UsageError, match="does not have the backbone vgg11"):
        torch_networks.build(ModelConfig("vgg11"), model_of(ModelConfig("vgg11")), (8, 8, 3))


class TorchTiny(torch_networks.Net):
    """tests.tiny:Tiny."""

    def __init__(self, channels: int, maps: int | None) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(8, maps or 8, 3, stride=2, padding=1, bias=False)
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(maps or 8)

    def feature_map(self, x: Any) -> Any:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the twin the tiny network: the tests below are of batches, files and tables, not of networks."""
    monkeypatch.setattr(torch_networks, "_body", lambda _, model, shape: TorchTiny(shape[2], model.backbone.maps))


SMALL = Config(
    data=DataConfig(batch_size=64, drop_last=True, image_size=8),
    augment=AugmentConfig(pad=2, flip=True, mixup=0.2),
    model=ModelConfig("tests.tiny:Tiny", "identity", maps=10),
    loss=LossConfig(label_smoothing=0.1),
    optim=OptimConfig(lr=1e-3, decay="weights", clip_norm=1.0, milestones=(1,)),
    run=RunConfig(epochs=1, seed=3),
)


def test_the_twin_starts_and_augments_as_the_run_does(tiny: None) -> None:
    setup = set_up(SMALL)
    assert isinstance(setup.data, pipeline.Resident)
    twin, state, history = torch_twin.start(setup), setup.init_state(), []
    for (step, _, pixels, targets), _ in zip(torch_twin.batches(setup, 0), range(5), strict=False):
        order = np.random.default_rng((3, 0)).permutation(1352).astype(np.int32)[step * 64 : (step + 1) * 64]
        state = train_steps(setup.program, state.replace(sums=losses.zeros()), *setup.data.arrays["train"], order[None])
        history.append((float(twin.step(pixels, targets)[0].mean()), losses.means(state.sums)["loss"]))
    assert len({round(theirs, 3) for theirs, _ in history}) == 5
    assert [theirs for theirs, _ in history] == pytest.approx([ours for _, ours in history], rel=1e-4)


def test_a_run_of_the_twin_leaves_a_record_for_its_table(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "run", str(ROOT / "configs" / "digits.py")
    short = ["--run.epochs", "2", "--run.eval-every", "2", "--data.batch-size", "128", "--data.image-size", "8", *TINY]
    arguments = [recipe, "--workdir", str(out), "--label", "a row", "--model.head", "orthogonal", *short]
    assert torch_twin.main(arguments) == 0
    (record,) = read_records(out / "results.jsonl")
    values = json.loads((out / "result.json").read_text())
    result = Result(**values | {"per_class": tuple(values["per_class"])})
    assert isinstance(record, Record)
    assert (record.label, record.seed, record.top1) == ("a row", 0, result.top1)
    assert dict(record.parameters) == {"trainable": 690, "fixed": 80, "statistics": 32}
    assert [(point["epoch"], point["lr"]) for point in record.curve] == [(2, 0.1)]
    assert record.environment["torch"] == version("torch")
    assert record.environment["implementation"] == "torch"
    assert json.loads((out / "environment.json").read_text()) == dict(record.environment)
    assert result.step == 20
    assert 10 < record.curve[0]["train_top1"] < 100
    with np.load(out / "predictions.npz") as file:
        assert 100 * (file["labels"] == file["predictions"]).mean() == pytest.approx(result.top1)
    capsys.readouterr()
    assert torch_twin.main(arguments) == 2
    assert "has result.json already; choose another --workdir" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds a run of torch; choose another --workdir"):
        loop.train(read_config(out), out)


TABLE = """
from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, RunConfig
from jaxclf.report.experiment import Row, Table

def get_config(head):
    data, model = DataConfig(batch_size=512, image_size=8), ModelConfig("tests.tiny:Tiny", head)
    return Config(data=data, augment=AugmentConfig(pad=0, flip=False), model=model, run=RunConfig(epochs=1))

def get_table():
    rows = tuple(Row(head, "digits", {"head": head}) for head in ("learned", "orthogonal"))
    return Table("small", "Small", "", "", get_config, rows, seeds=(0, 1))
"""


@pytest.mark.slow
def test_the_twins_of_a_table_are_trained_once_and_gathered(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "small.py", tmp_path / "runs"
    file.write_text(TABLE)
    arguments = [str(file), "--workdir", str(out), "--optim.lr", "0.01"]
    assert torch_twin.main([*arguments, "--rows", "orthogonal"]) == 0
    assert capsys.readouterr().out.count("orthogonal, seed ") == 2
    assert torch_twin.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("learned, seed ") == 2
    assert "orthogonal, seed " not in said
    assert said.endswith("4 of 4 runs\n")
    found = [(record.label, record.seed) for record in read_records(out / "results.jsonl")]
    assert found == [("learned", 0), ("learned", 1), ("orthogonal", 0), ("orthogonal", 1)]
    assert read_config(out / "learned" / "seed0").optim.lr == 0.01
