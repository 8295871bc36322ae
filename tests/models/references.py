"""How a network is held against its reference's record: tensors to the bit, logits to a share of their spread."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclf.models.classifier import Classifier
from jaxclf.models.torch_weights import to_torch


def check_round_trip(model: Classifier, variables: dict[str, Any], given: dict[str, np.ndarray]) -> None:
    """Hold the state dict that is written against the one that was read."""
    result = to_torch(model, variables)
    assert set(result) == set(given)
    for key, value in given.items():
        assert (result[key].dtype, result[key].shape) == (value.dtype, value.shape), key
        assert result[key].tobytes() == value.tobytes(), key
        assert result[key].flags.c_contiguous, key


def check_logits(logits: np.ndarray, answer: Mapping[str, Any], prefix: str = "") -> None:
    """Hold logits [n k] against a record of logits.json; the tolerance is 1e-4 of each image's spread."""
    first, mean, std = (np.array(answer[prefix + part]) for part in ("first", "mean", "std"))
    assert (np.abs(logits[:, : first.shape[1]] - first).max(1) < 1e-4 * std).all()
    assert (np.abs(logits.mean(1) - mean) < 1e-4 * std).all()
    assert (np.abs(logits.std(1) - std) < 1e-4 * std).all()
    assert logits.argmax(1).tolist() == answer[prefix + "argmax"]
