"""The PyTorch twin (tests/parity/torch_twin.py) against jaxclf: networks, twenty steps, a whole run.

Twenty steps are compared as test_resnet20_training.py explains, from networks that have settled for 20 steps: at the
recipe's rate with both sides in float64, and in float32 at a rate that leaves rounding below the tolerance. Distances
are relative: max|a - b| / max|b| per tensor, |a / b - 1| for a step's loss.
Measured: in float64 losses 1e-9 and variables 6e-8 (the float32 of load_torch), in float32 1e-5 and 5e-5.
"""

import dataclasses
import functools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.data import pipeline
from jaxclf.data.augment import normalise
from jaxclf.data.datasets import Digits
from jaxclf.data.transforms import resize_images
from jaxclf.errors import UsageError
from jaxclf.models.classifier import Classifier, build
from jaxclf.models.torch_weights import load_torch, to_torch
from jaxclf.report.experiment import Record
from jaxclf.report.tables import read_records
from jaxclf.training import loop, losses
from jaxclf.training.parallel import train_steps
from jaxclf.training.run_directory import Result, read_config
from jaxclf.training.schedules import Timeline
from jaxclf.training.setup import set_up
from jaxclf.training.step import Program, draw_fixed, init_state

torch: Any = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
pytest.importorskip("torch.nn", reason="parity with PyTorch needs the extra `parity`")
from benchmarks import torch_networks  # noqa: E402
from tests.parity import torch_twin  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BATCH, STEPS, TOLERANCE = 16, 20, 1e-4
TINY = ("--model.backbone", "tests.tiny:Tiny")
MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)
RECIPE = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, milestones=(1,))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # two spin against each other as soon as there is other work


@functools.cache
def digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """320 digits as colour images, uint8."""
    split = Digits(DataConfig("digits")).read("train")
    order = np.random.default_rng(0).permutation(len(split.labels))[: BATCH * STEPS]
    return np.repeat(resize_images(split.images[order], side), 3, axis=3), split.labels[order]


@functools.cache
def normalised(side: int) -> np.ndarray:
    return np.array(jax.jit(normalise, static_argnums=(1, 2))(jnp.asarray(digits(side)[0]), MEAN, STD))


def model_of(config: ModelConfig) -> Classifier:
    return build(Config(model=config), 10, seed=0)


def fill(model: Classifier, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Random variables under which every one of them shows in the logits."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    rng, flat = np.random.default_rng(0), {}
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    for path, leaf in leaves.items():
        value = rng.standard_normal(leaf.shape) / np.sqrt(max(leaf.size / max(leaf.shape[-1:] or (1,)), 1))
        flat[path] = (0.5 + np.abs(value) if path[-1] in ("running_var", "scale", "weight") else value).astype(
            np.float32
        )
    filled: dict[str, Any] = traverse_util.unflatten_dict(flat)
    return {**filled, "fixed": draw_fixed(shapes["fixed"], 3)} if "fixed" in shapes else filled


def loaded(config: ModelConfig, shape: tuple[int, int, int]) -> tuple[Classifier, dict[str, Any], Any]:
    """Return the model, random variables, and torch's network, into which they are loaded with strict keys."""
    model = model_of(config)
    variables, net = fill(model, shape), torch_networks.build(config, model, shape)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(model, variables).items()})
    return model, variables, net


def assert_forward(config: ModelConfig, shape: tuple[int, int, int], *, jit: bool = False) -> None:
    """In training and in evaluation both answer the same in float64."""
    model, variables, net = loaded(config, shape)
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
@pytest.mark.parametrize("bias", [True, False])
def test_heads_answer_the_same(head: str, bias: bool) -> None:
    assert_forward(ModelConfig("resnet8", head, bias=bias), (8, 8, 3))


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
    loaded(ModelConfig(backbone), (32, 32, 3))


def test_what_the_twin_does_not_do_is_named() -> None:
    config = Config(loss=LossConfig(so=0.1), optim=OptimConfig(ema=0.9), run=RunConfig(recalibrate=1))
    with pytest.raises(UsageError, match=r"does not do loss.so, optim.ema 0.9, run.recalibrate yet"):
        torch_twin.require_twin(config)
    pooled = ModelConfig("resnet8", "conv3x3", pool="max")
    with pytest.raises(UsageError, match=r"does not have model.pool 'max', model.head 'conv3x3'"):
        torch_networks.build(pooled, model_of(pooled), (8, 8, 3))
    with pytest.raises(UsageError, match="does not have the backbone vgg11"):
        torch_networks.build(ModelConfig("vgg11"), model_of(ModelConfig("vgg11")), (8, 8, 3))


def run_torch(net: Any, program: Program, side: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train in place; return the losses and the last state dict."""
    twin, targets = torch_twin.make_twin(program, net), np.eye(10, dtype=np.float32)[digits(side)[1]]
    history = []
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        history.append(float(twin.step(normalised(side)[part], targets[part])[0].mean()))
        if (step + 1) % program.timeline.steps_per_epoch == 0:
            twin.end_epoch()
    return history, numpy_dict(net)


def numpy_dict(net: Any) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in net.state_dict().items()}


def run_jax(program: Program, state: Any, start: Any, side: int) -> tuple[list[float], Any]:
    """Return the losses and the last state; the dtype is that of `start`."""
    params, batch_stats = (jax.tree.map(jnp.asarray, start[name]) for name in ("params", "batch_stats"))
    state = state.replace(params=params, batch_stats=batch_stats, opt_state=program.tx.init(params))
    images, labels = (jnp.asarray(part) for part in digits(side))
    history = []
    for step in range(STEPS):
        indices = np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32)[None]
        state = train_steps(program, state.replace(sums=losses.zeros()), images, labels, indices)
        history.append(losses.means(state.sums)["loss"])
    return history, state


def assert_same_steps(config: ModelConfig, side: int) -> None:
    """Train both from a settled network, in float64 at the recipe's rate and in float32 at a small one."""
    model, plain, shape = model_of(config), AugmentConfig(pad=0, flip=False), (side, side, 3)
    program = Program(model, RECIPE, Timeline(STEPS // 2, 2, BATCH * STEPS // 2), LossConfig(), plain, MEAN, STD)
    state = init_state(program, shape, 0, 0)
    net = torch_networks.build(config, model, shape)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(model, state.variables).items()})
    _, settled = run_torch(net, dataclasses.replace(program, optim=OptimConfig(lr=0.05)), side)
    settled = {key: value.copy() for key, value in settled.items()}  # torch goes on in the same memory
    for float64, lr in ((True, 0.1), (False, 3e-4)):
        net.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in settled.items()})
        rated, fresh = (
            dataclasses.replace(program, optim=dataclasses.replace(RECIPE, lr=lr)),
            jax.tree.map(jnp.copy, state),
        )
        compare(rated, fresh, net, float64=float64, side=side)


def compare(program: Program, state: Any, net: Any, *, float64: bool, side: int) -> None:
    """Train on, PyTorch in float64, and compare every loss and every variable at the end."""
    start: Any = jax.tree.map(np.copy, load_torch(program.model, numpy_dict(net)))
    their_losses, state_dict = run_torch(net.double(), program, side)
    if float64:  # the images stay float32 and are promoted, so strictness must give way here
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), start)
            our_losses, state = run_jax(program, state, wide, side)
    else:
        our_losses, state = run_jax(program, state, start, side)
    off = np.abs(np.array(our_losses) / np.array(their_losses) - 1)
    ours, theirs = {"params": state.params, "batch_stats": state.batch_stats}, load_torch(program.model, state_dict)
    theirs, start = ({name: tree[name] for name in ours} for tree in (theirs, start))
    distances, moved = _distances(ours, theirs, start, float64=float64)
    name = max(distances, key=lambda key: distances[key])
    print(f"loss {off.max():.1e}, {name} {distances[name]:.1e}, {moved} of {len(distances)} moved")
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float64 if float64 else np.float32)}
    assert len(off) == STEPS
    assert off.max() < TOLERANCE, f"losses are off by {off}"
    assert distances[name] < TOLERANCE, f"{name} is off by {distances[name]:.1e}"
    # A comparison of what did not move would prove nothing; at float32's small rate up to a fifth does not (DenseNet).
    assert moved > (0.9 if float64 else 0.75) * len(distances)


def _distances(ours: Any, theirs: Any, start: Any, *, float64: bool) -> tuple[dict[str, float], int]:
    """Return the distance of every variable, and how many moved by more than the tolerance since the start.

    In float32, running means are compared with the running standard deviations and BatchNorm's biases with its weights.
    Where no activation stands between two normalisations (MobileNetV2, ShuffleNetV2) the second one's means and the
    first one's bias gradients are zero but for rounding: means of 1e-8, in which PyTorch's own float32 is as far from
    its float64 as ours is.
    """
    a: dict[str, Any] = traverse_util.flatten_dict(ours, sep="/")
    b: dict[str, Any] = traverse_util.flatten_dict(theirs, sep="/")
    c: dict[str, Any] = traverse_util.flatten_dict(start, sep="/")
    assert set(a) == set(b) == set(c)
    distances = {}
    for name, value in b.items():
        unit, layer = np.abs(value).max(), name.partition("/")[2].rpartition("/")[0]
        if not float64 and name.endswith("running_mean"):
            unit = np.sqrt(b[f"batch_stats/{layer}/running_var"])
        elif not float64 and name.endswith("bias") and f"batch_stats/{layer}/running_var" in b:
            unit = np.abs(b[f"params/{layer}/weight"]).max()
        distances[name] = float((np.abs(np.asarray(a[name]) - value) / unit).max())
    return distances, sum(np.abs(b[name] - c[name]).max() > TOLERANCE * np.abs(b[name]).max() for name in b)


NETWORKS = {
    "resnet32-maps-identity": (ModelConfig("resnet32", "identity", maps=10), 16),
    "resnet8": (ModelConfig("resnet8", shortcut="A"), 16),
    "resnet8-maps-orthogonal": (ModelConfig("resnet8", "orthogonal", maps=16), 16),
    "resnet8-maps-hadamard": (ModelConfig("resnet8", "hadamard", maps=16), 16),
    "resnet8-maps-learned": (ModelConfig("resnet8", "learned", maps=16), 16),
    "densenet_bc_16_12": (ModelConfig("tests.tiny:SHALLOW_DENSENET"), 16),
    "mobilenet_v2": (ModelConfig("mobilenet_v2", dropout=0.0), 32),
    "shufflenet_v2_x0_5": (ModelConfig("shufflenet_v2_x0_5", dropout=0.0), 32),
}
"""More of the same blocks is more compiling: one network is deep; DenseNet-BC-100-12 has two layers in each block."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_steps_are_the_twins(name: str, request: pytest.FixtureRequest) -> None:
    config, side = NETWORKS[name]
    if side == 32:
        request.getfixturevalue("torchvision")
    assert_same_steps(config, side)


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
    assert [theirs for theirs, _ in history] == pytest.approx([ours for _, ours in history], rel=TOLERANCE)


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
