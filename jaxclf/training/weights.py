"""Weight files: .safetensors, PyTorch's .pth and .pt, and our own Orbax directories; from each to each, and from runs.

BiT's .npz files are read, too.

Our directory and our .safetensors say which model the weights are of and how it wants its images (`WeightRecord`), and
so does a run directory, whose newest checkpoint is read. A .pth holds the bare state dict, so that PyTorch's own
modules load it; there the caller says which model it is. Files are
written under another name and renamed at the end, so an interrupted write is never taken for a whole one.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxclf.config import Config
from jaxclf.data import datasets
from jaxclf.data.facts import IMAGENET_CLASSES
from jaxclf.data.transforms import Preprocessing, default_preprocessing
from jaxclf.errors import UsageError, one_line
from jaxclf.models.backbones import create_backbone
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.torch_weights import auxiliary_keys, head_name, load_torch, not_finite, to_torch
from jaxclf.storage import Location, absolute, fetched, location, written
from jaxclf.training.checkpoint import Which, fixed_record, is_exact, regenerate, saved
from jaxclf.training.run_directory import read_config, read_json
from jaxclf.training.weight_files import (
    TORCH,
    StateDict,
    averages,
    read_bit,
    read_safetensors,
    read_torch,
    torch_module,
)

PathLike = str | os.PathLike[str]
WRITTEN = {".safetensors": "safetensors", ".pth": "torch", ".pt": "torch", "": "orbax", ".orbax": "orbax"}
READ = WRITTEN | dict.fromkeys(TORCH, "torch") | {".npz": "bit"}
"""Formats by the ending of a file's name."""
RECORD = "jaxclf"
"""Key of the record in a .safetensors file's metadata."""


@dataclasses.dataclass(frozen=True)
class WeightRecord:
    """Facts that a weight file of ours holds besides the numbers; `create_model`'s arguments come first."""

    model: str
    num_classes: int
    head: str = "learned"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further options of `create_model`: maps, shortcut, bias, seed ..."""
    preprocessing: Preprocessing | None = None
    """None where nothing is known: networks for small images, whose data set decides."""
    class_names: tuple[str, ...] | None = None
    """One name per class."""

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UsageError(f"there are {len(self.class_names)} class names for {self.num_classes} classes")

    def build(self) -> Classifier:
        """Build the model."""
        return create_model(self.model, num_classes=self.num_classes, head=self.head, **self.options)

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WeightRecord":
        """Inverse of `to_json`.

        >>> record = WeightRecord("resnet20", 10, options={"shortcut": "B"})
        >>> WeightRecord.from_json(record.to_json()) == record
        True
        """
        values = json.loads(text)
        options = values["options"].items()  # JSON has no tuples
        values["options"] = {name: tuple(one) if isinstance(one, list) else one for name, one in options}
        if values["preprocessing"] is not None:
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        if values["class_names"] is not None:
            values["class_names"] = tuple(values["class_names"])
        return cls(**values)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A model with its values."""

    model: Classifier
    variables: dict[str, Any]
    record: WeightRecord


def convert(
    source: PathLike,
    target: PathLike,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    head: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: tuple[str, ...] | None = None,
    weights_key: str | None = None,
    checkpoint: Which = "last",
    **options: Any,
) -> WeightRecord:
    """Write the weights of `source` into `target`, whose suffix says the format; return what they are.

    `model`, `num_classes` (the last layer's size, where it is not given) and `head` are needed where the source does
    not say them, and must agree with it where it does. `weights_key` is the key of the state dict in a PyTorch file
    that holds several, and `checkpoint` that of a run. Raises `UsageError` for unknown suffixes, a target that
    exists, files that cannot be read, and weights that are not the model's.
    """
    _format(target, WRITTEN)
    source, target = location(source), location(target)
    if target.exists():
        raise UsageError(f"{target} exists already; remove it or choose another name")
    given = {"model": model, "num_classes": num_classes, "head": head}
    given |= {
        "preprocessing": preprocessing,
        "class_names": class_names,
        "weights_key": weights_key,
        "checkpoint": checkpoint,
    }
    weights = read(source, **given, **options)
    write(target, weights)
    return weights.record


def read(
    source: PathLike,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    head: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: tuple[str, ...] | None = None,
    weights_key: str | None = None,
    checkpoint: Which = "last",
    **options: Any,
) -> Weights:
    """Read a weight file of any format; the arguments are those of `convert`."""
    source = location(source)
    kind = _source_format(source)
    given = {"model": model, "num_classes": num_classes, "head": head, "options": options or None}
    given |= {"preprocessing": preprocessing, "class_names": class_names}
    given = {name: value for name, value in given.items() if value is not None}
    if kind in ("run", "orbax"):
        found, variables = _read_run(source, checkpoint) if kind == "run" else _read_orbax(source)
        if bad := not_finite(traverse_util.flatten_dict(variables, sep=".")):
            raise UsageError(f"{source}: {bad}")
        record = _merge(found, given, source)
        return Weights(record.build(), variables, record)
    state_dict, named = _read_file(source, kind, weights_key)
    record = _complete(given, state_dict, source) if named is None else _merge(named, given, source)
    built = record.build()
    return Weights(built, load_torch(built, state_dict), record)


def extracted(weights: Weights, **setting: Any) -> Weights:
    """Return an ordinary network out of an elastic one; `kernels`, `expansions`, `depths` are as in `create_model`.

    It answers as the elastic one does under the setting. BatchNorm's running statistics are those of all settings that
    were trained: run.recalibrate averages them anew. Raises `UsageError` where nothing can be extracted.
    """
    if not getattr(weights.model.backbone, "elastic", False):
        raise UsageError(f"the weights are of {weights.record.model}, which is no elastic network")
    record = dataclasses.replace(weights.record, options={**weights.record.options, **setting})
    ordinary = record.build()
    flat = traverse_util.flatten_dict(weights.variables)
    body = {path: value for path, value in flat.items() if path[1] == "backbone"}
    found = {**{path: value for path, value in flat.items() if path not in body}, **ordinary.backbone.part(body)}
    return Weights(ordinary, traverse_util.unflatten_dict(found), record)


def with_preprocessing(config: Config, workdir: PathLike) -> Config:
    """Return a config that reads images as the weights that it starts from want them, unless it says how itself.

    These are mean and std, and of streamed sets the interpolation, and the short side in proportion to the crop. A run
    that has begun in `workdir` keeps what it began with. Weights that say nothing want what their backbone's published
    ones do; those for images of other channels change nothing. Warns where the config asks for another interpolation.
    """
    data, file = config.data, config.model.weights
    if file is None:
        return config
    if (location(workdir) / "config.json").exists():
        begun = read_config(workdir).data
        wanted = {name: getattr(begun, name) for name in ("mean", "std", "interpolation", "resize")}
    else:
        wanted = _wanted(file, config)
    if data.mean is not None or data.std is not None:
        wanted |= {"mean": data.mean, "std": data.std}
    unsaid = {name: value for name, value in wanted.items() if getattr(data, name) is None}
    return dataclasses.replace(config, data=dataclasses.replace(data, **unsaid))


def _wanted(file: str, config: Config) -> dict[str, Any]:
    """Return the fields of `DataConfig` that say how weights want a data set's images; none where they do not say."""
    data, facts = config.data, datasets.resolve(config.data).facts
    kept = _preprocessing(file, config.model.backbone) if location(file).exists() else None
    if kept is None or len(kept.mean) != facts.image_shape[2]:
        return {}
    wanted: dict[str, Any] = {"mean": kept.mean, "std": kept.std}
    if not facts.streamed:
        return wanted
    if data.pixels == "fast":  # which are bilinear
        wanted["interpolation"] = "bilinear"
    elif data.interpolation is None:
        wanted["interpolation"] = kept.interpolation
    if (data.interpolation or wanted["interpolation"]) != kept.interpolation:
        given = f"data.interpolation is {data.interpolation or 'bilinear'}"
        warnings.warn(f"{file} is for {kept.interpolation} images; {given}", stacklevel=2)
    short_side = kept.resize if kept.crop_padding is None else kept.crop + kept.crop_padding
    if short_side is not None and data.image_size is not None:
        wanted["resize"] = max(data.image_size, round(data.image_size * short_side / kept.crop))
    return wanted


def _preprocessing(source: PathLike, backbone: str) -> Preprocessing | None:
    path, record = location(source), None
    kind = _source_format(path)
    if kind == "run":
        record = _run_record(path)
    elif kind == "orbax":
        record = WeightRecord.from_json(_orbax_metadata(path)["record"])
    elif kind == "safetensors":
        record = _read_file(path, kind, None)[1]
    return default_preprocessing(create_backbone(backbone)) if record is None else record.preprocessing


def read_state_dict(source: PathLike, *, weights_key: str | None = None) -> StateDict:
    """Read the PyTorch state dict of a weight file of any format, whatever model it is of."""
    source = location(source)
    kind = _source_format(source)
    if kind in ("run", "orbax"):
        weights = read(source)
        return to_torch(weights.model, weights.variables)
    return _read_file(source, kind, weights_key)[0]


def _read_file(source: Location, kind: str, weights_key: str | None) -> tuple[StateDict, WeightRecord | None]:
    with fetched(source) as path:
        return _read_local(path, kind, weights_key)


def _read_local(path: Path, kind: str, weights_key: str | None) -> tuple[StateDict, WeightRecord | None]:
    if kind == "torch":
        if weights_key is None and (others := averages(path)):
            warnings.warn(f"{path} also holds {', '.join(others)}, which --weights-key takes instead", stacklevel=3)
        return read_torch(path, weights_key), None
    if kind == "bit":
        return read_bit(path), None
    state_dict, metadata = read_safetensors(path)
    if RECORD not in metadata:
        return state_dict, None
    try:
        return state_dict, WeightRecord.from_json(metadata[RECORD])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} has a record that this version cannot read: {one_line(error)}") from error


def write(target: PathLike, weights: Weights) -> None:
    """Write a weight file in the format of its suffix. Raises `UsageError` for unknown suffixes and full disks."""
    kind, path = _format(target, WRITTEN), location(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "orbax":
            _write_orbax(path, weights)
            return
        state_dict = to_torch(weights.model, weights.variables)
        with written(path) as part:
            if kind == "safetensors":
                save_file(state_dict, part, metadata={"format": "pt", RECORD: weights.record.to_json()})
            else:
                torch = torch_module()
                torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, part)
    except (OSError, SafetensorError, RuntimeError) as error:  # safetensors and torch have errors of their own
        raise UsageError(f"cannot write {target}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def is_bare(path: PathLike) -> bool:
    """Tell whether a file says nothing about itself, as PyTorch's: its last layer is taken for a learned one."""
    return str(path).lower().endswith((*TORCH, ".npz"))


def _format(path: PathLike, known: Mapping[str, str]) -> str:
    name = Path(path).name.lower()
    ending = max((one for one in known if one and name.endswith(one)), key=len, default=Path(path).suffix)
    if ending not in known:
        allowed = ", ".join(filter(None, known))
        raise UsageError(
            f"{path} ends in {ending!r}, which is no weight format; known: {allowed}, none for a directory"
        )
    return known[ending]


def _source_format(path: Location) -> str:
    if (path / "config.json").exists():
        return "run"
    kind = _format(path, READ)
    if not path.exists():
        raise UsageError(f"there is no file {path}")
    return kind


def _complete(given: dict[str, Any], state_dict: StateDict, source: PathLike) -> WeightRecord:
    """Return the record of a file without one; num_classes is the last layer's size where it is not given.

    A thousand classes of an ImageNet network have ImageNet's names unless others are given. The model has auxiliary
    classifiers where the file has them.
    """
    missing = [name for name in ("model", "head") if name not in given]
    if missing:
        raise UsageError(f"{source} does not say what it holds; give {' and '.join(missing)}")
    names = given.pop("class_names", None)
    record = WeightRecord(**{"num_classes": 2, **given})
    body = dataclasses.replace(record, head="learned").build()
    if body.backbone.auxiliary_heads and "auxiliary" not in record.options:
        given_too = bool(auxiliary_keys(body.backbone, state_dict))
        record = dataclasses.replace(record, options={**record.options, "auxiliary": given_too})
    if "num_classes" not in given:
        last = head_name(body, state_dict)
        layer = next((state_dict[key] for end in ("bias", "weight") if (key := f"{last}.{end}") in state_dict), None)
        if layer is None:
            raise UsageError(f"{source} has no last layer that tells the number of classes; give num_classes")
        record = dataclasses.replace(record, num_classes=len(layer))
    published = default_preprocessing(body.backbone)
    if record.preprocessing is None:
        record = dataclasses.replace(record, preprocessing=published)
    if names is None and published is not None and record.num_classes == len(IMAGENET_CLASSES):
        names = IMAGENET_CLASSES
    return dataclasses.replace(record, class_names=names)


def _merge(found: WeightRecord, given: dict[str, Any], source: PathLike) -> WeightRecord:
    """Return what a file says, with preprocessing and class names replaced by those given; the rest must agree."""
    faults = [
        f"{name} {getattr(found, name)!r}, not {value!r}"
        for name, value in given.items()
        if name not in ("preprocessing", "class_names") and getattr(found, name) != value
    ]
    if faults:
        raise UsageError(f"{source} holds another model: {'; '.join(faults)}")
    return dataclasses.replace(found, **given)


def _write_orbax(path: Location, weights: Weights) -> None:
    """Write variables and record; exact matrices are left out but for shape and hash, as in checkpoint.py."""
    nested = traverse_util.flatten_dict(jax.device_get(weights.variables), sep=".")
    flat = {name: np.asarray(value) for name, value in nested.items()}
    stored = {name: value for name, value in flat.items() if not is_exact(name)}
    metadata = {"record": weights.record.to_json(), "fixed": json.dumps(fixed_record(flat))}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(variables=ocp.args.StandardSave(stored), metadata=ocp.args.JsonSave(metadata))
        checkpointer.save(absolute(path), args=items)


def _orbax_metadata(path: Location) -> dict[str, str]:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            return checkpointer.restore(absolute(path), items)["metadata"]
    except Exception as error:  # Orbax raises many types for directories that are none of its
        raise UsageError(f"{path} is no weight directory of ours: {one_line(error)}") from error


def _read_orbax(path: Location) -> tuple[WeightRecord, dict[str, Any]]:
    """Return record and variables of a directory that `_write_orbax` wrote; exact matrices are regenerated."""
    metadata = _orbax_metadata(path)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(variables=ocp.args.StandardRestore())
            stored = checkpointer.restore(absolute(path), args)["variables"]
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        raise UsageError(f"{path} is damaged: {one_line(error)}") from error
    flat = {name: np.asarray(value) for name, value in stored.items()}
    flat |= regenerate(json.loads(metadata["fixed"]))
    return WeightRecord.from_json(metadata["record"]), traverse_util.unflatten_dict(flat, sep=".")


def _run_record(path: Location) -> WeightRecord:
    """Return what a run directory trained, with its data set's class names and preprocessing."""
    config, known = read_config(path), path / "data.json"
    dataset = datasets.resolve(config.data)
    # Images may have changed since; older runs do not have the file.
    names = dataset.class_names
    if known.exists():
        names = tuple(read_json(known, {"class_names": []})["class_names"])
    return WeightRecord(
        model=config.model.backbone,
        num_classes=len(names),
        head=config.model.head,
        options=config.model.options(),
        preprocessing=dataset.preprocessing,
        class_names=names,
    )


def _read_run(path: Location, checkpoint: Which) -> tuple[WeightRecord, dict[str, Any]]:
    with saved(path) as checkpoints:
        return _run_record(path), checkpoints.variables(checkpoint)
