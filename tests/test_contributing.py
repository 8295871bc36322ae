"""The network and the head that CONTRIBUTING.md adds work as they stand there."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclf
from jaxclf.models import matrices

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Python blocks of CONTRIBUTING.md as a package `contributed`, one module a block."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(matrices, "MATRICES", dict(matrices.MATRICES))
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    package = tmp_path / "contributed"
    package.mkdir()
    for name, block in zip(("network", "head"), blocks, strict=True):
        (package / f"{name}.py").write_text(block)
    importlib.invalidate_caches()
    return "contributed"


def test_the_network_trains_under_every_form_of_last_layer(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 -> 10 channels: conv1 432 + 32, conv2 1,440 with `maps`; conv2 2,304 + 32 and a head of 170 without."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    entry = importlib.import_module(f"{example}.network").VARIANTS["two_convs_16"]
    assert entry.fields == {"width": 16}
    name = f"{example}.network:TwoConvs16"
    monkeypatch.setattr(f"{example}.network.TwoConvs16", entry, raising=False)
    for options, count in (({}, 2970), ({"head": "identity", "maps": 10}, 1904)):
        model = jaxclf.create_model(name, num_classes=10, **options)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_the_heads_matrix_is_a_fixed_simplex(example: str) -> None:
    head = jaxclf.create_model("tests.tiny:Tiny", num_classes=4, head=f"{example}.head:Simplex").head
    variables = head.init(jax.random.key(0), jnp.zeros((1, 8)))
    (rows,) = jax.tree.leaves(variables["fixed"])
    expected = np.where(np.eye(4), 1, -1 / 3)
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-6)
    assert set(variables["params"]) == {"bias"}
