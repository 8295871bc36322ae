"""Taps and maps of where a class is seen, against arithmetic on what the network computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf import UsageError, create_model
from jaxclf.models import taps
from jaxclf.models.attribution import attribute, class_maps
from jaxclf.models.classifier import Classifier

CLASSES = np.array([[0, 3], [1, 2]])

tapping = jax.jit(taps.tap, static_argnums=(0, 3))


def made(head: str = "learned", **options: Any) -> tuple[Any, Any, Any]:
    """Return a network, its variables, and two images of noise."""
    images = jnp.asarray(np.random.default_rng(7).normal(size=(2, 16, 16, 3)), jnp.float32)
    model = create_model("resnet8", num_classes=5, head=head, **options)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, variables, images


@pytest.fixture(scope="module")
def network() -> tuple[Classifier, Any, np.ndarray]:
    return made()


def test_layers_are_listed_in_the_order_of_their_calls(network: tuple[Classifier, Any, np.ndarray]) -> None:
    found = taps.layers(network[0], (2, 16, 16, 3))
    assert list(found)[:3] == ["conv1", "bn1", "layer1_0/conv1"]
    assert list(found)[-1] == taps.LAST
    assert found["layer2_0/conv1"].shape == (2, 8, 8, 32)
    assert found[taps.LAST].shape == (2, 4, 4, 64)


def test_a_tap_changes_no_answer_and_what_is_added_goes_on(network: tuple[Classifier, Any, np.ndarray]) -> None:
    model, variables, images = network
    tapped = tapping(model, variables, images, ("layer2_0/conv1", taps.LAST))
    np.testing.assert_allclose(tapped.logits, jax.jit(model.apply)(variables, images), rtol=0, atol=1e-6)
    head = variables["params"]["head"]
    pooled = np.asarray(tapped.outputs[taps.LAST]).mean((1, 2))
    expected = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(tapped.logits, expected, rtol=0, atol=1e-6)
    moved = tapping(model, variables, images, (taps.LAST,), {taps.LAST: jnp.ones((2, 4, 4, 64))})
    expected = np.asarray(head["kernel"]).sum(0)[None]
    np.testing.assert_allclose(moved.logits - tapped.logits, expected.repeat(2, 0), rtol=0, atol=1e-5)


def test_rematerialised_blocks_can_be_tapped() -> None:
    model, variables, images = made(remat="block")
    tapped = jax.eval_shape(lambda: taps.tap(model, variables, images, ("layer2_0/conv1",)))
    assert tapped.outputs["layer2_0/conv1"].shape == (2, 8, 8, 32)


def test_an_unknown_layer_is_refused_with_the_nearest(network: tuple[Classifier, Any, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="unknown layer 'layer3_0/conv9'; did you mean 'layer3_0/conv"):
        attribute(*network, CLASSES, method="grad_cam", layer="layer3_0/conv9")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "grad-cam"}, "unknown method 'grad-cam'; did you mean 'grad_cam'"),
        ({"layer": "conv1"}, "layer 'conv1' given with maps, but only grad_cam, grad_cam_plus_plus take one"),
        ({"classes": np.array([[0], [5]])}, r"classes \[5\] given, but the model has 0 to 4"),
        ({"classes": np.array([[-1], [0]])}, r"classes \[-1\] given, but the model has 0 to 4"),
    ],
)
def test_what_cannot_be_is_refused(
    network: tuple[Classifier, Any, np.ndarray], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        attribute(*network, given.pop("classes", CLASSES), **given)


def test_class_maps_average_to_the_logits(network: tuple[Classifier, Any, np.ndarray]) -> None:
    model, variables, images = network
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    np.testing.assert_allclose(class_maps(model, variables, images).mean((1, 2)), logits, rtol=0, atol=1e-5)
    found = attribute(model, variables, images, CLASSES)
    assert found.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found.mean((2, 3)), np.take_along_axis(logits, CLASSES, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["learned", "orthogonal"])
def test_grad_cam_at_the_last_map_is_the_positive_part_of_cam(head: str) -> None:
    """Under a linear head on the average pool, the gradient is W / (i j): the same map, without the bias."""
    model, variables, images = made(head, bias=False)
    maps = attribute(model, variables, images, CLASSES)
    found = attribute(model, variables, images, CLASSES, method="grad_cam")
    assert float(maps.min()) < 0 < float(maps.max())
    np.testing.assert_allclose(found, np.maximum(maps, 0) / 16, rtol=0, atol=1e-6 * np.abs(maps).max())


def test_grad_cam_under_identity_is_the_positive_part_of_the_channel() -> None:
    model, variables, images = made("identity", maps=5, maps_shortcut="B")
    maps = attribute(model, variables, images, CLASSES)
    channels = np.asarray(tapping(model, variables, images, (taps.LAST,)).outputs[taps.LAST])
    np.testing.assert_array_equal(maps[0, 1], channels[0, :, :, 3])
    found = attribute(model, variables, images, CLASSES, method="grad_cam")
    np.testing.assert_allclose(found, np.maximum(maps, 0) / 16, rtol=0, atol=1e-6 * np.abs(maps).max())


def test_the_gradient_is_that_of_the_logit_by_differences(network: tuple[Classifier, Any, np.ndarray]) -> None:
    """The largest entry of the gradient moves the logit as much as it says, in both directions."""
    model, variables, images = network
    found = attribute(model, variables, images, CLASSES, method="gradient")
    assert found.shape == (2, 2, 16, 16)
    y, x = np.unravel_index(found[0, 1].argmax(), (16, 16))
    apply, step, slopes = jax.jit(model.apply), 1e-2, []
    for channel in range(3):
        moved = jnp.stack([images[0], images[0]]).at[:, y, x, channel].add(jnp.array([step, -step]))
        up, down = np.asarray(apply(variables, moved))[:, 3]
        slopes.append((up - down) / (2 * step))
    assert float(np.abs(slopes).max()) == pytest.approx(float(found[0, 1, y, x]), rel=2e-2)


def test_every_class_of_an_image_is_its_own_map(network: tuple[Classifier, Any, np.ndarray]) -> None:
    model, variables, images = network
    both = attribute(model, variables, images, CLASSES, method="grad_cam_plus_plus", layer="layer2_0")
    assert both.shape == (2, 2, 8, 8)
    one = attribute(model, variables, images, CLASSES[:, 1:], method="grad_cam_plus_plus", layer="layer2_0")
    np.testing.assert_array_equal(both[:, 1:], one)
    assert not np.array_equal(both[:, 0], both[:, 1])
