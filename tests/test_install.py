"""What an installation says where jaxclf cannot run."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jaxclf

HOOK = Path(__file__).parents[1] / "hatch_build.py"


def test_an_installation_on_windows_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = ModuleType("hatchling.builders.hooks.plugin.interface")
    plugin.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)  # hatchling is there while pip builds, and not here
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SupportedSystems().initialize("editable", {})
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^jaxclf does not run on Windows: install it under WSL 2"):
        module.SupportedSystems().initialize("editable", {})


def test_an_import_on_windows_says_why_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("jaxclf_elsewhere", str(jaxclf.__file__))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"^jaxclf does not run on Windows"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
