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
from tests.models.zoo import UNANSWERED, ZOO
from tests.tiers import quick

pytestmark = pytest.mark.long
RECORDS = Path(__file__).parents[1] / "golden" / "zoo"
NETWORKS = {name: (family, *row) for family, rows in ZOO.items() for name, row in rows.items()}
SMALLEST = {"hardnet68": 29, "hardnet39ds": 1, "bit_r50x1": 1, "nfnet_f0": 1}
"""Backbone -> side of the smallest images that it takes: one of each structure."""
QUICK: list[str] = []
"""Networks whose logits the default tier computes: those that compile within three seconds."""
COUNTED = ["hardnet68", "bit_r50x1", "nfnet_f0_timm"]
"""Networks whose tensors and operations the default tier looks at: one of each structure that traces in a second."""


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


@pytest.mark.parametrize("name", quick([name for name in NETWORKS if name not in UNANSWERED], *QUICK))
def test_a_network_answers_as_its_reference(name: str, golden: Any) -> None:
    record = record_of(name)
    model, answer = model_of(name, record["classes"]), record["logits"]
    given = golden.state_dict(record["state_dict"], "0", answer["gain"])
    variables = load_torch(model, given)
    check_round_trip(model, variables, given)
    images = golden.image(answer["input"], "0").transpose(0, 2, 3, 1)
    check_logits(np.asarray(jax.jit(model.apply)(variables, jnp.asarray(images))), answer)


@pytest.mark.parametrize(("name", "side"), quick(SMALLEST.items(), ("hardnet68", 29)))
def test_images_below_the_smallest_are_refused(name: str, side: int) -> None:
    body, key = create_backbone(name), jax.random.key(0)
    images = [jax.ShapeDtypeStruct((1, side - less, side, 3), jnp.float32) for less in (0, 1)]
    maps, _ = jax.eval_shape(body.init_with_output, key, images[0])
    assert maps.shape == (1, 1, 1, body.features)
    with pytest.raises(UsageError, match=f"takes images of {side}x{side} and larger; got {side - 1}x{side}"):
        jax.eval_shape(body.init_with_output, key, images[1])
