"""Layers of the backbones against what they stand for in JAX."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.errors import UsageError
from jaxclf.models.backbones.nfnet import NFNet
from jaxclf.models.backbones.resnet import ResNet
from jaxclf.models.backbones.resnext_cifar import CifarResNeXt
from jaxclf.models.backbones.shufflenet_v2 import ShuffleNetV2, channel_shuffle
from jaxclf.models.classifier import create_model
from jaxclf.models.layers import GroupNorm, StandardisedConv, conv
from tests.models.drawn import drawn
from tests.training.runs import TINY


def test_frozen_statistics_are_used_in_training_and_left() -> None:
    moving, frozen = (create_model(TINY, num_classes=3, freeze_statistics=freeze) for freeze in (False, True))
    variables = drawn(moving, 8, 8, 3)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)
    logits, updated = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, moving.apply(variables, images))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    assert not np.array_equal(logits, moving.apply(variables, images, train=True, mutable=["batch_stats"])[0])


UNEVEN: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "convolution": (conv(12, 3, groups=5, name="conv2"), (8, 8, 8), "8 and 12 channels into 5 .* can: 1, 2, 4$"),
    "outputs": (conv(9, 3, groups=4, name="conv2"), (8, 8, 8), "8 and 9 channels into 4 .* can: 1$"),
    "depthwise": (conv(6, 3, groups=6, name="conv2"), (8, 8, 8), "8 and 6 channels into 6 .* can: 1, 2$"),
    "standardised": (StandardisedConv(8, 3, groups=3), (8, 8, 8), "8 channels into 3 groups; .* can: 1, 2, 4, 8$"),
    "norm": (GroupNorm(groups=5), (8, 8, 12), "12 channels into 5 groups; .* can: 1, 2, 3, 4, 6, 12$"),
    "shuffle": (lambda x: channel_shuffle(x, 4), (8, 8, 10), "10 channels into 4 groups; .* can: 1, 2, 5, 10$"),
    "no group": (GroupNorm(groups=0), (8, 8, 4), "4 channels into 0 groups; .* can: 1, 2, 4$"),
    "resnext": (
        ResNet(kind="wide", blocks=(1, 1, 1, 1), bottleneck=True, groups=-2, group_width=-32),
        (64, 64, 3),
        "convolution conv2 .*64 channels into -2 groups; .* can: 1, 2, 4, 8, 16, 32, 64$",
    ),
    "cifar resnext": (
        CifarResNeXt(depth=11, groups=-4, group_width=-16),
        (32, 32, 3),
        "convolution conv_conv .*64 channels into -4 groups; .* can: 1, 2, 4, 8, 16, 32, 64$",
    ),
    "shufflenet": (
        ShuffleNetV2(kind="narrow", widths=(49, 98, 196, 64)),
        (64, 64, 3),
        "unit of ShuffleNet v2 cannot part 24 and 49 channels into 2 groups; .* can: 1$",
    ),
    "nfnet": (
        NFNet(kind="narrow", deepmind=False, widths=(300, 512, 512, 512)),
        (64, 64, 3),
        "cannot have 300 channels in its groups of 128; multiples of 256 can be parted so$",
    ),
}
"""What divides nothing, the image [h w c] that it is given, and how the error goes on."""


@pytest.mark.parametrize("case", UNEVEN)
def test_groups_that_do_not_divide_the_channels_are_refused_with_those_that_do(case: str) -> None:
    layer, shape, said = UNEVEN[case]
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    build = functools.partial(layer.init, jax.random.key(0)) if isinstance(layer, nn.Module) else layer
    with pytest.raises(UsageError, match=f"(?m){said}"):
        jax.eval_shape(build, image)
