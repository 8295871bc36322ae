"""Variants of section 5.6 around a backbone: the thesis's ResNet-18s, the 3x3 conv head, dropout, initialisation."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.models.initialisation import initialise
from jaxclf.models.matrices import matrix
from jaxclf.models.torch_weights import load_torch
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, init_state, train_step
from tests.models.drawn import drawn
from tests.tiers import quick

NETWORKS: dict[str, dict[str, Any]] = {
    "th_rn18_512_scratch": {"num_classes": 512},
    "th_rn18_512_id_scratch": {"num_classes": 512, "head": "identity"},
    "th_rn18_l4_1a_nc_1k": {"num_classes": 1000, "head": "identity", "maps": 1000},
    "th_rn18_3x3clsf": {"num_classes": 1000, "head": "conv3x3"},
    "th_rn18_l4_1a_soft_attention_pool_32": {
        **{"num_classes": 1000, "head": "identity", "maps": 1000},
        **{"pool": "attention", "pool_units": 32},
    },
}
FIXED: dict[str, dict[str, Any]] = {
    "th_rn18_orthogonal_fc_1000": {"num_classes": 1000, "head": "orthogonal"},
    "th_rn18_512_orthogonal_fc": {"num_classes": 512, "head": "orthogonal"},
    "th_rn18_256_orthogonal_fc": {"num_classes": 256, "head": "orthogonal"},
    "th_rn18_512_hadamard_scratch": {"num_classes": 512, "head": "hadamard"},
}
"""Those of which the reference has no answers: its matrices are drawn."""
PARAMETERS = [11_439_168, 11_176_512, 13_425_192, 15_785_512, 13_457_257]

UNCHANGED = (AugmentConfig(pad=0, flip=False), (0.5,) * 3, (0.25,) * 3)
"""Program's images: as they are, normalised."""


def our_key(key: str) -> str:
    """A key of the appendix's Sequential(features, pool or conv, flatten, fc) under our names."""
    if ".attention." in key:
        return key.removeprefix("classifier.0.")
    return key.replace("classifier.2.", "fc.").replace("classifier.0.", "fc.").removeprefix("features.")


@pytest.mark.parametrize(
    ("name", "parameters"), quick(zip(NETWORKS, PARAMETERS, strict=True), ("th_rn18_512_id_scratch", 11_176_512))
)
def test_the_thesiss_resnet18_have_their_parameters_and_answer_as_the_reference(
    name: str, parameters: int, golden: Any
) -> None:
    record = json.loads((Path(__file__).parents[1] / "golden" / "thesis_resnet18.json").read_text())[name]
    answer, model = record["logits"], create_model("resnet18", **NETWORKS[name])
    weights = golden.state_dict(record["state_dict"], "0", answer["gain"])
    renamed = {our_key(key): value[..., 0] if value.ndim == 3 else value for key, value in weights.items()}
    variables = load_torch(model, renamed)  # which demands that keys and shapes are the reference's
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == record["params_trainable"] == parameters
    assert count(model, (224, 224, 3)).total("macs") == record["macs"]
    images = golden.image(answer["input"], "0").transpose(0, 2, 3, 1)
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    spread, first = np.array(answer["std"]), np.array(answer["first"])
    assert (np.abs(logits[:, : first.shape[1]] - first).max(1) < 1e-4 * spread).all()
    assert (np.abs(logits.mean(1) - answer["mean"]) < 1e-4 * spread).all()
    assert (np.abs(logits.std(1) - spread) < 1e-4 * spread).all()
    assert logits.argmax(1).tolist() == answer["argmax"]


@pytest.mark.parametrize("name", FIXED)
def test_the_thesiss_resnet18_with_fixed_heads_have_their_parameters_and_operations(name: str) -> None:
    record = json.loads((Path(__file__).parents[1] / "golden" / "thesis_resnet18.json").read_text())[name]
    model = create_model("resnet18", **FIXED[name])
    given = {our_key(key): np.broadcast_to(np.float32(0), shape) for key, shape in record["state_dict"]}
    if "fc.weight" in given:
        rows, columns = given["fc.weight"].shape
        given["fc.weight"] = matrix("orthogonal", rows, columns, 0).astype(np.float32)
    variables = load_torch(model, given)  # which demands that keys and shapes are the reference's
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == record["params_trainable"]
    counted = count(model, (224, 224, 3))
    assert (counted.total("trainable"), counted.total("macs")) == (record["params_trainable"], record["macs"])


@pytest.mark.slow
def test_the_3x3_conv_heads_maps_are_its_convolution_and_average_to_the_logits() -> None:
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 24, 3), np.float32))
    model = create_model("resnet8", num_classes=5, head="conv3x3")
    start = jax.jit(model.head.init)(jax.random.key(1), jnp.zeros((1, 3, 3, 64)))["params"]
    assert {name: leaf.shape for name, leaf in start.items()} == {"kernel": (3, 3, 64, 5), "bias": (5,)}
    assert 0.99 * 576**-0.5 < np.abs(start["kernel"]).max() <= 576**-0.5
    assert np.abs(start["bias"]).max() <= 576**-0.5

    variables = drawn(model, 32, 24, 3)
    head = variables["params"]["head"]

    features: Any = model.backbone.apply({name: tree["backbone"] for name, tree in variables.items()}, images)
    expected = np.zeros((2, 6, 4, 5)) + head["bias"]
    for row, column in np.ndindex(3, 3):
        expected += features[:, row : row + 6, column : column + 4] @ head["kernel"][row, column]
    maps: Any = model.apply(variables, images, method="class_maps")
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model.apply(variables, images)), expected.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_3x3_conv_head_needs_a_map_of_3x3() -> None:
    model = create_model("resnet8", num_classes=5, head="conv3x3")
    assert drawn(model, 12, 12, 3)
    with pytest.raises(UsageError, match="head conv3x3 takes feature maps of 3x3 and larger; got 2x3: give larger"):
        drawn(model, 8, 12, 3)


def test_the_3x3_conv_heads_maps_may_be_pooled_otherwise() -> None:
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32))
    model = create_model("resnet8", num_classes=5, head="conv3x3", pool="max", bias=False)
    variables = drawn(model, 16, 16, 3)
    maps: Any = model.apply(variables, images, method="class_maps")
    assert np.array_equal(np.asarray(model.apply(variables, images)), np.asarray(maps.max((1, 2))))


@pytest.mark.parametrize(
    ("backbone", "options", "rate"),
    [
        ("mobilenet_v2", {}, 0.2),
        ("efficientnet_lite0", {}, 0.2),
        ("resnet20", {}, 0.0),
        ("vgg11", {}, 0.0),
        ("mobilenet_v2", {"dropout": 0.0}, 0.0),
        ("resnet20", {"dropout": 0.3}, 0.3),
        ("mobilenet_v2", {"maps": 10, "head": "identity"}, 0.0),
        ("mobilenet_v2", {"maps": 10, "head": "identity", "dropout": 0.1}, 0.1),
    ],
)
def test_dropout_before_the_head(backbone: str, options: dict[str, Any], rate: float) -> None:
    assert create_model(backbone, num_classes=10, **options).dropout == rate


@pytest.mark.parametrize(("backbone", "own"), [("vgg11", 0.5), ("wrn40_2", 0.0)])
def test_dropout_is_that_of_vggs_hidden_layers_and_of_wide_resnets_blocks(backbone: str, own: float) -> None:
    def rates(**options: Any) -> tuple[float, float]:
        model = create_model(backbone, num_classes=10, **options)
        return model.dropout, model.backbone.dropout

    assert rates() == (0.0, own)
    assert rates(dropout=0.25) == (0.0, 0.25)
    assert rates(dropout=0.25, maps=10) == (0.25, own)


def test_dropout_drops_whole_features_in_training_alone() -> None:
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32))
    plain, dropping = (
        create_model("tests.tiny:Tiny", num_classes=64, head="identity", maps=64, dropout=rate) for rate in (0.0, 0.5)
    )
    variables = drawn(dropping, 8, 8, 3)
    assert np.array_equal(np.asarray(plain.apply(variables, images)), np.asarray(dropping.apply(variables, images)))

    whole, _ = plain.apply(variables, images, train=True, mutable=["batch_stats"])
    rngs = {"dropout": jax.random.key(2)}
    dropped, _ = dropping.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    kept = np.asarray(dropped) != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(whole)[kept], rtol=1e-6)


@pytest.mark.slow
def test_a_steps_dropout_is_a_function_of_seed_and_step() -> None:
    @functools.cache
    def step(dropout: float) -> tuple[Any, Any]:
        model = create_model("tests.tiny:Tiny", num_classes=10, dropout=dropout)
        program = Program(model, OptimConfig(), Timeline(1000, 1, 4), LossConfig(), *UNCHANGED)
        return init_state(program, (8, 8, 3), 0, 0), jax.jit(functools.partial(train_step, program))

    def parameters(number: int, seed: int, dropout: float) -> np.ndarray:
        state, advance = step(dropout)
        state = state.replace(step=jnp.asarray(number, jnp.int32), seed=jnp.asarray(seed, jnp.uint32))
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)), jnp.uint8)
        after = advance(state, images, jnp.arange(4, dtype=jnp.int32), jnp.arange(4, dtype=jnp.int32))
        return np.asarray(after.params["head"]["kernel"])

    first = parameters(0, 0, 0.5)
    assert np.array_equal(first, parameters(0, 0, 0.5))
    assert not np.array_equal(first, parameters(1, 0, 0.5))
    assert not np.array_equal(first, parameters(0, 1, 0.5))
    assert np.array_equal(parameters(0, 0, 0.0), parameters(1, 1, 0.0))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_leaves_nothing_is_refused(dropout: float) -> None:
    with pytest.raises(UsageError, match=f"dropout is {dropout} but must be from 0 to below 1"):
        create_model("resnet8", num_classes=10, dropout=dropout)


def kernels(init: str) -> dict[str, np.ndarray]:
    model = create_model("tests.tiny:Tiny", num_classes=10)
    section = ModelConfig(**dict[str, Any](init=init))
    program = Program(model, OptimConfig(), Timeline(10, 1, 4), LossConfig(), *UNCHANGED, model_config=section)
    flat = traverse_util.flatten_dict(init_state(program, (8, 8, 3), 3, 0).params, sep="/")
    return {name: np.asarray(value) for name, value in flat.items()}


def is_semi_orthogonal(kernel: np.ndarray) -> bool:
    """As out x (in*kh*kw), written as torch would: OIHW, flattened."""
    weight = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return bool(np.abs(gram - np.eye(len(gram))).max() < 1e-5)


def test_the_default_start_is_what_the_modules_draw_to_the_bit() -> None:
    model, images = create_model("tests.tiny:Tiny", num_classes=10), jnp.zeros((1, 8, 8, 3))
    drawn: Any = traverse_util.flatten_dict(model.init(jax.random.key(3), images)["params"], sep="/")
    ours = kernels("he_uniform")
    assert set(ours) == set(drawn)
    assert all(np.array_equal(ours[name], drawn[name]) for name in drawn)


@pytest.mark.slow
def test_orthogonal_starts_redraw_the_last_conv_or_all_convs_and_nothing_else() -> None:
    usual, last, every = (kernels(init) for init in ("he_uniform", "orthogonal_last", "orthogonal"))
    convs = [name for name, value in usual.items() if value.ndim == 4]
    assert convs == [f"backbone/{name}/kernel" for name in ("conv1", "conv2")]
    assert [name for name in usual if not np.array_equal(usual[name], last[name])] == convs[1:]
    assert [name for name in usual if not np.array_equal(usual[name], every[name])] == convs
    assert not any(is_semi_orthogonal(usual[name]) for name in convs)
    assert all(is_semi_orthogonal(every[name]) for name in convs)
    assert np.array_equal(last[convs[1]], every[convs[1]])


def test_a_square_orthogonal_start_takes_both_signs_of_the_determinant() -> None:
    params = {"backbone": {"conv": {"kernel": jnp.zeros((1, 1, 3, 3))}}}
    signs = set()
    for seed in range(20):
        drawn = initialise(params, jax.random.key(seed), init="orthogonal", last_conv="conv")
        signs.add(round(float(np.linalg.det(drawn["backbone"]["conv"]["kernel"][0, 0]))))
    assert signs == {-1, 1}
