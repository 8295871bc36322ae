"""PyTorch state dicts <-> variables: one mapping for every model, by name; torch itself is never imported.

A parameter's joined path is its PyTorch key: `layer1_0/conv1/kernel` is `layer1.0.conv1.weight`. An underscore that
stands before a number in PyTorch's key, too, is doubled in ours: `branch7x7__1`. What changes is the layout: a conv
kernel is HWIO here and OIHW there, a linear one [d k] here and [k d] there, and a linear layer that is a convolution
here (a backbone's `linear_layers`) is flattened channels first there. A fixed 1x1 conv is its matrix [k d]; the
attention pool's linear layers are Conv1d there [k d 1], and the head of a backbone with `head_conv` is a Conv2d
[k d 1 1]. The gain of a scaled convolution is [k] here and [k 1 1 1] there.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone
from jaxclf.models.backbones import OWN, create_backbone
from jaxclf.models.classifier import Classifier
from jaxclf.models.heads import Head, Linear
from jaxclf.models.matrices import is_random, matrix

ROWS = "rows"
"""The variable of a head that says which row each class has."""
SHOWN = 8
"""Differences that an error lists."""
TRACED = 8
"""Networks that an error compares a state dict with, one or two seconds each."""
Path = tuple[str, ...]
Flat = dict[Path, Any]
Shapes = dict[Path, tuple[int, ...]]


def load_torch(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return `model`'s variables with the values of a PyTorch state dict (numpy arrays under torch's keys).

    The key sets and all shapes must be equal; one `UsageError` counts the differences, lists the first, and names the
    network of ours that the state dict fits. BatchNorm's num_batches_tracked is ignored (PyTorch reads it only when
    momentum is None). The last layer may have any of the names that its references use (`linear`, `fc`). A fixed matrix
    that is exact (Hadamard, identity ...) may be missing; where it is given it must be ours, however the head applies
    it. A random one is taken from the state dict, and an orthogonal one must be semi-orthogonal within 1e-3: a learned
    matrix of the same shape is no such head.
    """
    state_dict = _todays_keys(model.backbone, state_dict)
    head = head_name(model, state_dict)
    shapes = _shapes(model, _given_channels(model.backbone, state_dict))
    flat, faults = _read(shapes, state_dict, head, _unmade(model))
    _raise_for(faults, "the state dict does not fit the model", lambda: _fitting(model, state_dict))
    return traverse_util.unflatten_dict(flat)


def to_torch(model: Classifier, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return `model`'s variables as a PyTorch state dict: the inverse of `load_torch`, by the same mapping.

    Values are float32 in torch's shapes and layouts, and the rows that a head has assigned int64, as `<head>.rows`; the
    class means of a head are `<head>.means`. BatchNorm's num_batches_tracked, which nothing here counts, is
    written as an int64 zero. Fixed matrices are written as the references store them: those of shortcuts as 1x1 convs
    [k d 1 1], a random one of a head as `<head>.weight` [k d], an exact one of a head (Hadamard, identity) not at
    all. The last layer has the first of its family's `head_names`.

    Raises `UsageError` with the first differences where `variables` are not the model's.
    """
    flat: Flat = traverse_util.flatten_dict(dict(variables))
    shapes = _shapes(model, _channels(model, flat))
    faults = [f"missing {'/'.join(path)}" for path in shapes if path not in flat]
    faults += [f"unexpected {'/'.join(path)}" for path in flat if path not in shapes]
    faults += [
        f"{'/'.join(path)} has shape {np.shape(value)} instead of {shapes[path]}"
        for path, value in flat.items()
        if path in shapes and np.shape(value) != shapes[path]
    ]
    _raise_for(faults, "the variables do not fit the model")
    head, state_dict = model.backbone.head_names[0], {}
    for path, value in flat.items():
        if path[:2] == ("fixed", "head") and not is_random(path[-1]):
            continue
        key = _torch_key(path, head)
        dtype = np.int64 if path[-1] == ROWS else np.float32
        state_dict[key] = _to_torch(np.asarray(value, dtype), path, model.backbone)
        if path[-1] == "running_mean":
            state_dict[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return state_dict


def transfer_torch(
    model: Classifier, variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], list[str]]:
    """Start `model` from the state dict of its plain backbone, whatever that one's last layer was.

    `variables` are `model`'s initial values. They stay where nothing fits: in a backbone that ends in `maps`, in the
    variables whose name or shape the plain backbone does not have; and in the head, unless the whole backbone and the
    last layer fit exactly. Returns new variables and sentences that say what was loaded and what was not.

    Auxiliary classifiers start anew, whether or not the state dict has them.

    Raises `UsageError` with the first differences between the state dict and the plain backbone, that without `maps`.
    """
    own: Flat = traverse_util.flatten_dict(dict(variables))
    state_dict, adapted = _with_channels(model, _todays_keys(model.backbone, state_dict), _channels(model, own))
    state_dict, text = _part(model.backbone, state_dict)
    beside, whole = auxiliary_keys(model.backbone, state_dict), state_dict
    state_dict = {key: value for key, value in state_dict.items() if key not in beside}
    head, channels = head_name(model, state_dict), _channels(model, own)
    last = {key: value for key, value in state_dict.items() if key.startswith(head + ".")}
    rest = {key: value for key, value in state_dict.items() if key not in last}
    given, faults = _read(_plain_shapes(model.backbone, channels), rest, head)
    what = "the state dict does not fit the model's backbone"
    _raise_for(faults, what, lambda: _fitting(model, whole))

    kept = {path: value for path, value in given.items() if path in own and np.shape(own[path]) == value.shape}
    trained = [one.name for one in model.backbone.auxiliary_trained]
    left = [path for path in own if path[1] == "backbone" and path[2] not in trained and path not in kept]
    text += [f"loaded {len(kept)} variables of the backbone", *adapted]
    if trained or beside:
        text.append(f"auxiliary classifiers: {', '.join(trained) or 'none'} start anew, {len(beside)} tensors not used")
    if left:
        text.append(f"left at their initial values, because maps rebuilds them: {_keys(left, head)}")
    if unused := [path for path in given if path not in kept]:
        text.append(f"not used, because maps replaces them: {_keys(unused, head)}")
    if pool := [path for path in own if path[1] == "pool"]:
        text.append(f"left the pool at its initial values: {_keys(pool, head)}")
    rebuilt = ({}, "the backbone is rebuilt below it")
    top, why = rebuilt if left or unused else _read_head(own, last, head, _unmade(model))
    shapes = ", ".join(f"{key} {tuple(np.shape(value))}" for key, value in last.items()) or "none"
    if why:
        text.append(f"left the head at its initial values and did not use the given last layer ({shapes}): {why}")
    else:
        text.append(f"loaded the last layer ({shapes})")
    return traverse_util.unflatten_dict({**own, **kept, **top}), text


def auxiliary_keys(backbone: Backbone, state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """List the keys of a state dict that are those of a backbone's auxiliary classifiers."""
    names = tuple(f"{one.name}." for one in backbone.auxiliary_heads)
    return [key for key in state_dict if key.startswith(names)]


def head_name(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> str:
    """Return what a state dict calls the last layer: the first of the family's `head_names` that it has keys of."""
    return _head_name(model.backbone, state_dict)


def _head_name(backbone: Backbone, state_dict: Mapping[str, np.ndarray]) -> str:
    names = backbone.head_names
    return next((name for name in names if any(key.startswith(name + ".") for key in state_dict)), names[0])


def not_finite(arrays: Mapping[str, Any]) -> str:
    """Say which of some arrays, by name, hold values that are NaN or infinite; empty where none does.

    >>> not_finite({"fc.bias": np.array([1.0, np.nan]), "fc.weight": np.ones((2, 3))})
    'fc.bias holds 1 of 2 values that are not finite'
    """
    counts = {name: int((~np.isfinite(value)).sum()) for name, value in arrays.items()}
    bad = [name for name, count in counts.items() if count]
    if not bad:
        return ""
    more = f", and {len(bad) - 1} more arrays hold such" if len(bad) > 1 else ""
    return f"{bad[0]} holds {counts[bad[0]]} of {np.size(arrays[bad[0]])} values that are not finite{more}"


def _raise_for(faults: list[str], what: str, hint: Callable[[], str] = str) -> None:
    """Raise a `UsageError` with the first faults, their number, and a hint, if there are any."""
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UsageError(f"{what} in {len(faults)} places: {'; '.join(faults[:SHOWN])}{more}{hint()}")


def _todays_keys(backbone: Backbone, state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    for pattern, today in backbone.older_keys:
        state_dict = {re.sub(pattern, today, key): value for key, value in state_dict.items()}
    return state_dict


def _part(backbone: Backbone, state_dict: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Return the state dict of an ordinary network out of that of an elastic one, and a sentence where it is such."""
    whole = backbone.whole()
    if whole is None:
        return state_dict, []
    channels = _given_channels(whole, state_dict)
    shapes, plain = _plain_shapes(whole, channels), _plain_shapes(backbone, channels)
    keys, own = ({_torch_key(path, ""): path for path in one} for one in (shapes, plain))
    if not all(key in state_dict for key in keys.keys() - own.keys()):
        return state_dict, []
    flat, faults = _read(shapes, {key: value for key, value in state_dict.items() if key in keys}, "")
    _raise_for(faults, "the state dict does not fit the elastic network")
    part = {
        _torch_key(path, ""): _to_torch(value, path, backbone)
        for path, value in backbone.clone(maps=None).part(flat).items()
    }
    rest = {
        key: value for key, value in state_dict.items() if key not in keys and not key.endswith(".num_batches_tracked")
    }
    return {**rest, **part}, [f"took the part that {len(part)} of {len(keys)} variables of an elastic network are"]


def _with_channels(
    model: Classifier, state_dict: Mapping[str, np.ndarray], channels: int
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Return a state dict whose first convolution takes images of 1 or 3 channels, and a sentence if it is another.

    A grey image answers as its three equal channels would: RGB's weights are summed, grey ones shared out by three
    (timm, models/_manipulate.py, adapt_input_conv).
    """
    key = _torch_key(_stem(model.backbone), "")
    stem = state_dict.get(key)
    if stem is None or np.ndim(stem) != 4 or {np.shape(stem)[1], channels} != {1, 3}:
        return state_dict, []
    grey = channels == 1
    adapted = np.sum(stem, axis=1, keepdims=True) if grey else np.repeat(stem, 3, axis=1) / np.float32(3)
    how = "the sums over its 3 input channels" if grey else "a third of its 1 input channel each"
    return {**state_dict, key: adapted}, [f"{key} is for other images: took {how}"]


def _fitting(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> str:
    """Say which network a state dict fits, whatever its last layer is; empty if none of the `TRACED` likeliest.

    The likeliest are of the same family, and as wide as the given last layer takes.
    """
    own = model.backbone.clone(maps=None, auxiliary=())
    if _fits(own, state_dict):
        return f"; its backbone fits this network{_otherwise(model, state_dict)}"
    bodies = {name: create_backbone(name) for name in OWN}
    unlike = {name: _unlike(body, own, state_dict) for name, body in bodies.items() if body != own}
    likely = sorted((name for name, found in unlike.items() if found is not None), key=lambda name: unlike[name] or ())
    return next((f"; it fits {name}" for name in likely[:TRACED] if _fits(bodies[name], state_dict)), "")


def _otherwise(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> str:
    """Say what of a model, beside its plain backbone, a state dict has otherwise."""
    head, trained = head_name(model, state_dict), bool(model.backbone.auxiliary)
    last = {key: np.shape(value) for key, value in state_dict.items() if key.startswith(f"{head}.")}
    classes = {shape[0] for key, shape in last.items() if key == f"{head}.weight" and shape}
    words = [f" with {number} classes" for number in classes - {model.head.num_classes}]
    if bool(auxiliary_keys(model.backbone, state_dict)) != trained:
        words.append(f" {'without' if trained else 'with'} auxiliary classifiers")
    words += [" without maps"] * (model.backbone.maps is not None)
    shapes = ", ".join(f"{key} {shape}" for key, shape in last.items()) or "none"
    return " and".join(words) or f", but the last layer is another: {shapes}"


def _fits(body: Backbone, state_dict: Mapping[str, np.ndarray]) -> bool:
    """Tell whether a state dict fits a plain backbone exactly, last layer and auxiliary classifiers left out."""
    state_dict = _todays_keys(body, state_dict)
    head = _head_name(body, state_dict)
    beside = auxiliary_keys(body, state_dict)
    rest = {key: value for key, value in state_dict.items() if key not in beside and not key.startswith(f"{head}.")}
    shapes = _plain_shapes(body, _given_channels(body, rest))
    if any(path[0] != "fixed" and _torch_key(path, head) not in rest for path in shapes):
        return False
    return not _read(shapes, rest, head)[1]


def _unlike(body: Backbone, own: Backbone, state_dict: Mapping[str, np.ndarray]) -> tuple[bool, ...] | None:
    """Say without a trace how unlikely a state dict is a backbone's: the more so, the larger.

    None without its first conv, its last and its linear layers. Less likely is another family than `own`; one in whose
    place a deeper network has convs beyond the last, by the numbers in the keys; and one too wide for the last layer.
    """
    state_dict = _todays_keys(body, state_dict)
    paths = (body.last_conv, body.stem, *body.linear_layers)
    keys = [_torch_key(("params", "backbone", *path.split("/"), "kernel"), "") for path in paths]
    if any(key not in state_dict for key in keys):
        return None
    alike = re.compile(re.sub(r"\d+", r"\\d+", re.escape(keys[0])))
    kernels = (key for key, value in state_dict.items() if np.ndim(value) > 1 and alike.fullmatch(key))
    deepest = max(kernels, key=lambda key: [int(number) for number in re.findall(r"\d+", key)], default="")
    last = state_dict.get(f"{_head_name(body, state_dict)}.weight")
    return type(body) is not type(own), deepest != keys[0], last is None or np.shape(last)[1:2] != (body.features,)


def _keys(paths: Iterable[Path], head: str) -> str:
    return ", ".join(_torch_key(path, head) for path in paths)


def _stem(backbone: Backbone) -> Path:
    return ("params", "backbone", *backbone.stem.split("/"), "kernel")


def _given_channels(backbone: Backbone, state_dict: Mapping[str, np.ndarray]) -> int:
    """Return the number of image channels that the first conv of a state dict takes."""
    stem = state_dict.get(_torch_key(_stem(backbone), ""))
    return np.shape(stem)[1] if stem is not None and np.ndim(stem) == 4 else 3


def _channels(model: Classifier, flat: Flat) -> int:
    """Return the number of image channels that the first conv of flat variables takes."""
    stem = flat.get(_stem(model.backbone))
    return np.shape(stem)[2] if stem is not None and np.ndim(stem) == 4 else 3


# A trace takes seconds, and one network is often read, changed and written.
_cached: Any = functools.lru_cache(maxsize=8)  # Any: pyright does not see that Linen's modules are hashable


@_cached
def _shapes(model: Classifier | Backbone, channels: int) -> Shapes:
    """Return the shapes of all variables, for images with that many channels."""
    body = model.backbone if isinstance(model, Classifier) else model
    images = jax.ShapeDtypeStruct((1, body.image_size, body.image_size, channels), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat: Flat = traverse_util.flatten_dict(variables)
    return {path: leaf.shape for path, leaf in flat.items()}


def _plain_shapes(backbone: Backbone, channels: int) -> Shapes:
    """Return shapes, under a classifier's paths, of a backbone's variables without `maps` and auxiliary classifiers."""
    plain = _shapes(backbone.clone(maps=None, auxiliary=()), channels)
    return {(path[0], "backbone", *path[1:]): shape for path, shape in plain.items()}


def _torch_key(path: Path, head: str) -> str:
    """Return the PyTorch key of a variable's path (collection, backbone | head, modules ..., leaf).

    >>> _torch_key(("params", "backbone", "layer1_0", "conv1", "kernel"), "fc")
    'layer1.0.conv1.weight'
    """
    collection, part, *modules, leaf = path
    words = [re.sub(r"(?<!_)_(?=\d+(_|$))", ".", word).replace("__", "_") for word in modules]
    weight = leaf == "kernel" or collection == "fixed"
    return ".".join([*([head] if part == "head" else []), *words, "weight" if weight else leaf])


def _unmade(model: Classifier) -> Shapes:
    """Return path and shape of the matrix that a head applies without a variable, where it would be if it were one."""
    head: Head = model.head
    if not isinstance(head, Linear) or head.matrix is None or head.applied == "dense":
        return {}
    return {("fixed", "head", head.matrix): (head.num_classes, head.neck or model.backbone.features)}


def _read(
    shapes: Shapes, state_dict: Mapping[str, np.ndarray], head: str, unmade: Shapes | None = None
) -> tuple[Flat, list[str]]:
    """Return flat variables of those shapes, and the faults: what is missing, does not fit, or was not expected.

    What is `unmade` must fit where it is given under a key that no variable has, but is no variable.
    """
    faults, flat, seen = [], {}, set()
    free = state_dict.keys() - {_torch_key(path, head) for path in shapes}
    unmade = {path: shape for path, shape in (unmade or {}).items() if _torch_key(path, head) in free}
    for path, shape in {**shapes, **unmade}.items():
        key, exact = _torch_key(path, head), path[0] == "fixed" and not is_random(path[-1])
        own = matrix(path[-1], *shape).astype(np.float32) if exact else None
        if key not in state_dict:
            if own is None:
                faults.append(f"missing {key}")
            else:
                flat[path] = own
            continue
        seen.add(key)
        value = _to_flax(np.asarray(state_dict[key]), shape, path[-1])
        if value is None:
            given = tuple(np.shape(state_dict[key]))
            faults.append(f"{key} has shape {given}, which does not fit {'/'.join(path)} {shape}")
        elif own is not None and not np.array_equal(value, own):
            faults.append(f"{key} is not the {path[-1]} matrix that is fixed there")
        elif path[-1] == ROWS and not np.array_equal(np.sort(value), np.arange(len(value))):
            faults.append(f"{key} does not give each class a row of its own")
        elif path[0] == "fixed" and path[-1] == "orthogonal" and not _semi_orthogonal(value):
            faults.append(f"{key} is not orthogonal, but the model's head is")
        elif path not in unmade:
            flat[path] = value
    faults += [
        f"unexpected {key}" for key in state_dict if key not in seen and not key.endswith(".num_batches_tracked")
    ]
    return flat, faults


def _read_head(own: Flat, last: Mapping[str, np.ndarray], head: str, unmade: Shapes) -> tuple[Flat, str]:
    """Return the head's variables from a last layer, or nothing and why it does not fit."""
    shapes = {path: np.shape(value) for path, value in own.items() if path[1] == "head"}
    flat, faults = _read(shapes, last, head, unmade)
    return ({}, "; ".join(faults)) if faults else (flat, "")


def _semi_orthogonal(weight: np.ndarray) -> bool:
    """Tell whether rows (k <= d) or columns (k > d) of [k d] are orthonormal within 1e-3."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    return bool(np.abs(tall.T @ tall - np.eye(tall.shape[1])).max() < 1e-3)


def _to_flax(value: np.ndarray, shape: tuple[int, ...], leaf: str) -> np.ndarray | None:
    """Bring one tensor into our layout as float32; None where it does not fit."""
    if leaf == "kernel" and len(shape) == 4:
        height, width, inputs, outputs = shape
        if value.shape not in ((outputs, inputs, height, width), (outputs, inputs * height * width)):
            return None
        value = value.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
    elif leaf == "kernel":
        value = (value.reshape(value.shape[:2]) if math.prod(value.shape[2:]) == 1 else value).T
    elif value.shape[: len(shape)] == shape and value.size == math.prod(shape):
        value = value.reshape(shape)
    return np.asarray(value, np.int32 if leaf == ROWS else np.float32) if value.shape == shape else None


def _to_torch(value: np.ndarray, path: Path, backbone: Backbone) -> np.ndarray:
    """Bring one variable into torch's layout, C-contiguous."""
    collection, part, *modules, leaf = path
    if leaf == "kernel" and value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)  # OIHW
        value = value.reshape(len(value), -1) if "/".join(modules) in backbone.linear_layers else value
    elif leaf == "kernel":
        value = value.T[..., None] if part == "pool" else value.T
        value = value[..., None, None] if part == "head" and backbone.head_conv else value
    elif leaf == "gain":
        value = value[:, None, None, None]
    elif (collection, part) == ("fixed", "backbone"):
        value = value[:, :, None, None]
    return np.array(value, order="C")  # a copy: what comes from the device cannot be written to, which torch warns of
