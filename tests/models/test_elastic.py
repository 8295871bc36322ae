"""Elastic networks: settings against the reference's answers, extraction, and the sorting of channels."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.errors import UsageError
from jaxclf.models.backbones import create_backbone
from jaxclf.models.backbones.once_for_all import OnceForAll
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.count import count
from jaxclf.models.elastic import Choices, Setting, sort_channels, variables_of
from jaxclf.models.torch_weights import load_torch
from jaxclf.training import weights
from jaxclf.training.weights import WeightRecord, Weights
from tests.models.drawn import drawn
from tests.models.references import check_logits

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "zoo" / "once_for_all.json").read_text())
NUMBERS = {"kernels": "ks", "expansions": "e", "depths": "d"}
TINY = {
    "largest": {"kernels": (5,)},
    "smallest": {"kernels": (3,), "expansions": (3,), "depths": (1,)},
    "mixed": {"kernels": (5, 3, 3, 3, 5, 3), "expansions": (4, 6, 3, 3, 4, 6), "depths": (2, 3)},
}


def given_options(answer: Any) -> dict[str, Any]:
    return {ours: tuple(answer[theirs]) for ours, theirs in NUMBERS.items()}


def tiny(**options: Any) -> Classifier:
    return create_model("ofa_mbv3_tiny", num_classes=10, **options)


def body_of(model: Classifier) -> OnceForAll:
    assert isinstance(model.backbone, OnceForAll)
    return model.backbone


def with_setting(model: Classifier, variables: Any, setting: Setting) -> Any:
    choices = body_of(model).choices
    return {**variables, "setting": variables_of(choices, setting.places(choices))}


def flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree)


def answers(model: Classifier, variables: Any, images: Any) -> Any:
    return model.apply(variables, images)


def extracted(elastic: Classifier, variables: Any, ordinary: Classifier) -> Any:
    record = WeightRecord(body_of(elastic).kind, elastic.head.num_classes)
    body = body_of(ordinary)
    setting = {"kernels": body.kernels, "expansions": body.expansions, "depths": body.depths}
    return weights.extracted(Weights(elastic, variables, record), **setting).variables


@functools.cache
def tiny_variables() -> Any:
    return jax.tree.map(jnp.asarray, drawn(tiny(), 28, 28, 3))


@pytest.mark.slow
@pytest.mark.parametrize("width", ["1.0", "1.2"])
def test_the_settings_of_a_supernet_answer_as_the_references_do(width: str, golden: Any) -> None:
    """One compiled program answers for all four settings; the extracted networks have their parameters and MACs."""
    record = RECORDS[f"ofa_mbv3_w{width}_supernet"]
    name = f"ofa_mbv3_w{width.replace('.', '_')}"
    model = create_model(name, num_classes=1000)
    choices = body_of(model).choices
    answer = jax.jit(model.apply)
    images = jnp.asarray(golden.image(record["settings"][0]["input"], "0").transpose(0, 2, 3, 1))
    assert len(record["settings"]) == 4
    for given in record["settings"]:
        variables = load_torch(model, golden.state_dict(record["state_dict"], "0", given["gain"]))
        setting = Setting.of(choices, 5, **given_options(given))
        check_logits(np.asarray(answer(with_setting(model, variables, setting), images)), given)
        counted = count(ordinary := create_model(name, num_classes=1000, **given_options(given)), (224, 224, 3))
        assert counted.total("trainable") == given["subnet_params"]
        assert counted.total("macs") == given["subnet_macs"]
        own = jax.device_get(extracted(model, variables, ordinary))
        assert sum(leaf.size for leaf in jax.tree.leaves(own["params"])) == given["subnet_params"]
    check_logits(np.asarray(jax.jit(ordinary.apply)(own, images)), given)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_an_extracted_network_answers_as_the_supernet_under_its_setting(name: str) -> None:
    model, ordinary = tiny(), tiny(**TINY[name])
    variables, setting = tiny_variables(), body_of(ordinary).setting
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 28, 28, 3)), jnp.float32)
    inside = answers(model, with_setting(model, variables, setting), images)
    alone = answers(ordinary, extracted(model, variables, ordinary), images)
    np.testing.assert_allclose(inside, alone, atol=1e-5 * float(jnp.std(alone)))


@pytest.mark.slow
def test_the_largest_setting_is_the_network_without_one() -> None:
    model, images = tiny(), jnp.ones((2, 28, 28, 3))
    setting = body_of(model).setting
    with_one = answers(model, with_setting(model, tiny_variables(), setting), images)
    np.testing.assert_allclose(with_one, answers(model, tiny_variables(), images), rtol=1e-6)


@pytest.mark.slow
def test_training_under_a_setting_leaves_what_it_does_not_use() -> None:
    """No gradient and no statistics reach channels, taps, matrices and blocks that a setting leaves out."""
    model, variables = tiny(), tiny_variables()
    setting = Setting.of(body_of(model).choices, 2, kernels=(5,), expansions=(3,), depths=(1,))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 28, 28, 3)), jnp.float32)

    def loss(params: Any) -> Any:
        given = with_setting(model, {**variables, "params": params}, setting)
        key = {"dropout": jax.random.key(0)}
        logits, new = model.apply(given, images, train=True, mutable=["batch_stats"], rngs=key)
        return jnp.square(logits).sum(), new["batch_stats"]

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    grads, moved, before = (flat(one["backbone"]) for one in (grads, stats, variables["batch_stats"]))
    width = body_of(model).widths()["blocks_1"][2]
    for path, grad in grads.items():
        unused = path[0] in ("blocks_2", "blocks_3", "blocks_5", "blocks_6") or path[-1] == "5to3_matrix"
        assert bool(jnp.any(grad != 0)) != unused, path
    assert not np.any(grads["blocks_1", "conv", "point_linear", "conv", "conv", "kernel"][0, 0, width:])
    for path, old in before.items():
        same = np.asarray(moved[path] == old)
        if path[0] == "blocks_2":
            assert same.all()
        elif path[0] == "blocks_1" and path[2] != "point_linear":
            assert same[width:].all()
            assert not same[:width].any()


@pytest.mark.slow
def test_sorted_channels_answer_as_before_and_fall_in_importance() -> None:
    model, variables = tiny(), tiny_variables()
    widths = body_of(model).widths()
    cuts = {block: own[1:2] for block, own in widths.items()}
    body = variables["params"]["backbone"]
    tree = {"params": body, "batch_stats": variables["batch_stats"]["backbone"]}
    new = sort_channels(body, tree, cuts)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 28, 28, 3)), jnp.float32)
    ordered = {name: {**variables[name], "backbone": new[name]} for name in ("params", "batch_stats")}
    before, after = (answers(model, one, images) for one in (variables, {**variables, **ordered}))
    np.testing.assert_allclose(before, after, atol=1e-5 * float(jnp.std(before)))
    for block, (full, cut, _) in widths.items():
        kernel = new["params"][block]["conv"]["point_linear"]["conv"]["conv"]["kernel"]
        importance = np.abs(np.asarray(kernel)).sum((0, 1, 3))
        assert len(importance) == full
        assert (np.diff(importance[:cut]) <= 0).all()
        assert (np.diff(importance[cut:]) <= 0).all()
        assert set(importance[:cut]) == set(
            np.abs(body[block]["conv"]["point_linear"]["conv"]["conv"]["kernel"]).sum((0, 1, 3))[:cut]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": (4,)}, "kernels has 4 but must be of 5, 3"),
        ({"depths": (1, 2, 3)}, "depths has 3 numbers but must have 1 or 2"),
        ({"expansions": (3, 4)}, "expansions has 2 numbers but must have 1 or 6"),
        ({"kernels": (7,), "depths": (0,)}, "kernels has 7 but must be of 5, 3; depths has 0 but must be of 3, 2, 1"),
    ],
)
def test_an_unknown_setting_is_refused_with_what_there_is(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting: {message}"):
        tiny(**options)


def test_a_setting_in_arrays_is_places_in_the_choices() -> None:
    setting = Setting.of(Choices(), 2, kernels=[3, 5, 7, 7] * 2, expansions=[6, 4, 3, 3] * 2, depths=[2, 4])
    assert [own.tolist() for own in setting.places(Choices())] == [[2, 1, 0, 0] * 2, [0, 1, 2, 2] * 2, [2, 0]]
    assert setting.blocks() == [0, 1, 4, 5, 6, 7]


def test_other_backbones_have_no_settings() -> None:
    with pytest.raises(UsageError, match="backbone resnet20 has no option 'depths'"):
        create_backbone("resnet20", depths=(2,))
