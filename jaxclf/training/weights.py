"""Weight files: .safetensors, PyTorch's .pth and .pt, and our own Orbax directories; from each to each, and from runs.

Our directory and our .safetensors say which model the weights are of and how it wants its images (`WeightRecord`), and
so does a run directory, whose newest checkpoint is read. A .pth holds the bare state dict, so that PyTorch's own
modules load it; there the caller says which model it is. Files are
written under another name and renamed at the end, so an interrupted write is never taken for a whole one.
"""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxclf.data import datasets
from jaxclf.data.facts import IMAGENET_CLASSES
from jaxclf.data.transforms import Preprocessing, default_preprocessing
from jaxclf.errors import UsageError, one_line
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.torch_weights import head_name, load_torch, to_torch
from jaxclf.training.checkpoint import Checkpoints, fixed_record, is_exact, regenerate
from jaxclf.training.run_directory import read_config

PathLike = str | Path
StateDict = dict[str, np.ndarray]
FORMATS = {".safetensors": "safetensors", ".pth": "torch", ".pt": "torch", "": "orbax", ".orbax": "orbax"}
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
    **options: Any,
) -> WeightRecord:
    """Write the weights of `source` into `target`, whose suffix says the format; return what they are.

    `model`, `num_classes` (the last layer's size, where it is not given) and `head` are needed where the source does
    not say them, and must agree with it where it does. Raises `UsageError` for unknown suffixes, a target that
    exists, files that cannot be read, and weights that are not the model's.
    """
    _format(target)
    if Path(target).exists():
        raise UsageError(f"{target} exists already; remove it or choose another name")
    given = {"model": model, "num_classes": num_classes, "head": head}
    given |= {"preprocessing": preprocessing, "class_names": class_names}
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
    **options: Any,
) -> Weights:
    """Read a weight file of any format; the arguments are those of `convert`."""
    kind = _source_format(source)
    given = {"model": model, "num_classes": num_classes, "head": head, "options": options or None}
    given |= {"preprocessing": preprocessing, "class_names": class_names}
    given = {name: value for name, value in given.items() if value is not None}
    if kind in ("run", "orbax"):
        found, variables = (_read_run if kind == "run" else _read_orbax)(Path(source))
        record = _merge(found, given, source)
        return Weights(record.build(), variables, record)
    state_dict, named = _read_safetensors(Path(source)) if kind == "safetensors" else (_read_torch(Path(source)), None)
    record = _complete(given, state_dict, source) if named is None else _merge(named, given, source)
    built = record.build()
    return Weights(built, load_torch(built, state_dict), record)


def read_state_dict(source: PathLike) -> StateDict:
    """Read the PyTorch state dict of a weight file of any format, whatever model it is of."""
    kind = _source_format(source)
    if kind in ("run", "orbax"):
        weights = read(source)
        return to_torch(weights.model, weights.variables)
    return _read_safetensors(Path(source))[0] if kind == "safetensors" else _read_torch(Path(source))


def write(target: PathLike, weights: Weights) -> None:
    """Write a weight file in the format of its suffix. Raises `UsageError` for unknown suffixes and full disks."""
    kind, path = _format(target), Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "orbax":
            _write_orbax(path, weights)
            return
        state_dict, part = to_torch(weights.model, weights.variables), path.with_name(path.name + ".part")
        if kind == "safetensors":
            save_file(state_dict, part, metadata={"format": "pt", RECORD: weights.record.to_json()})
        else:
            torch = _torch()
            torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, part)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def _format(path: PathLike) -> str:
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        known = ".safetensors, .pth, .pt, and .orbax or none for a directory of ours"
        raise UsageError(f"{path} has the suffix {suffix!r}, which is no weight format; known: {known}")
    return FORMATS[suffix]


def _source_format(path: PathLike) -> str:
    if (Path(path) / "config.json").exists():
        return "run"
    kind = _format(path)
    if not Path(path).exists():
        raise UsageError(f"there is no file {path}")
    return kind


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UsageError("files of PyTorch (.pth, .pt) need PyTorch: pip install 'jaxclf[parity]'") from error


def _read_torch(path: Path) -> StateDict:
    """Read a state dict by torch.load(weights_only=True), out of the usual wrappers."""
    torch = _torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many types for files that are none of theirs
        raise UsageError(f"{path} is not a PyTorch file of tensors alone: {one_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UsageError(f"{path} holds no state dict: a mapping from names to tensors, bare or as state_dict or model")
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in content.items()}
    return _strip({key: value.numpy() for key, value in tensors.items()})


def _strip(state_dict: StateDict) -> StateDict:
    """Drop the prefix that torch's DataParallel puts before every key."""
    if state_dict and all(key.startswith("module.") for key in state_dict):
        return {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def _read_safetensors(path: Path) -> tuple[StateDict, WeightRecord | None]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, state_dict = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {one_line(error)}") from error
    return _strip(state_dict), WeightRecord.from_json(metadata[RECORD]) if RECORD in metadata else None


def _complete(given: dict[str, Any], state_dict: StateDict, source: PathLike) -> WeightRecord:
    """Return the record of a file without one; num_classes is the last layer's size where it is not given.

    A thousand classes of an ImageNet network have ImageNet's names unless others are given.
    """
    missing = [name for name in ("model", "head") if name not in given]
    if missing:
        raise UsageError(f"{source} does not say what it holds; give {' and '.join(missing)}")
    names = given.pop("class_names", None)
    record = WeightRecord(**{"num_classes": 2, **given})
    body = dataclasses.replace(record, head="learned").build()
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


def _write_orbax(path: Path, weights: Weights) -> None:
    """Write variables and record; exact matrices are left out but for shape and hash, as in checkpoint.py."""
    nested = traverse_util.flatten_dict(jax.device_get(weights.variables), sep=".")
    flat = {name: np.asarray(value) for name, value in nested.items()}
    stored = {name: value for name, value in flat.items() if not is_exact(name)}
    metadata = {"record": weights.record.to_json(), "fixed": json.dumps(fixed_record(flat))}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(variables=ocp.args.StandardSave(stored), metadata=ocp.args.JsonSave(metadata))
        checkpointer.save(path.absolute(), args=items)


def _read_orbax(path: Path) -> tuple[WeightRecord, dict[str, Any]]:
    """Return record and variables of a directory that `_write_orbax` wrote; exact matrices are regenerated."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(path.absolute(), ocp.args.Composite(metadata=ocp.args.JsonRestore()))
            metadata = found["metadata"]
    except Exception as error:  # Orbax raises many types for directories that are none of its
        raise UsageError(f"{path} is no weight directory of ours: {one_line(error)}") from error
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(variables=ocp.args.StandardRestore())
            stored = checkpointer.restore(path.absolute(), args)["variables"]
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        raise UsageError(f"{path} is damaged: {one_line(error)}") from error
    flat = {name: np.asarray(value) for name, value in stored.items()}
    flat |= regenerate(json.loads(metadata["fixed"]))
    return WeightRecord.from_json(metadata["record"]), traverse_util.unflatten_dict(flat, sep=".")


def _read_run(path: Path) -> tuple[WeightRecord, dict[str, Any]]:
    """Return what a run directory trained, with its data set's class names and pixels, and its newest checkpoint."""
    config, known = read_config(path), path / "data.json"
    dataset = datasets.resolve(config.data)
    # Images may have changed since; older runs do not have the file.
    names = tuple(json.loads(known.read_text())["class_names"]) if known.exists() else dataset.class_names
    record = WeightRecord(
        model=config.model.backbone,
        num_classes=len(names),
        head=config.model.head,
        options=config.model.options(),
        preprocessing=dataset.preprocessing,
        class_names=names,
    )
    with Checkpoints(path / "checkpoints") as checkpoints:
        return record, checkpoints.variables()
