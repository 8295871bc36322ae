"""PyTorch state dicts -> variables: one mapping for every model, by name; torch itself is never imported.

A parameter's joined path is its PyTorch key: `layer1_0/conv1/kernel` is `layer1.0.conv1.weight`. What changes is the
layout: a conv kernel is HWIO here and OIHW there, a linear one [d k] here and [k d] there, and a linear layer that is
a convolution here (LeNet's hidden layers) is flattened channels first there. A fixed 1x1 conv is its matrix [k d].
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxclf.classifier import Classifier
from jaxclf.config import UsageError
from jaxclf.heads import Identity
from jaxclf.matrices import MATRICES, matrix

Path = tuple[str, ...]


def load_torch(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return `model`'s variables with the values of a PyTorch state dict (numpy arrays under torch's keys).

    The key sets and all shapes must be equal; every difference is listed in one `UsageError`. BatchNorm's
    num_batches_tracked is ignored (PyTorch reads it only when momentum is None). The last layer may have any of the
    names that its references use (`linear`, `fc`). A fixed matrix that is exact (Hadamard, identity ...) may be
    missing; where it is given it must be ours. A random one (orthogonal) is taken from the state dict.
    """
    head = _head_name(model, state_dict)
    shapes = _shapes(model, state_dict)
    targets = {_torch_key(path, head): path for path in shapes}
    faults, flat, seen = [], {}, set()
    for key, path in targets.items():
        exact = path[0] == "fixed" and not MATRICES[path[-1]].random
        own = matrix(path[-1], *shapes[path]).astype(np.float32) if exact else None
        if key not in state_dict:
            if own is None:
                faults.append(f"missing {key}")
            else:
                flat[path] = own
            continue
        seen.add(key)
        value = _to_flax(np.asarray(state_dict[key]), shapes[path], path[-1])
        if value is None:
            given = tuple(np.shape(state_dict[key]))
            faults.append(f"{key} has shape {given}, which does not fit {'/'.join(path)} {shapes[path]}")
        elif own is not None and not np.array_equal(value, own):
            faults.append(f"{key} is not the {path[-1]} matrix that is fixed there")
        else:
            flat[path] = value
    seen |= {key for key in state_dict if key.endswith(".num_batches_tracked")}
    seen |= _fixed_identity(model, state_dict, head, faults)
    faults += [f"unexpected {key}" for key in state_dict if key not in seen]
    if faults:
        raise UsageError(f"the state dict does not fit the model in {len(faults)} places: " + "; ".join(faults))
    return traverse_util.unflatten_dict(flat)


def _shapes(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> dict[Path, tuple[int, ...]]:
    """Shapes of all variables, for the number of image channels that the state dict's first conv takes."""
    stem = state_dict.get(_torch_key(("params", "backbone", *model.backbone.stem.split("/"), "kernel"), ""))
    channels = 3 if stem is None or np.ndim(stem) != 4 else np.shape(stem)[1]
    size = model.backbone.image_size
    images = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat: dict[Path, Any] = traverse_util.flatten_dict(variables)
    return {path: leaf.shape for path, leaf in flat.items()}


def _head_name(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> str:
    names = model.backbone.head_names
    return next((name for name in names if any(key.startswith(name + ".") for key in state_dict)), names[0])


def _torch_key(path: Path, head: str) -> str:
    """Return the PyTorch key of a variable's path (collection, backbone | head, modules ..., leaf).

    >>> _torch_key(("params", "backbone", "layer1_0", "conv1", "kernel"), "fc")
    'layer1.0.conv1.weight'
    """
    collection, part, *modules, leaf = path
    words = [re.sub(r"_(?=\d)", ".", word) for word in modules]
    weight = leaf == "kernel" or collection == "fixed"
    return ".".join([*([head] if part == "head" else []), *words, "weight" if weight else leaf])


def _to_flax(value: np.ndarray, shape: tuple[int, ...], leaf: str) -> np.ndarray | None:
    """Bring one tensor into our layout as float32; None where it does not fit."""
    if leaf == "kernel" and len(shape) == 4:
        height, width, inputs, outputs = shape
        if value.shape not in ((outputs, inputs, height, width), (outputs, inputs * height * width)):
            return None
        value = value.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
    elif leaf == "kernel":
        value = value.T
    elif value.shape == (*shape, 1, 1):
        value = value.reshape(shape)
    return np.asarray(value, np.float32) if value.shape == shape else None


def _fixed_identity(model: Classifier, state_dict: Mapping[str, np.ndarray], head: str, faults: list[str]) -> set[str]:
    """Accept a stored unit matrix in front of our identity head, which has no variable for it."""
    key = f"{head}.weight"
    if not isinstance(model.head, Identity) or key not in state_dict:
        return set()
    unit = matrix("identity", model.head.num_classes, model.backbone.features)
    if not np.array_equal(state_dict[key], unit):
        faults.append(f"{key} is not the unit matrix, but the model's head is identity")
    return {key}
