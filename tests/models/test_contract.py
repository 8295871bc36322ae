"""The contract of jaxclf/models/backbone.py, held by every registered structure; nothing is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from jaxclf.models.backbones import BACKBONES, backbone_options, create_backbone, list_models
from jaxclf.models.classifier import create_model
from jaxclf.models.count import equations
from jaxclf.models.heads import list_heads
from jaxclf.models.pooling import POOLS
from tests.tiers import quick

STRUCTURES: dict[Any, str] = {}
"""The first name of each class and choice of parts and of names, as VGG with and without norm."""
for name in list_models():
    variant = BACKBONES.resolve(name)
    parts = {
        field: value for field, value in variant.fields.items() if isinstance(value, bool | str) and field != "kind"
    }
    STRUCTURES.setdefault((variant.module, *sorted(parts.items())), name)
QUICK = (
    *("lenet5", "resnet8", "resnet_tutorial", "densenet_bc_100_12", "alexnet", "nin"),
    *("vgg11", "vgg11_bn", "resnet18", "mobilenet_v2"),
)
"""Those that trace in a second: the default tier."""
CHOSEN = quick(STRUCTURES.values(), *QUICK)


def trace(module: Any, side: int, dtype: Any) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return the types of a module's products on one image, and the shapes of its answer and of its variables."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), dtype)
    jaxpr, (answer, variables) = jax.make_jaxpr(module.init_with_output, return_shape=True)(jax.random.key(0), images)
    products = [
        eqn.outvars[0].aval.dtype
        for eqn, _ in equations(jaxpr.jaxpr)
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    return products, answer, traverse_util.flatten_dict(variables, sep="/")


@pytest.mark.parametrize("name", CHOSEN)
def test_a_backbone_keeps_its_contract(name: str) -> None:
    body = create_backbone(name)
    products, maps, variables = trace(body, body.image_size, jnp.bfloat16)
    assert maps.ndim == 4
    assert maps.shape[-1] == body.features
    assert variables[f"params/{body.stem}/kernel"].shape[2] == 3
    assert all(variables[f"params/{path}/kernel"].ndim == 4 for path in (body.last_conv, *body.linear_layers))
    assert body.head_names
    heads = tuple(f"params/{name.replace('.', '/')}/" for name in body.head_names)
    assert not any(path.startswith(("params/head/kernel", *heads)) for path in variables)
    # It computes in the type of its images, and owns float32.
    assert len(products) > 2
    assert set(products) == {jnp.dtype("bfloat16")}
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in variables.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", [one for one in CHOSEN if "maps" in backbone_options(str(one.values[0]))])
def test_maps_rebuilds_the_last_conv(name: str) -> None:
    body = create_backbone(name, maps=7)
    images = jax.ShapeDtypeStruct((1, body.image_size, body.image_size, 3), jnp.float32)
    maps, variables = jax.eval_shape(body.init_with_output, jax.random.key(0), images)
    assert maps.shape[-1] == body.features == 7
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    assert flat[f"params/{body.last_conv}/kernel"].shape[-1] == 7


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("head", quick(list_heads(), *list_heads()[:6], "reponet_simplex"))
def test_a_head_and_a_pool_compute_in_bfloat16_and_answer_in_float32(head: str, pool: str) -> None:
    model = create_model("tests.tiny:Tiny", num_classes=7, head=head, pool=pool, dtype="bfloat16")
    products, logits, variables = trace(model, 8, jnp.float32)
    assert set(products) == {jnp.dtype("bfloat16")}
    neck = "params/head/neck" in variables
    assert len(products) == 2 + (head != "identity") + neck + 2 * (pool == "attention")
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in variables.values()} == {jnp.dtype("float32")}
