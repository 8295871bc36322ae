"""Every backbone against its reference network: parameter counts, state-dict keys and shapes, and logits.

The networks and their answers are in golden/reference.json; golden/golden.py says with which weights they answered.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxclf.errors import UsageError
from jaxclf.models import torch_weights
from jaxclf.models.backbones import backbone_options, create_backbone, list_models
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.count import count
from jaxclf.models.torch_weights import load_torch
from tests.models.drawn import drawn
from tests.models.references import check_logits, check_round_trip
from tests.models.zoo import ZOO
from tests.tiers import quick

pytestmark = pytest.mark.long
LENETS = {"lenet5_seed001": "lenet5_sigmoid", "lenet5_seed004": "lenet5", "lenetlike_seed004": "lenet_like"}
RESNETS = [
    f"resnet{depth}_{data}_{shortcut}"
    for depth in (20, 32, 44, 56, 110)
    for data in ("cifar10", "cifar100")
    for shortcut in "AB"
]
REBUILT = [f"rn32_cf100_ex{x}{e}{b}" for x in "abcdefg" for e in ("", "_fixed_eye") for b in ("", "_no_bias")]
DENSENETS = [f"densenetbc{size}_{data}" for size in ("100_12", "250_24", "190_40") for data in ("cifar10", "cifar100")]
IMAGENET = [
    *(f"resnet{depth}_tv" for depth in (18, 34, 50, 101, 152)),
    *(f"densenet{depth}_tv" for depth in (121, 161, 169, 201)),
    *(f"vgg{depth}{norm}_tv" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"shufflenet_v2_{size}_tv" for size in ("x0_5", "x1_0", "x1_5", "x2_0")),
    *("mobilenet_v2_tv", "efficientnet_lite0_mlill"),
]
NETWORKS = [*LENETS, *RESNETS, *REBUILT, *DENSENETS, *IMAGENET]
UNSEEN = ("densenetbc", "efficientnet", "lenet5_seed001", "lenetlike", "rn32")
"""What the names of networks begin with whose count of 2020 leaves out or adds what no rule of ours follows."""

QUICK = ["lenet5_seed004", "rn32_cf100_exb_fixed_eye_no_bias", "rn32_cf100_exg", "resnet18_tv"]
"""Networks of the default tier: those that compile within three seconds."""


def backbone_of(name: str) -> str:
    if match := re.fullmatch(r"densenetbc(\d+)_(\d+)_cifar(10+)", name):
        return f"densenet_bc_{match[1]}_{match[2]}"
    return "resnet32" if name in REBUILT else LENETS.get(name) or re.sub("_(tv|mlill|cifar.*)$", "", name)


@functools.cache
def model_of(name: str) -> Classifier:
    """The classifier whose parameters a reference network has."""
    if name in LENETS:
        return create_model(backbone_of(name), num_classes=10)
    if match := re.fullmatch(r"resnet\d+_cifar(10+)_(.)", name):
        return create_model(backbone_of(name), num_classes=int(match[1]), shortcut=match[2])
    if name in IMAGENET:
        return create_model(backbone_of(name), num_classes=1000)
    if name in DENSENETS:
        return create_model(backbone_of(name), num_classes=int(name.rsplit("cifar", 1)[1]))
    head, bias, option = "identity" if "eye" in name else "learned", "no_bias" not in name, name[len("rn32_cf100_ex")]
    return create_model("resnet32", num_classes=100, head=head, bias=bias, maps=100, maps_shortcut=option.upper())


def defining(key: str, name: str) -> np.ndarray:
    """The value of a frozen tensor of a reference network, from thesis.md sections 1 and 2."""
    if key == "fc.weight":
        return np.eye(100, dtype=np.float32)
    rows = np.zeros((100, 64))
    option = name[len("rn32_cf100_ex")]
    for r in range(100):
        if option == "c":
            rows[r] = scipy.linalg.hadamard(128)[r, :64]
        elif option == "d":
            rows[r, r // 2] = (-1) ** r
        elif option == "e":
            rows[r, r if r < 64 else r - 64] = 1 if r < 64 else -1
        elif option == "f":
            rows[r] = [(-1) ** int(bit) / 8 for bit in f"{r:064b}"]
        elif option == "g":
            rows[r] = np.random.default_rng(1000 + r).choice([-1, 1], 64) / 8
    return rows.astype(np.float32)[:, :, None, None]


def frozen_keys(name: str) -> list[str]:
    fixed_conv = re.match("rn32_cf100_ex[c-g]", name)
    return ["fc.weight"] * ("eye" in name) + ["layer3.4.shortcut.0.weight"] * bool(fixed_conv)


@pytest.fixture(scope="module")
def state_dict(golden: Any, reference: dict[str, Any]) -> Callable[[str], dict[str, np.ndarray]]:
    def fill(name: str) -> dict[str, np.ndarray]:
        record = reference[name]
        weights = golden.state_dict(record["state_dict"], "0", (record["logits"] or {"gain": 1.0})["gain"])
        return weights | {key: defining(key, name) for key in frozen_keys(name)}

    return fill


def test_the_lists_above_name_every_reference_network(reference: dict[str, Any]) -> None:
    assert set(NETWORKS) == set(reference)
    for name, record in reference.items():
        assert (record["logits"] is None) == ("_exg" in name)  # whose matrix is random
        if record["logits"]:
            assert set(frozen_keys(name)) == set(record["logits"]["frozen"])


BODIES: dict[Any, jax.Array] = {}
"""Features of the reference images: networks that differ in the last layer alone have one body and its weights."""


def logits_of(name: str, variables: dict[str, Any], gain: float, images: np.ndarray) -> np.ndarray:
    model = model_of(name)
    body, head = ({part: tree.get(at, {}) for part, tree in variables.items()} for at in ("backbone", "head"))
    if (model.backbone, gain) not in BODIES:
        # CIFAR ResNets repeat a few shapes: op by op, ResNet-110 takes one second instead of eight; a DenseNet, where
        # every layer has a shape of its own, thirty instead of ten.
        apply = model.backbone.apply if name in (*RESNETS, *REBUILT) else jax.jit(model.backbone.apply)
        maps: Any = apply(jax.tree.map(jnp.asarray, body), jnp.asarray(images))
        BODIES[model.backbone, gain] = model.pool(maps)
    return np.asarray(model.head.apply(jax.tree.map(jnp.asarray, head), BODIES[model.backbone, gain]))


def check_count(name: str, record: dict[str, Any]) -> None:
    counted = count(model_of(name), (*record["input"][1:], record["input"][0]))
    # The reference multiplies by its fixed unit matrix, we take the channels as they are.
    assert counted.total("macs") == record["macs"] - (10_000 if "fixed_eye" in name else 0)
    assert counted.total("trainable") == record["params_trainable"]
    if not name.startswith(UNSEEN):
        assert counted.total("flops_2020") == record["macs_ptflops_2020"]


@pytest.mark.parametrize("name", quick(NETWORKS, *QUICK))
def test_a_network_is_its_reference(name: str, golden: Any, reference: dict[str, Any], state_dict: Any) -> None:
    """Its operations are counted, its tensors come back to the bit, its logits are right."""
    record, model, given = reference[name], model_of(name), state_dict(name)
    check_count(name, record)
    variables = load_torch(model, given)
    check_round_trip(model, variables, {key: given[key] for key in given if "eye" not in name or key != "fc.weight"})
    if answer := record["logits"]:
        images = golden.image(answer["input"], "0").transpose(0, 2, 3, 1)
        check_logits(logits_of(name, variables, answer["gain"], images), answer)


@pytest.mark.parametrize("name", ["vgg16_bn_tv", "mobilenet_v2_tv"])
def test_operations_and_tensors_of_slow_networks_are_the_references(name: str, reference: dict[str, Any]) -> None:
    check_count(name, reference[name])
    load_torch(
        model_of(name), {key: np.broadcast_to(np.float32(0), shape) for key, shape in reference[name]["state_dict"]}
    )


@pytest.mark.parametrize("option", "cdef")
def test_a_frozen_tensor_may_be_left_out(option: str, state_dict: Any) -> None:
    name = f"rn32_cf100_ex{option}_fixed_eye"
    whole = state_dict(name)
    given = load_torch(model_of(name), whole)
    for key in frozen_keys(name):
        del whole[key]
    left_out = load_torch(model_of(name), whole)
    jax.tree.map(np.testing.assert_array_equal, given, left_out)
    (fixed,) = jax.tree.leaves(given["fixed"])
    assert np.array_equal(fixed, defining("layer3.4.shortcut.0.weight", name)[:, :, 0, 0])


def test_a_random_frozen_tensor_is_taken_from_the_state_dict_and_may_not_be_left_out(state_dict: Any) -> None:
    name, key = "rn32_cf100_exg", "layer3.4.shortcut.0.weight"
    whole = state_dict(name)
    (fixed,) = jax.tree.leaves(load_torch(model_of(name), whole)["fixed"])
    assert np.array_equal(fixed, whole[key][:, :, 0, 0])
    del whole[key]
    with pytest.raises(UsageError, match=f"in 1 places: missing {key}$"):
        load_torch(model_of(name), whole)


def test_one_error_lists_every_fault_of_a_state_dict(state_dict: Any) -> None:
    name = "rn32_cf100_exd_fixed_eye"
    weights = state_dict(name)
    weights["layer1.0.conv1.peso"] = weights.pop("layer1.0.conv1.weight")
    weights["bn1.weight"] = weights["bn1.weight"][:-1]
    weights["layer2.0.conv1.weight"] = weights["layer2.0.conv1.weight"].transpose(1, 0, 2, 3)
    weights["extra.bias"] = np.zeros(3, np.float32)
    weights["fc.weight"] = 2 * weights["fc.weight"]
    weights["layer3.4.shortcut.0.weight"] = -weights["layer3.4.shortcut.0.weight"]
    with pytest.raises(UsageError) as caught:
        load_torch(model_of(name), weights)
    for part in (
        "in 7 places",
        "missing layer1.0.conv1.weight",
        "unexpected layer1.0.conv1.peso",
        "bn1.weight has shape (15,)",
        "layer2.0.conv1.weight has shape (16, 32, 3, 3)",
        "unexpected extra.bias",
        "fc.weight is not the identity matrix",
        "layer3.4.shortcut.0.weight is not the orthoplex matrix",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", quick(["lenet5_seed004", "resnet20_cifar10_B", "densenetbc100_12_cifar10"], "lenet5_seed004")
)
def test_every_key_of_a_reference_is_needed(name: str, state_dict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_weights, "SHOWN", 1000)
    weights = state_dict(name)
    chosen = [key for key in weights if not key.endswith("num_batches_tracked")][::7]
    changed = {(key + "x" if key in chosen else key): value for key, value in weights.items()}
    with pytest.raises(UsageError) as caught:
        load_torch(model_of(name), changed)
    faults = str(caught.value).split(": ", 1)[1].split("; ")
    assert sorted(faults) == sorted([f"missing {key}" for key in chosen] + [f"unexpected {key}x" for key in chosen])


def test_an_error_lists_the_first_differences_and_counts_the_others(state_dict: Any) -> None:
    weights = {f"{key}x": value for key, value in state_dict("lenet5_seed004").items()}
    with pytest.raises(UsageError, match=r"in 20 places: (missing [\w.]+; ){8}and 12 more$"):
        load_torch(model_of("lenet5_seed004"), weights)


def test_num_batches_tracked_is_ignored(state_dict: Any) -> None:
    weights = state_dict("resnet20_cifar10_A")
    bare = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    assert len(bare) < len(weights)
    jax.tree.map(
        np.testing.assert_array_equal, *(load_torch(model_of("resnet20_cifar10_A"), one) for one in (weights, bare))
    )


def test_a_state_dict_says_how_many_channels_its_images_have(state_dict: Any) -> None:
    weights = state_dict("resnet20_cifar10_A")
    weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    loaded = load_torch(model_of("resnet20_cifar10_A"), weights)
    assert loaded["params"]["backbone"]["conv1"]["kernel"].shape == (3, 3, 1, 16)


@pytest.mark.parametrize(
    ("backbone", "images", "maps"),
    [
        ("resnet20", (2, 8, 8, 1), (2, 2, 2, 64)),
        ("resnet20", (1, 40, 24, 5), (1, 10, 6, 64)),
        ("resnet20", (1, 9, 7, 3), (1, 3, 2, 64)),
        ("lenet5", (1, 28, 28, 1), (1, 1, 1, 84)),
        ("lenet5", (1, 36, 32, 3), (1, 3, 2, 84)),
    ],
)
def test_any_channels_and_sizes(backbone: str, images: tuple[int, ...], maps: tuple[int, ...]) -> None:
    body = create_backbone(backbone)
    out, _ = jax.eval_shape(body.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct(images, jnp.float32))
    assert out.shape == maps
    assert maps[-1] == body.features


@pytest.mark.parametrize("shortcut", "ABCDEFG")
def test_maps_ends_a_resnet_whose_last_block_is_its_first_in_that_many_channels(shortcut: str) -> None:
    body = create_backbone("resnet8", maps=10, maps_shortcut=shortcut)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    out, _ = jax.eval_shape(body.init_with_output, jax.random.key(0), images)
    assert out.shape == (1, 4, 4, 10)


@pytest.mark.parametrize("backbone", LENETS.values())
def test_maps_ends_a_lenet_in_that_many_channels_without_activation(backbone: str) -> None:
    body = create_backbone(backbone, maps=7)
    out: Any = body.apply(drawn(body, 28, 28, 1), jax.random.normal(jax.random.key(1), (8, 28, 28, 1)))
    assert out.shape == (8, 1, 1, 7)
    assert (out < 0).any()


@pytest.mark.parametrize("backbone", LENETS.values())
def test_images_that_are_too_small_are_refused(backbone: str) -> None:
    with pytest.raises(UsageError, match=f"{backbone} takes images of 28x28 and larger; got 28x27"):
        drawn(create_model(backbone, num_classes=10), 28, 27, 1)


def test_an_unknown_backbone_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"^unknown backbone 'resnet19'; did you mean 'resnet\d+'"):
        create_model("resnet19", num_classes=10)


@pytest.mark.parametrize(
    ("backbone", "options", "text"),
    [
        (
            "resnet20",
            {"depth": 3},
            "backbone resnet20 has no option 'depth'; its options: maps, maps_shortcut, remat, shortcut",
        ),
        ("lenet5", {"shortcut": "A"}, "backbone lenet5 has no option 'shortcut'; its options: maps"),
        ("densenet_bc_100_12", {"maps": 100}, "backbone densenet_bc_100_12 has no option 'maps'; its options: remat"),
        ("resnet20", {"maps_shortcut": "B"}, "give maps as well"),
        ("resnet20", {"maps": 0}, "maps is 0 but must be at least 1"),
        ("resnet20", {"shortcut": "C"}, "unknown shortcut 'C'"),
        ("resnet20", {"maps": 10, "maps_shortcut": "H"}, "unknown maps_shortcut 'H'"),
        ("resnet20", {"maps": 129, "maps_shortcut": "D"}, "orthoplex has at most 128 rows of 64 columns"),
        ("resnet20", {"maps": 129, "maps_shortcut": "E"}, "signed_identity has at most 128 rows of 64 columns"),
        ("resnet8", {"maps": 65, "maps_shortcut": "D"}, "orthoplex has at most 64 rows of 32 columns"),
    ],
)
def test_options_that_cannot_be_are_refused(backbone: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_model(backbone, num_classes=10, **options)
    assert text in str(caught.value)


def test_the_registry() -> None:
    cifar = [*(f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 110)), "resnet32_bearpaw", "resnet_tutorial"]
    assert list_models("resnet*") == [*cifar, *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))]
    assert list_models("densenet_bc*[0-9]") == ["densenet_bc_100_12", "densenet_bc_190_40", "densenet_bc_250_24"]
    assert list_models("mobilenet_v[13]*") == [
        *("mobilenet_v1", "mobilenet_v1_timm", "mobilenet_v3_small", "mobilenet_v3_large")
    ]
    assert list_models("nasnet*") == []
    assert "maps" not in backbone_options("densenet_bc_100_12")
    small = list_models("lenet*") + list_models("resnet*")[:6] + list_models("densenet_bc*[0-9]")
    assert [create_backbone(name).features for name in small] == [84, 84, 200, *[64] * 6, 342, 2190, 1734]


def test_every_backbone_but_two_of_ours_has_a_reference() -> None:
    others = {backbone for rows in ZOO.values() for backbone, _ in rows.values()}
    assert {backbone_of(name) for name in NETWORKS} | others == {*list_models()} - {"resnet8", "ofa_mbv3_tiny"}
