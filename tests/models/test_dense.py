"""A classifier slid over a larger image answers as it does for every crop, wherever that can be said of its network."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.dense import convolutionise, fine_maps, finest, stitch
from jaxclf.models.layers import adaptive_avg_pool, conv
from tests.models.drawn import drawn
from tests.models.unpadded import UNPADDED, Unpadded
from tests.tiers import quick

CLOSE = 1e-5
"""Of the spread of the logits: float32, summed in another order."""


class Counted(Unpadded):
    """Keeps the shapes of the images that it is traced for."""

    traced: ClassVar[list[tuple[int, ...]]] = []

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        self.traced.append(images.shape)
        return conv(6, 48, stride=12, name="conv1")(images)


class Inside(Unpadded):
    """Averages 4x4 positions of 48x48 images, 12 pixels apart; a convolution follows."""

    pools_inside = True

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        x = conv(5, 12, stride=12, name="conv1")(images)
        return x if self.maps else conv(6, 1, name="conv3")(jax.nn.relu(self.pool_inside(jax.nn.relu(x))))


class Squashed(Unpadded):
    """Ends in 2x2 positions whatever the image, as torchvision's AlexNet and VGG before their linear layers."""

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        return adaptive_avg_pool(conv(6, 5, stride=2, name="conv1")(images), 2, 2)


def picture(height: int, width: int, channels: int = 3, *, count: int = 1) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, height, width, channels)).astype(np.float32)


def sliding_window(model: Classifier, variables: Any, images: np.ndarray, *, side: int, step: int) -> np.ndarray:
    """Return the logits of every crop that begins at a `step`-th pixel, one after the other."""
    _, height, width, _ = images.shape
    tops, lefts = range(0, height - side + 1, step), range(0, width - side + 1, step)
    crops = np.concatenate([images[:, y : y + side, x : x + side] for y in tops for x in lefts])
    logits = np.asarray(jax.jit(model.apply)(variables, crops))  # [yx n, k]
    return np.moveaxis(logits.reshape(len(tops), len(lefts), len(images), -1), 2, 0)


def class_maps(model: Classifier, variables: Any, images: np.ndarray) -> Array:
    return jax.jit(model.apply, static_argnames="method")(variables, images, method="class_maps")


def assert_close(found: Any, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0
    assert np.abs(np.asarray(found) - expected).max() < CLOSE * expected.std()


@pytest.mark.parametrize(
    "options",
    quick(
        [
            {"head": "learned"},
            {"head": "learned", "pool": "max", "relu_before_pool": True},
            {"head": "learned", "pool": "power"},
            {"head": "learned", "pool": "attention"},
            {"head": "cosface"},
            {"head": "identity"},
        ],
        {"head": "learned"},
        {"head": "cosface"},
    ),
    ids=str,
)
def test_class_maps_of_a_network_without_padding_are_the_logits_of_every_crop(options: dict[str, Any]) -> None:
    """cosface divides by the norm of a crop's features, not by that of the whole image's."""
    model = create_model(UNPADDED, num_classes=6, **options)
    variables, images = drawn(model, 48, 48, 3), picture(72, 85, count=2)
    sliding = convolutionise(model)
    assert (sliding.side, sliding.window, sliding.stride) == (48, (2, 2), 12)
    maps = class_maps(sliding, variables, images)
    assert maps.shape == (2, 3, 4, 6)
    assert_close(maps, sliding_window(model, variables, images, side=48, step=12))
    one = class_maps(sliding, variables, images[:, :48, :48])
    assert_close(one, sliding_window(model, variables, images[:, :48, :48], side=48, step=12))


def test_a_network_that_pools_inside_slides_too() -> None:
    model = create_model("tests.models.test_dense:Inside", num_classes=4)
    sliding, variables, images = convolutionise(model), drawn(model, 48, 48, 3), picture(72, 61)
    assert (sliding.backbone.inner_pool, sliding.window, sliding.stride) == (4, (1, 1), 12)
    assert_close(class_maps(sliding, variables, images), sliding_window(model, variables, images, side=48, step=12))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inner_pool"), [("mobilenet_v3_small", 7), ("inception_resnet_v1", 3)])
def test_inner_pools_have_the_side_of_the_map_that_they_are_for(name: str, inner_pool: int) -> None:
    sliding = convolutionise(create_model(name, num_classes=4))
    assert (sliding.backbone.inner_pool, sliding.window, sliding.stride) == (inner_pool, (1, 1), 32)


def test_an_inner_pool_averages_every_window_of_its_side() -> None:
    maps = picture(4, 5)
    means = np.stack([[maps[:, y : y + 3, x : x + 3].mean((1, 2)) for x in range(3)] for y in range(2)])
    np.testing.assert_allclose(Unpadded(inner_pool=3).pool_inside(jnp.asarray(maps)), means.transpose(2, 0, 1, 3), 1e-5)
    np.testing.assert_allclose(Unpadded().pool_inside(jnp.asarray(maps))[:, 0, 0], maps.mean((1, 2)), 1e-5)


def test_a_head_before_the_pool_slides_too() -> None:
    model = create_model(UNPADDED, num_classes=4, head="conv3x3")
    variables, images = drawn(model, 72, 72, 3), picture(96, 85)
    sliding = convolutionise(model, 72)
    assert (sliding.window, sliding.stride) == ((4, 4), 12)
    maps = class_maps(sliding, variables, images)
    assert_close(maps, sliding_window(model, variables, images, side=72, step=12))


@pytest.mark.parametrize(("name", "stride"), [("lenet5", 4), ("lenet_like", 6)])
def test_lenets_answer_for_every_crop(name: str, stride: int) -> None:
    model = create_model(name, num_classes=10)
    variables, images = drawn(model, 28, 28, 1), picture(28 + 2 * stride, 29 + stride, 1)
    sliding = convolutionise(model)
    assert (sliding.window, sliding.stride) == ((1, 1), stride)
    maps = class_maps(sliding, variables, images)
    assert_close(maps, sliding_window(model, variables, images, side=28, step=stride))


def test_the_stitched_map_is_the_sliding_window_at_every_pixel() -> None:
    model = create_model(UNPADDED, num_classes=6)
    variables, images = drawn(model, 48, 48, 3), picture(64, 53, count=2)
    stitched = stitch(convolutionise(model), variables, images)
    assert stitched.shape == (2, 17, 6, 6)
    assert_close(stitched, sliding_window(model, variables, images, side=48, step=1))


def test_stitching_compiles_at_most_four_programs_for_images_of_one_shape() -> None:
    """65 pixels hold two windows from shifts of 0, 4 and one from 8."""
    model = create_model("tests.models.test_dense:Counted", num_classes=4)
    variables, equal = drawn(model, 48, 48, 3), [convolutionise(model), convolutionise(model)]
    Counted.traced.clear()
    for sliding in equal:
        stitch(sliding, variables, picture(65, 65), step=4)
    assert sorted(Counted.traced) == [(1, 48, 48, 3), (1, 48, 60, 3), (1, 60, 48, 3), (1, 60, 60, 3)]


def test_offsets_of_the_last_pool_are_shifts_by_the_stride_below_it() -> None:
    model = create_model(UNPADDED, num_classes=6)
    variables, images = drawn(model, 48, 48, 3), picture(72, 72)
    stitched = stitch(convolutionise(model), variables, images, step=4)
    assert_close(stitched, sliding_window(model, variables, images, side=48, step=4))
    sliding = convolutionise(model)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        shifted = sliding.clone(backbone=Unpadded(offset=(row, column)))
        maps = class_maps(shifted, variables, images)
        assert_close(maps, stitched[:, row::3, column::3])


def test_padding_differs_from_the_neighbourhood_of_a_crop_at_its_border_alone() -> None:
    """Two 3x3 convs with padding 1, strides 1 and 2: a position of the last map looks at 5 pixels from 2 y - 2 on."""
    model = create_model("tests.tiny:Tiny", num_classes=5)
    variables, images = drawn(model, 8, 8, 3), picture(14, 14)
    body, body_variables = model.backbone, {name: tree.get("backbone", {}) for name, tree in variables.items()}
    answer = jax.jit(body.apply)
    whole = np.asarray(answer(body_variables, images))[:, 2:6, 2:6]  # of the window at pixel (4, 4)
    crop = np.asarray(answer(body_variables, images[:, 4:12, 4:12]))
    differs = np.abs(whole - crop).max((0, 3)) > CLOSE * crop.std()
    inside = np.zeros((4, 4), bool)
    inside[1:3, 1:3] = True  # 2 y - 2 >= 0 and 2 y + 2 <= 7
    np.testing.assert_array_equal(differs, ~inside)


def test_what_cannot_slide_is_one_line() -> None:
    model = create_model(UNPADDED, num_classes=6)
    variables, sliding = drawn(model, 48, 48, 3), convolutionise(model)
    with pytest.raises(UsageError, match="images are 60x47 but must be 48x48 or larger"):
        class_maps(sliding, variables, picture(60, 47))
    with pytest.raises(UsageError, match="images are 47x60 but must be 48x48 or larger"):
        stitch(sliding, variables, picture(47, 60))
    for step in (0, 5, 24):
        with pytest.raises(UsageError, match=f"step is {step} but must divide the stride of the network, 12 pixels"):
            stitch(sliding, variables, picture(60, 60), step=step)
    squashed = create_model("tests.models.test_dense:Squashed", num_classes=6)
    with pytest.raises(
        UsageError, match="Squashed cannot slide: images of 48 and 2928 pixels give maps of 2 and 2 pos"
    ):
        convolutionise(squashed)
    with pytest.raises(UsageError, match="lenet5 takes images of 28x28 and larger; got 27x27"):
        convolutionise(create_model("lenet5", num_classes=10), 27)


def test_a_fine_map_has_the_logits_of_the_window_around_every_square() -> None:
    """Windows of 48 pixels around squares of 3: edge pixels stand around the image, 22 before and 23 behind."""
    model = create_model(UNPADDED, num_classes=6)
    variables, images = drawn(model, 48, 48, 3), picture(7, 11)
    found = fine_maps(finest(model), variables, images, step=3)
    assert found.shape == (1, 2, 3, 6)
    around = np.pad(images, ((0, 0), (22, 23), (22, 23), (0, 0)), "edge")
    assert_close(found, sliding_window(model, variables, around, side=48, step=3))


def test_the_finest_windows_are_a_position_of_the_map_where_the_network_takes_them() -> None:
    tiny, vgg = finest(create_model("tests.tiny:Tiny", num_classes=6)), finest(create_model("vgg11", num_classes=6))
    assert (tiny.side, tiny.window, tiny.stride) == (2, (1, 1), 2)
    assert (vgg.side, vgg.window, vgg.stride) == (224, (1, 1), 32)
    with pytest.raises(UsageError, match="step is 3 but must divide the stride of the network, 2 pixels"):
        fine_maps(tiny, {}, picture(8, 8), step=3)
