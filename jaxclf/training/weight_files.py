"""State dicts in files: safetensors, PyTorch's own as training scripts wrap them, and BiT's .npz.

A state dict here is a dict from PyTorch's keys to numpy arrays. PyTorch files are read without running code of theirs:
tensors are kept, and every object of another kind (arguments, numpy scalars) becomes an empty stand-in.
"""

import contextlib
import functools
import importlib
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclf.errors import UsageError, one_line
from jaxclf.models.torch_weights import not_finite

StateDict = dict[str, np.ndarray]
TORCH = (".pth", ".pt", ".pth.tar", ".th", ".ckpt", ".bin")
"""Endings of PyTorch's files."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
"""Keys under which training scripts keep a state dict: torchvision's references and timm, Lightning, tutorials."""
AVERAGES = ("model_ema", "state_dict_ema", "ema", "ema_state_dict")
"""Keys under which they keep its moving average beside it."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""Put before every key by DataParallel and AveragedModel, torch.compile, Lightning, and classes that hold a network."""

BIT = (
    (r"^resnet/(block\d/unit\d\d)/a/proj/standardized_conv2d/kernel$", r"body/\1/downsample/weight"),
    (r"^resnet/(block\d/unit\d\d)/([abc])/standardized_conv2d/kernel$", r"body/\1/conv\2/weight"),
    (r"^resnet/(block\d/unit\d\d)/([abc])/group_norm/", r"body/\1/gn\2/"),
    (r"^resnet/root_block/standardized_conv2d/kernel$", r"root/conv/weight"),
    (r"^resnet/group_norm/", r"head/gn/"),
    (r"^resnet/head/conv2d/", r"head/conv/"),
    *((f"/(conv|gn){letter}/", rf"/\g<1>{number}/") for number, letter in enumerate("abc", 1)),
    *((f"/{old}$", f"/{new}") for old, new in (("kernel", "weight"), ("gamma", "weight"), ("beta", "bias"))),
)
"""Regular expressions of BiT's names, and what stands for them in PyTorch's keys, dots written "/"."""


class Ignored:
    """Stands for an object of a PyTorch file that is no tensor; takes whatever a pickle gives it."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def torch_module() -> ModuleType:
    """Import torch; `UsageError` where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(f"files of PyTorch ({', '.join(TORCH)}) need PyTorch: pip install 'jaxclf[parity]'") from error


def read_torch(path: Path, key: str | None = None) -> StateDict:
    """Read a state dict out of a PyTorch file: what lies under `key`, or under one of `WRAPPERS`, or the file itself.

    Raises `UsageError` for files of others, without a state dict there, and with values that are not finite.
    """
    torch = torch_module()
    try:
        with torch.serialization.safe_globals([(type("Ignored", (Ignored,), {}), name) for name in _foreign(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many types for files that are none of theirs
        said = [line for line in str(error).splitlines() if line] or [type(error).__name__]
        reason = one_line(next((line for line in said if line.startswith("Trying")), said[0]))  # behind torch's advice
        raise UsageError(f"{path} is not a PyTorch file: {reason}") from error
    found = _inside(content, key, path)
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        there = f"; its keys are {', '.join(map(str, content))}"[:200] if isinstance(content, Mapping) else ""
        raise UsageError(f"{path} holds no state dict: tensors by name, bare or as one of {', '.join(WRAPPERS)}{there}")
    floats = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return _checked(path, {name: value.numpy() for name, value in floats.items()})


def read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    """Read a state dict and the file's metadata; `UsageError` as of `read_torch`."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, found = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {one_line(str(error))[:200]}") from error
    return _checked(path, found), metadata


def read_bit(path: Path) -> StateDict:
    """Read the state dict of a network of backbones/bit.py from an .npz file that BiT publishes.

    Its convolution kernels are HWIO; arrays that are not named resnet/... are left out.

    Raises `UsageError` for files of others, and with values that are not finite.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            arrays = {name: file[name] for name in file.files if name.startswith("resnet/")}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # numpy's, for files of others
        raise UsageError(f"{path} cannot be read as .npz: {one_line(str(error))[:200]}") from error
    if not arrays:
        raise UsageError(f"{path} is no file of BiT: it has no arrays named resnet/...")
    found = {}
    for name, value in arrays.items():
        key = functools.reduce(lambda key, rule: re.sub(*rule, key), BIT, name)
        found[key.replace("/", ".")] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return _checked(path, found)


def averages(path: Path) -> tuple[str, ...]:
    """Return the keys of moving averages that a PyTorch file holds beside its state dict."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        pickled = next((name for name in file.namelist() if name.endswith("data.pkl")), None)
        words = {arg for _, arg, _ in pickletools.genops(file.read(pickled)) if isinstance(arg, str)} if pickled else ()
        return tuple(name for name in AVERAGES if name in words)
    return ()


def _inside(content: Any, key: str | None, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            there = ", ".join(name for name, value in content.items() if isinstance(value, Mapping)) or "none"
            raise UsageError(f"{path} holds no state dict under {key!r}; there: {there}")
        return content[key]
    return next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)


def _checked(path: Path, state_dict: StateDict) -> StateDict:
    """Return a state dict without what wrappers add to its keys; `UsageError` where values are not finite."""
    state_dict = {name: value for name, value in state_dict.items() if name != "n_averaged"}  # of AveragedModel
    while state_dict and (prefix := next((one for one in PREFIXES if all(k.startswith(one) for k in state_dict)), "")):
        state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    if bad := not_finite(state_dict):
        raise UsageError(f"{path}: {bad}")
    return state_dict


def _foreign(path: Path) -> list[str]:
    """Return the names of what a PyTorch file wants to call besides torch's own."""
    torch = torch_module()
    if zipfile.is_zipfile(path):
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return sorted({name for name in _called(path) if not name.startswith(("torch.", "collections.OrderedDict"))})


def _called(path: Path) -> Iterator[str]:
    """Yield the names that the four pickles of a file before PyTorch 1.6 call; the last holds the content."""
    with path.open("rb") as file, contextlib.suppress(ValueError):  # of genops, for what is no pickle
        for _ in range(4):
            for opcode, arg, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    yield str(arg).replace(" ", ".")
