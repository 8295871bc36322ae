"""The inverted residual block, and stochastic depth in EfficientNet."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.errors import UsageError
from jaxclf.models.backbones import create_backbone
from jaxclf.models.backbones.efficientnet import scaled
from jaxclf.models.classifier import create_model
from jaxclf.models.mbconv import MBConv, torchvision_names
from tests.models.drawn import drawn


class Block(MBConv):
    """The block as an image network, for `drawn`."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return super().__call__(x, train)


def block(stride: int = 1, features: int = 3, stochastic_depth: float = 0.0) -> Block:
    return Block(6, features, stride, 3, torchvision_names, stochastic_depth=stochastic_depth)


def branch(given: dict[str, Any], images: jax.Array, stochastic_depth: float, **options: Any) -> np.ndarray:
    """What a block with a shortcut adds to its input."""
    after, _ = block(stochastic_depth=stochastic_depth).apply(given, images, mutable=["batch_stats"], **options)
    return np.asarray(after - images)


def test_stochastic_depth_drops_the_branch_of_whole_images_in_training_alone() -> None:
    images = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4, 4, 3), np.float32))
    given = drawn(block(), 4, 4, 3)
    whole = branch(given, images, 0.0, train=True)
    dropped = branch(given, images, 0.25, train=True, rngs={"dropout": jax.random.key(0)})
    gone = (dropped == 0).all((1, 2, 3))
    assert 6 <= gone.sum() <= 28
    np.testing.assert_allclose(dropped[~gone], whole[~gone] / 0.75, rtol=1e-3, atol=1e-5)
    assert np.array_equal(branch(given, images, 0.25), branch(given, images, 0.0))


@pytest.mark.parametrize(("stride", "features"), [(2, 3), (1, 4)])
def test_a_block_of_another_shape_has_no_shortcut_even_on_one_position(stride: int, features: int) -> None:
    model, images = block(stride, features, stochastic_depth=0.5), jnp.ones((1, 1, 1, 3))
    given = drawn(model, 1, 1, 3)
    given["params"]["block_2_1"]["weight"] *= 0
    given["params"]["block_2_1"]["bias"] *= 0
    assert not np.asarray(model.apply(given, images)).any()


def test_compound_scaling_gives_the_widths_and_depths_of_b7() -> None:
    fields = scaled(2.0, 3.1, 600)
    assert [row[1:3] for row in fields["stages"]] == [
        *((32, 4), (48, 7), (80, 7), (160, 10), (224, 10), (384, 13), (640, 4))
    ]
    assert (fields["stem_features"], fields["head_features"], fields["resolution"]) == (64, 2560, 600)


def test_the_rate_of_stochastic_depth_grows_with_depth() -> None:
    body: Any = create_backbone("efficientnet_b0")
    assert body.stochastic_depth == 0.2
    assert create_backbone("efficientnet_lite0").clone(stochastic_depth=0.1) == create_backbone(
        "efficientnet_lite0", stochastic_depth=0.1
    )
    assert body.rates == tuple(0.2 * place / 16 for place in range(16))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_stochastic_depth_that_leaves_nothing_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=f"stochastic_depth is {rate} but must be from 0 to below 1"):
        drawn(create_model("efficientnet_b0", num_classes=10, stochastic_depth=rate), 32, 32, 3)
