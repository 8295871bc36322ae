"""State dicts out of PyTorch files as training scripts write them, and values that no weights may have."""

import argparse
import importlib
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxclf.errors import UsageError
from jaxclf.training.weight_files import averages, read_bit, read_safetensors, read_torch
from jaxclf.training.weights import read_state_dict

STATE = {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(2, np.float32)}


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("torch.nn", reason="PyTorch's files need the extra `parity`")
    return importlib.import_module("torch")


def prefixed(torch: Any, prefix: str, more: float = 0.0) -> dict[str, Any]:
    return OrderedDict((prefix + key, torch.from_numpy(value + np.float32(more))) for key, value in STATE.items())


CASES = {
    "plain.pth": ("", lambda state: state),
    "ddp.pt": ("module.", lambda state: state),
    "compiled.pth": ("_orig_mod.", lambda state: state),
    "compiled_ddp.pth": ("_orig_mod.module.", lambda state: state),
    "ddp_compiled.pth": ("module._orig_mod.", lambda state: state),
    "lightning.ckpt": ("model.", lambda state: {"state_dict": state, "hyper_parameters": {"lr": 0.1}}),
    "references.pth": ("", lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}),
    "numpy_scalar.pth": ("", lambda state: {"state_dict": state, "best_acc1": np.float64(93.1)}),
    "averaged_model.pth": ("module.", lambda state: {"n_averaged": state["module.fc.bias"][0].long()} | state),
    "model_best.pth.tar": ("net.", lambda state: {"net": state, "acc": 91.0}),
    "resnet20.th": ("module.", lambda state: {"state_dict": state}),
    "pytorch_model.bin": ("", lambda state: state),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", CASES)
def test_what_scripts_wrap_around_a_state_dict_is_taken_off(
    name: str, old_format: bool, torch: Any, tmp_path: Path
) -> None:
    prefix, wrap = CASES[name]
    torch.save(wrap(prefixed(torch, prefix)), tmp_path / name, _use_new_zipfile_serialization=not old_format)
    found = read_state_dict(tmp_path / name)
    assert set(found) == set(STATE)
    for key, value in STATE.items():
        np.testing.assert_array_equal(found[key], value)


class Copied:
    """Makes a file when pickle itself reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, str(self.file))


def test_code_in_a_file_is_not_run(torch: Any, tmp_path: Path) -> None:
    torch.save({"model": prefixed(torch, ""), "other": Copied(tmp_path / "ran")}, tmp_path / "a.pth")
    assert set(read_torch(tmp_path / "a.pth")) == set(STATE)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()

    torch.save({"model": prefixed(torch, ""), "other": os.getcwd}, tmp_path / "b.pth")
    with pytest.raises(
        UsageError, match=r"b\.pth is not a PyTorch file: Trying to load unsupported GLOBAL posix\.getcwd"
    ):
        read_torch(tmp_path / "b.pth")


def test_an_average_beside_the_parameters_is_named_and_can_be_chosen(torch: Any, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(
        {"model": prefixed(torch, ""), "model_ema": {"n_averaged": torch.tensor(3)} | prefixed(torch, "module.", 1)},
        file,
    )
    assert averages(file) == ("model_ema",)
    with pytest.warns(UserWarning, match=r"also holds model_ema, which --weights-key takes instead"):
        np.testing.assert_array_equal(read_state_dict(file)["fc.bias"], [1, 1])
    np.testing.assert_array_equal(read_state_dict(file, weights_key="model_ema")["fc.bias"], [2, 2])
    with pytest.raises(UsageError, match=r"holds no state dict under 'ema'; there: model, model_ema$"):
        read_torch(file, "ema")


def test_files_without_a_state_dict_are_named(torch: Any, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "none.pth")
    with pytest.raises(UsageError, match=r"none\.pth holds no state dict: .*; its keys are epoch, optimizer$"):
        read_torch(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no pickle")
    with pytest.raises(UsageError, match=r"text\.pth is not a PyTorch file: "):
        read_torch(tmp_path / "text.pth")


def test_values_that_are_not_finite_are_refused_by_name(torch: Any, tmp_path: Path) -> None:
    bad = {**STATE, "fc.bias": np.array([np.nan, 1], np.float32)}
    save_file(bad, tmp_path / "nan.safetensors")
    torch.save({key: torch.from_numpy(value) for key, value in bad.items()}, tmp_path / "nan.pth")
    for read, name in ((read_safetensors, "nan.safetensors"), (read_torch, "nan.pth")):
        with pytest.raises(UsageError, match=rf"{name}: fc\.bias holds 1 of 2 values that are not finite$"):
            read(tmp_path / name)


def test_a_file_of_bit_gets_pytorchs_names_and_layouts(tmp_path: Path) -> None:
    unit, kernel = "resnet/block1/unit01", "standardized_conv2d/kernel"
    names = {
        f"resnet/root_block/{kernel}": "root.conv.weight",
        f"{unit}/a/{kernel}": "body.block1.unit01.conv1.weight",
        f"{unit}/b/{kernel}": "body.block1.unit01.conv2.weight",
        f"{unit}/c/{kernel}": "body.block1.unit01.conv3.weight",
        f"{unit}/a/proj/{kernel}": "body.block1.unit01.downsample.weight",
        f"{unit}/a/group_norm/gamma": "body.block1.unit01.gn1.weight",
        f"{unit}/b/group_norm/gamma": "body.block1.unit01.gn2.weight",
        f"{unit}/c/group_norm/beta": "body.block1.unit01.gn3.bias",
        "resnet/group_norm/gamma": "head.gn.weight",
        "resnet/group_norm/beta": "head.gn.bias",
        "resnet/head/conv2d/kernel": "head.conv.weight",
        "resnet/head/conv2d/bias": "head.conv.bias",
    }
    random = np.random.default_rng(0)
    given: dict[str, Any] = {
        name: random.standard_normal((2, 3, 4, 5) if name.endswith("kernel") else 5).astype(np.float32)
        for name in names
    }
    np.savez(tmp_path / "BiT-M-R50x1.npz", global_step=np.int64(1), **given)
    found = read_state_dict(tmp_path / "BiT-M-R50x1.npz")
    assert set(found) == set(names.values())
    for name, key in names.items():
        for index in np.ndindex(given[name].shape):
            place = (index[3], index[2], index[0], index[1]) if len(index) == 4 else index
            assert found[key][place] == given[name][index]


def test_files_that_are_none_of_bit_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", logits=np.ones(2))
    with pytest.raises(UsageError, match=r"other\.npz is no file of BiT: it has no arrays named resnet/"):
        read_bit(tmp_path / "other.npz")
    for content in (b"", b"no archive", (tmp_path / "other.npz").read_bytes()[:60]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"cut\.npz cannot be read as \.npz: "):
            read_bit(tmp_path / "cut.npz")
