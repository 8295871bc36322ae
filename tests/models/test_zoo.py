"""Every network of zoo.py against its reference: parameters, operations, keys, shapes, logits."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.errors import UsageError
from jaxclf.models.backbones import create_backbone
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.count import count
from jaxclf.models.torch_weights import load_torch
from tests.models.references import check_logits, check_round_trip
from tests.models.zoo import ZOO
from tests.tiers import quick

pytestmark = pytest.mark.long
RECORDS = Path(__file__).parents[1] / "golden" / "zoo"
NETWORKS = {name: (family, *row) for family, rows in ZOO.items() for name, row in rows.items()}
QUICK: list[str] = ["mobilenet_v1_timm"]
"""Networks whose logits the default tier computes: those that compile within three seconds."""
COUNTED: list[str] = [
    "efficientnet_lite0_timm",
    "mobilenet_v1_wjc",
    "mobilenet_v3_small_tv",
    "shufflenet_v2_0.5x_megvii",
]
"""Networks whose tensors and operations the default tier looks at: one of each structure that traces in a second."""
SMALLEST = {
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5_megvii"), 1),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_lite0"), 1),
}
"""Backbone -> side of the smallest images that it takes; of each family, one network of each padding."""


@functools.cache
def records(family: str) -> dict[str, dict[str, Any]]:
    return json.loads((RECORDS / f"{family}.json").read_text())


def record_of(name: str) -> dict[str, Any]:
    return records(NETWORKS[name][0])[name]


ANSWERED = [name for name in NETWORKS if record_of(name)["logits"]]


def model_of(name: str, classes: int) -> Classifier:
    _, backbone, options = NETWORKS[name]
    return create_model(backbone, num_classes=classes, **options)


def check_structure(model: Classifier, record: dict[str, Any]) -> None:
    channels, height, width = record["input"]
    counted = count(model, (height, width, channels))
    assert counted.total("trainable") == record["params_trainable"]
    assert record["macs"] in (None, counted.total("macs"))


@pytest.mark.parametrize("name", quick(NETWORKS, *COUNTED))
def test_a_network_has_the_tensors_and_operations_of_its_reference(name: str) -> None:
    record = record_of(name)
    model = model_of(name, record["classes"])
    check_structure(model, record)
    load_torch(model, {key: np.broadcast_to(np.float32(0), shape) for key, shape in record["state_dict"]})


@pytest.mark.parametrize("name", quick(ANSWERED, *QUICK))
def test_a_network_answers_as_its_reference(name: str, golden: Any) -> None:
    record = record_of(name)
    model, answer = model_of(name, record["classes"]), record["logits"]
    given = golden.state_dict(record["state_dict"], "0", answer["gain"])
    variables = load_torch(model, given)
    check_round_trip(model, variables, given)
    images = golden.image(answer["input"], "0").transpose(0, 2, 3, 1)
    check_logits(np.asarray(jax.jit(model.apply)(variables, jnp.asarray(images))), answer)


@pytest.mark.parametrize(("backbone", "side"), quick(SMALLEST.items(), ("shufflenet_v2_x0_5_megvii", 1)))
def test_images_below_the_smallest_are_refused(backbone: str, side: int) -> None:
    def maps(side: int) -> tuple[int, ...]:
        body, images = create_backbone(backbone), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(body.init_with_output, jax.random.key(0), images)[0].shape

    assert min(maps(side)) == 1
    with pytest.raises(UsageError, match=f"takes images of {side}x{side} and larger; got {side - 1}x{side - 1}"):
        maps(side - 1)
