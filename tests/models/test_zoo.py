"""Every network of zoo.py against its reference: parameters, operations, keys, shapes, logits."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone
from jaxclf.models.backbones import create_backbone, list_models
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.count import count
from jaxclf.models.torch_weights import load_torch, to_torch, transfer_torch
from tests.models.drawn import drawn
from tests.models.references import check_logits, check_round_trip
from tests.models.zoo import ZOO
from tests.tiers import quick

pytestmark = pytest.mark.long
RECORDS = Path(__file__).parents[1] / "golden" / "zoo"
NETWORKS = {name: (family, *row) for family, rows in ZOO.items() for name, row in rows.items()}
QUICK = ["wrn40_2_cifar10", "squeezenet1_1_tv"]
"""Networks whose logits the default tier computes: those that compile within three seconds."""
COUNTED = ["alexnet_seed001", "nin_cifar10", "googlenet_paper_aux", "bit_r50x1"]
"""Networks whose tensors and operations the default tier looks at: one of each structure that traces in a second."""
SMALLEST = {
    name: side
    for side, names in {
        1: "resnet_tutorial wrn40_2 resnext29_8x64d mobilenet_v1 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
        "ofa_mbv3_tiny "
        "efficientnet_lite0 shufflenet_v2_x0_5_megvii nin hardnet39ds bit_r50x1 nfnet_f0 resnet8 resnet18 "
        "resnet32_bearpaw",
        3: "legacy_seresnet50",
        4: "densenet_bc_100_12 densenet_bc_100_12_hoya",
        15: "googlenet",
        17: "squeezenet1_1",
        21: "squeezenet1_0",
        28: "lenet5",
        29: "hardnet68 densenet121",
        31: "googlenet_paper bninception",
        75: "inception_v3 inception_v4 inception_resnet_v1 inception_resnet_v2",
        223: "alexnet",
        224: "vgg11 vgg11_bn",
    }.items()
    for name in names.split()
}
"""Side of the smallest images that a backbone takes."""

UNSEEN = (
    *("se_resnet50_timm", "se_resnet50_legacy_timm", "alexnet_seed001", "googlenet_paper", "densenetbc"),
    *("mobilenet_v1_timm", "shufflenet_v2", "efficientnet_b0_lukemelas", "efficientnet_lite", "tf_efficientnet"),
    *("inception_v3", "inception_v4_timm", "inception_resnet_v1", "inception_resnet_v2_timm"),
)
"""What the names of networks begin with whose count of 2020 leaves out or adds what no rule of ours follows."""
BORN = {"nin": "classifier.20", "squeezenet1_1": "classifier.1"}
"""Backbones that give classes by birth, and the key of the conv that does."""


@functools.cache
def records(family: str) -> dict[str, dict[str, Any]]:
    return json.loads((RECORDS / f"{family}.json").read_text())


def record_of(name: str) -> dict[str, Any]:
    return records(NETWORKS[name][0])[name]


def backbone_of(name: str) -> str:
    return NETWORKS[name][1]


def model_of(name: str) -> Classifier:
    _, backbone, options = NETWORKS[name]
    return create_model(backbone, num_classes=record_of(name)["classes"], **options)


def check_structure(name: str, model: Classifier) -> None:
    record = record_of(name)
    channels, height, width = record["input"]
    counted = count(model, (height, width, channels))
    assert counted.total("trainable") == record["params_trainable"]
    assert record["macs"] in (None, counted.total("macs"))
    if not name.startswith(UNSEEN):
        assert record["macs_ptflops_2020"] in (None, counted.total("flops_2020"))
    load_torch(model, {key: np.broadcast_to(np.float32(0), shape) for key, shape in record["state_dict"]})


@pytest.mark.parametrize("name", quick(NETWORKS, *QUICK))
def test_a_network_is_its_reference(name: str, golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operations are counted, its tensors fit and come back to the bit, its logits are right.

    Where the record has no logits, or a network with auxiliary classifiers answers for both, the tensors fit.
    """
    record, model = record_of(name), model_of(name)
    check_structure(name, model)
    answer = record["logits"]
    if answer is None or f"{name}_aux" in NETWORKS:
        return
    given = golden.state_dict(record["state_dict"], "0", answer["gain"])
    variables = load_torch(model, given)
    check_round_trip(model, variables, given)
    images = jnp.asarray(golden.image(answer["input"], "0").transpose(0, 2, 3, 1))
    # What auxiliary classifiers answer in an evaluation, which leaves them out, is recorded as well.
    monkeypatch.setattr(
        Backbone, "last_layers", lambda self, _: tuple(one.clone(parent=None, name=None) for one in self.auxiliary)
    )
    logits, inner = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(variables, images)
    check_logits(np.asarray(logits), answer)
    recorded = {"AuxLogits": "aux_", "aux1": "aux1_", "aux2": "aux2_"}
    for one in model.backbone.auxiliary_heads:
        if recorded[one.name] + "first" in answer:
            given = inner["intermediates"]["backbone"][one.name]["logits"][0]
            check_logits(np.asarray(given), answer, recorded[one.name])


@pytest.mark.parametrize("name", COUNTED)
def test_operations_and_tensors_of_slow_networks_are_the_references(name: str) -> None:
    check_structure(name, model_of(name))


@pytest.mark.parametrize(
    ("name", "side"), quick(SMALLEST.items(), *(one for one in SMALLEST.items() if one[0] in ("alexnet", "nin")))
)
def test_images_of_the_smallest_size_leave_a_position_and_smaller_ones_are_refused(name: str, side: int) -> None:
    body = create_backbone(name)

    def maps(side: int) -> Any:
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(body.init_with_output, jax.random.key(0), images)[0]

    assert min(maps(side).shape) > 0
    with pytest.raises(UsageError, match=f"{name} takes images of {side}x{side} and larger"):
        maps(side - 1)


@pytest.mark.slow
def test_every_network_refuses_images_that_are_too_small_and_says_its_minimum() -> None:
    """Each is of a structure of `SMALLEST` with that minimum: at it a network of the structure leaves a position."""
    structures = {(type(create_backbone(name)), side) for name, side in SMALLEST.items()}
    for name in list_models():
        body = create_backbone(name)

        def refused(side: int, body: Backbone = body) -> int:
            images = jax.ShapeDtypeStruct((1, side, 300, 3), jnp.float32)
            with pytest.raises(UsageError, match="takes images of") as caught:
                jax.eval_shape(body.init_with_output, jax.random.key(0), images)
            found = re.search(rf"takes images of (\d+)x\1 and larger; got {side}x300", str(caught.value))
            assert found is not None, caught.value
            return int(found[1])

        least = refused(0)
        assert (type(body), least) in structures, (name, least)
        assert refused(least - 1) == least


@pytest.mark.parametrize(("backbone", "least"), [("alexnet", 31), ("alexnet_1024", 31)])
def test_a_network_that_ends_before_its_linear_layers_takes_smaller_images(backbone: str, least: int) -> None:
    body = create_backbone(backbone, maps=7)
    images = [jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32) for side in (least, least - 1)]
    out, _ = jax.eval_shape(body.init_with_output, jax.random.key(0), images[0])
    assert out.shape == (1, 1, 1, 7)
    with pytest.raises(UsageError, match=f"{backbone} takes images of {least}x{least} and larger"):
        jax.eval_shape(body.init_with_output, jax.random.key(0), images[1])


@pytest.mark.slow
@pytest.mark.parametrize("side", [38, 39, 62, 63])
def test_bninception_refuses_sides_at_which_the_branches_of_a_module_would_differ(side: int) -> None:
    body = create_backbone("bninception")
    images = jax.ShapeDtypeStruct((1, side, 32, 3), jnp.float32)
    if side in (38, 63):
        out, _ = jax.eval_shape(body.init_with_output, jax.random.key(0), images)
        assert out.shape == (1, 1 if side == 38 else 2, 1, 1024)
    else:
        with pytest.raises(UsageError, match=f"from 32 m - 1 to 32 m \\+ 6 pixels, as 223 to 230; got {side}x32"):
            jax.eval_shape(body.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize("backbone", ["nin", "squeezenet1_1"])
def test_an_identity_head_by_birth_keeps_its_dropout(backbone: str) -> None:
    def rates(**options: Any) -> tuple[float, float]:
        model = create_model(backbone, num_classes=10, head="identity", **options)
        return model.dropout, model.backbone.dropout

    assert rates(maps=10) == (0.0, 0.5)
    assert rates(maps=10, dropout=0.25) == rates(dropout=0.25) == (0.0, 0.25)


@pytest.mark.parametrize(("backbone", "last"), quick(BORN.items(), ("nin", "classifier.20")))
def test_a_head_above_the_last_conv_has_a_name_of_its_own(backbone: str, last: str) -> None:
    model = create_model(backbone, num_classes=7, maps=10)
    variables = drawn(model, 32, 32, 3)
    written = to_torch(model, variables)
    assert written["fc.weight"].shape == (7, 10)
    assert written[f"{last}.weight"].shape[:1] == (10,)
    jax.tree.map(np.testing.assert_array_equal, load_torch(model, written), variables)


@pytest.mark.parametrize(("backbone", "last"), quick(BORN.items(), ("nin", "classifier.20")))
def test_a_network_that_gives_classes_by_birth_starts_one_with_others(backbone: str, last: str) -> None:
    given, model = (create_model(backbone, num_classes=k, head="identity", maps=k) for k in (10, 7))
    state_dict = to_torch(given, drawn(given, 32, 32, 3))
    started, text = transfer_torch(model, drawn(model, 32, 32, 3), state_dict)
    written = to_torch(model, started)
    assert {key for key, value in written.items() if not np.array_equal(value, state_dict[key])} == {
        f"{last}.weight",
        f"{last}.bias",
    }
    assert any("left at their initial values, because maps rebuilds them" in line for line in text)


SHOWN = SMALLEST.keys() - {
    *("vgg11_bn", "hardnet68", "squeezenet1_0", "legacy_seresnet50", "densenet_bc_100_12_hoya", "resnet32_bearpaw"),
    *(
        "nfnet_f0",
        "densenet121",
        "googlenet",
        "inception_v4",
        "inception_resnet_v1",
        "inception_resnet_v2",
        "resnext29_8x64d",
        "bit_r50x1",
    ),
}
"""Networks whose class maps are looked at: one of each structure that a last feature map comes out of."""


@pytest.mark.parametrize("name", quick(sorted(SHOWN), "resnet8"))
def test_class_maps_average_to_the_logits_at_three_sizes(name: str) -> None:
    """1e-5 of the logits' spread; a square, a wide and a high image."""
    options: dict[str, Any] = {"auxiliary": False} if name == "inception_v3" else {}  # that asks for 299 pixels
    model, side = create_model(name, num_classes=10, **options), max(SMALLEST[name], 32)
    variables = drawn(model, side, side, 3)

    @jax.jit
    def answers(variables: Any, images: jax.Array) -> tuple[Any, Any]:
        return model.apply(variables, images), model.apply(variables, images, method="class_maps")

    positions = []
    for height, width in ((side, side), (side, side + 64), (side + 96, side)):
        images = np.random.default_rng(0).normal(size=(1, height, width, 3)).astype(np.float32)
        logits, maps = answers(variables, images)
        positions.append(maps.shape[1] * maps.shape[2])
        assert np.abs(maps.mean((1, 2)) - logits).max() < 1e-5 * logits.std()
    assert model.backbone.pools_inside or positions[0] < max(positions)
