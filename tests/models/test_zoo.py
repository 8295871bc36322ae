"""Every network of zoo.py against its reference: parameters, operations, keys, shapes, logits."""

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
QUICK: list[str] = []
"""Networks whose logits the default tier computes: those that compile within three seconds."""
COUNTED: list[str] = ["inception_v3_tv", "inception_resnet_v1_facenet"]
"""Networks whose tensors and operations the default tier looks at: one of each structure that traces in a second."""

SMALLEST = {"inception_v3": 75, "inception_v4": 75, "inception_resnet_v1": 75, "inception_resnet_v2": 75}
"""Side of the smallest images that a backbone takes, where that is not 1."""


def record_of(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{NETWORKS[name][0]}.json").read_text())[name]


def model_of(name: str, classes: int) -> Classifier:
    _, backbone, options = NETWORKS[name]
    return create_model(backbone, num_classes=classes, **options)


def check_structure(model: Classifier, record: dict[str, Any]) -> None:
    channels, height, width = record["input"]
    counted = count(model, (height, width, channels))
    assert counted.total("trainable") == record["params_trainable"]
    assert counted.total("macs") == record["macs"]


@pytest.mark.parametrize("name", quick(NETWORKS, *COUNTED))
def test_a_network_has_the_tensors_and_operations_of_its_reference(name: str) -> None:
    record = record_of(name)
    model = model_of(name, record["classes"])
    check_structure(model, record)
    load_torch(model, {key: np.broadcast_to(np.float32(0), shape) for key, shape in record["state_dict"]})


@pytest.mark.parametrize("name", quick(NETWORKS, *QUICK))
def test_a_network_answers_as_its_reference(name: str, golden: Any) -> None:
    record = record_of(name)
    model, answer = model_of(name, record["classes"]), record["logits"]
    given = golden.state_dict(record["state_dict"], "0", answer["gain"])
    variables = load_torch(model, given)
    check_round_trip(model, variables, given)
    images = golden.image(answer["input"], "0").transpose(0, 2, 3, 1)
    check_logits(np.asarray(jax.jit(model.apply)(variables, jnp.asarray(images))), answer)


def shape_of_answer(backbone: str, side: int) -> tuple[int, ...]:
    body, images = create_backbone(backbone), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    answer, _ = jax.eval_shape(body.init_with_output, jax.random.key(0), images)
    return answer.shape


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "side"), SMALLEST.items())
def test_the_smallest_images_give_one_position(backbone: str, side: int) -> None:
    assert shape_of_answer(backbone, side) == (1, 1, 1, create_backbone(backbone).features)


@pytest.mark.parametrize(("backbone", "side"), SMALLEST.items())
def test_smaller_images_are_refused(backbone: str, side: int) -> None:
    with pytest.raises(UsageError, match=f"^{backbone} takes images of {side}x{side} and larger; got {side - 1}x"):
        shape_of_answer(backbone, side - 1)
