"""The direction of imports, read from the folders: a new file needs no entry here."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import jaxclf

PACKAGE = Path(jaxclf.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
FLOORS = (
    ("errors",),
    ("storage",),
    ("config", "intervals"),
    ("registry",),
    ("devices", "models"),
    ("data",),
    ("training",),
    ("tools",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a room imports from lower floors alone. The package's own __init__ hands names on and is none."""

EFFECTS = {"os", "shutil", "subprocess", "time", "tempfile", "logging", "socket", "signal", "threading", "fcntl"}
"""Modules of the standard library that reach files, clocks, processes or the environment."""
PURE_ROOMS = ("errors", "config", "intervals", "models")


def room(name: str) -> str:
    return name.split(".")[1]


def imported(name: str) -> set[str]:
    """Names of the modules that a module imports anywhere in its text; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import in line {node.lineno}"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_has_a_floor() -> None:
    rooms = {room(name) for name in MODULES if name != "jaxclf"}
    assert rooms == {one for floor in FLOORS for one in floor}


def test_imports_run_downwards() -> None:
    floor = {one: number for number, floor in enumerate(FLOORS) for one in floor}
    upwards = [
        f"{name} imports {other}"
        for name in MODULES
        if name != "jaxclf"
        for other in imported(name) & set(MODULES) - {"jaxclf"}
        if room(other) != room(name) and floor[room(other)] >= floor[room(name)]
    ]
    assert not upwards


def test_no_module_imports_what_stands_outside_the_package() -> None:
    outside = {"tests", "experiments", "configs", "benchmarks", "torch", "torchvision", "pytest"}
    assert not [name for name in MODULES if {one.split(".")[0] for one in imported(name)} & outside]


def test_pure_rooms_reach_no_files_clocks_or_processes() -> None:
    reaching = {name: imported(name) & EFFECTS for name in MODULES if name != "jaxclf" and room(name) in PURE_ROOMS}
    assert not {name: found for name, found in reaching.items() if found}


@pytest.mark.slow
def test_training_and_its_page_import_neither_tensorflow_nor_torch_nor_pyplot(tmp_path: Path) -> None:
    """And another process finds a network of somebody else's in the directory that it stands in."""
    script = """
        import sys
        import jaxclf
        from jaxclf.config import *
        model, run = ModelConfig("tests.tiny:Tiny"), RunConfig(epochs=1)
        config = Config(data=DataConfig(batch_size=338), model=model, run=run)
        result = jaxclf.train(config, sys.argv[1], quiet=True)
        assert result.step == 4, result.step
        assert "matplotlib" not in sys.modules
        import jaxclf.report.page
        heavy = {"tensorflow", "torch", "torchvision", "keras", "ray", "matplotlib.pyplot"}
        print("loaded:", sorted(heavy & set(sys.modules)))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_list_of_networks_imports_no_scipy() -> None:
    """It would take a fifth of the time."""
    script = "import sys, jaxclf; jaxclf.list_models(); print([name for name in sys.modules if name == 'scipy'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
