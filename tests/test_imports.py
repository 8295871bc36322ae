"""The direction of imports, and what a training run does without."""

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
EFFECTS = {
    f"jaxclf.{name}"
    for name in (
        *("checkpoint", "cluster", "preemption", "results", "setup", "loop", "tables", "ray_executor", "progress"),
        *("watch", "stack", "weights", "__main__"),
    )
}
PURE = [name for name in MODULES if name.startswith("jaxclf.backbones")] + [
    f"jaxclf.{name}"
    for name in (
        *("config", "matrices", "heads", "classifier", "losses", "optim", "step", "class_maps"),
        *("pooling", "initialisation", "count", "layout", "parallel"),
        *(
            *("data.augment", "data.order", "data.transforms", "data.fast_transforms", "data.decoding"),
            *("data.datasets", "data.sources", "data.reading", "data.stream", "data.pipeline", "data.inspection"),
            *("experiment", "ranges", "schedules", "sweep", "torch_weights", "page", "pictures", "count_page"),
        ),
    )
]


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


def ours(name: str) -> set[str]:
    return imported(name) & set(MODULES)


def test_the_modules_were_found() -> None:
    assert {"jaxclf", "jaxclf.config", "jaxclf.backbones.layers", "jaxclf.data.pipeline"} <= set(MODULES)
    assert len(PURE) >= 16


def test_config_imports_nothing_of_ours() -> None:
    assert ours("jaxclf.config") == set()


def test_matrices_import_config_alone() -> None:
    assert ours("jaxclf.matrices") == {"jaxclf.config"}
    assert not {name.split(".")[0] for name in imported("jaxclf.matrices")} & {"jax", "flax", "optax"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_imports_what_stands_outside_the_package(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(name)}
    assert not roots & {"tests", "experiments", "configs", "benchmarks", "torch", "torchvision", "pytest"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_module_with_effects(name: str) -> None:
    seen: set[str] = set()
    waiting = ours(name) - {"jaxclf"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= ours(module) - seen - {"jaxclf"}
    assert not seen & EFFECTS


def test_the_order_and_the_transforms_know_neither_jax_nor_readers() -> None:
    for name in ("order", "transforms", "fast_transforms", "decoding"):
        own = imported(f"jaxclf.data.{name}")
        assert not {module.split(".")[0] for module in own} & {"jax", "flax", "grain", "tensorflow_datasets"}, name
        assert not {f"jaxclf.data.{other}" for other in ("sources", "reading", "stream", "datasets")} & own, name


def test_backbones_and_heads_know_nothing_of_what_is_built_from_them() -> None:
    later = {f"jaxclf.{name}" for name in ("classifier", "step", "losses", "optim", "torch_weights", "data")}
    for name in MODULES:
        if name.startswith("jaxclf.backbones") or name == "jaxclf.heads":
            assert not ours(name) & later, name


def test_only_the_package_itself_and_the_command_line_import_the_loop() -> None:
    users = {name for name in MODULES if "jaxclf.loop" in imported(name)}
    assert users <= {"jaxclf", "jaxclf.__main__", "jaxclf.tables", "jaxclf.ray_executor", "jaxclf.stack"}


def test_training_imports_neither_tensorflow_nor_torch(tmp_path: Path) -> None:
    script = """
        import sys
        import jaxclf
        from jaxclf.config import *
        model, run = ModelConfig("resnet8"), RunConfig(epochs=1)
        config = Config(data=DataConfig(batch_size=256), model=model, run=run)
        result = jaxclf.train(config, sys.argv[1], quiet=True)
        assert result.step == 6, result.step
        print("loaded:", sorted({"tensorflow", "torch", "torchvision", "keras", "ray"} & set(sys.modules)))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
