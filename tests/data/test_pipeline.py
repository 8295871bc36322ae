"""Resident sets: resizing, holding out, and that grouping steps or evaluation batches changes no result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclf.config import AugmentConfig, DataConfig, LossConfig, OptimConfig
from jaxclf.data import order, pipeline
from jaxclf.data.datasets import Digits
from jaxclf.data.transforms import resize_images
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.training import losses
from jaxclf.training.parallel import train_steps
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, TrainState, eval_step, init_state


def load(**fields: Any) -> pipeline.Resident:
    return pipeline.load(Digits(DataConfig(**fields)))


@pytest.mark.parametrize(("shape", "size"), [((3, 8, 8, 1), 16), ((2, 32, 32, 3), 20), ((2, 7, 11, 3), 9)])
def test_resize_is_pils_bilinear(shape: tuple[int, ...], size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    got = resize_images(images, size)
    assert got.shape == (shape[0], size, size, shape[3])
    assert got.dtype == np.uint8
    for image, small in zip(images, got, strict=True):
        for channel in range(shape[3]):
            plane = Image.fromarray(image[..., channel]).resize((size, size), Image.Resampling.BILINEAR)
            assert np.array_equal(small[..., channel], np.asarray(plane))
    if shape[3] == 3:
        colour = Image.fromarray(images[0]).resize((size, size), Image.Resampling.BILINEAR)
        assert np.array_equal(got[0], np.asarray(colour))


def test_load_reads_what_the_config_asks_for() -> None:
    data = load(image_size=16, classes=3)
    assert data.image_shape == (16, 16, 1)
    assert data.class_names == ("0", "1", "2")
    assert set(data.splits["train"].labels) == set(data.splits["test"].labels) == {0, 1, 2}
    assert (data.mean, data.std) == ((0.3049,), (0.3756,))
    assert set(data.splits) == {"train", "test"}
    assert load(mean=(0.5,), std=(0.25,)).mean == (0.5,)


@pytest.mark.parametrize(
    "constants", [{"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5)}, {"std": (0.0,)}, {"mean": (0.1, 0.2), "std": (1.0,)}]
)
def test_constants_must_fit_the_channels(constants: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must have 1 numbers each for digits, std above 0"):
        load(**constants)


@pytest.fixture(scope="module")
def setup() -> tuple[Program, pipeline.Resident, dict[str, Any]]:
    data = load()
    model = create_model("tests.tiny:Tiny", num_classes=10)
    optim, augment = OptimConfig(lr=0.01, milestones=(1,)), AugmentConfig(pad=1)
    program = Program(model, optim, Timeline(2, 2, 64), LossConfig(), augment, data.mean, data.std)
    arrays = {name: (jnp.asarray(part.images), jnp.asarray(part.labels)) for name, part in data.splits.items()}
    return program, data, arrays


def close(a: TrainState, b: TrainState) -> None:
    for path, leaf in jax.tree.leaves_with_path(a):
        other = np.asarray(dict(jax.tree.leaves_with_path(b))[path])
        scale = max(np.abs(other).max(), 1e-3)
        assert np.abs(np.asarray(leaf) - other).max() <= 2e-4 * scale, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_four_steps_in_one_call_are_four_steps(setup: Any) -> None:
    program, data, arrays = setup
    indices = order.epoch_order(0, 0, len(data.splits["train"].labels))[:64].reshape(4, 16)
    together = train_steps(program, init_state(program, data.image_shape, 0, 0), *arrays["train"], rows=indices)
    single = init_state(program, data.image_shape, 0, 0)
    for row in indices:
        single = train_steps(program, single, *arrays["train"], rows=row[None])
    assert int(together.step) == int(single.step) == 4
    assert int(together.bad_step) == 0
    assert int(together.sums["count"]) == 64
    close(together, single)


def test_the_evaluation_batch_size_changes_nothing(setup: Any) -> None:
    program, data, arrays = setup
    state = init_state(program, data.image_shape, 0, 0)
    count = len(data.splits["test"].labels)

    def evaluate(size: int) -> tuple[dict[str, Any], np.ndarray]:
        parts = [eval_step(program, state, *arrays["test"], i, m) for i, m in order.padded_batches(count, size)]
        total = {name: sum(part[name].item() for part, _ in parts) for name in losses.zeros()}
        return total, np.concatenate([answers.predictions for _, answers in parts])[:count]

    (whole, expected), (parts, predicted) = evaluate(445), evaluate(100)
    assert whole["count"] == parts["count"] == 445
    assert (whole["top1"], whole["top5"]) == (parts["top1"], parts["top5"])
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert np.array_equal(predicted, expected)
    assert whole["top1"] == (expected == data.splits["test"].labels).sum()


def test_the_first_step_that_is_not_finite_is_remembered(setup: Any) -> None:
    program, data, arrays = setup
    state = init_state(program, data.image_shape, 0, 0)
    kernel = state.params["head"]["kernel"].at[0, 0].set(jnp.nan)
    state = state.replace(params=state.params | {"head": state.params["head"] | {"kernel": kernel}})
    for row in np.arange(32, dtype=np.int32).reshape(2, 1, 16):
        state = train_steps(program, state, *arrays["train"], rows=row)
        assert int(state.bad_step) == 1


def test_validation_images_are_a_share_of_every_class_and_leave_training() -> None:
    whole, part = (load(validation=share) for share in (0.0, 0.2))
    assert (pipeline.evaluated(whole), pipeline.evaluated(part)) == ("test", "validation")
    assert (list(whole.splits), list(part.splits)) == (["train", "test"], ["train", "test", "validation"])
    train, test, validation = part.splits.values()
    for label in range(10):
        count = (whole.splits["train"].labels == label).sum()
        held_out = (validation.labels == label).sum()
        assert held_out == int(count * 0.2)
        assert (train.labels == label).sum() == count - held_out
    rows = np.concatenate([train.images, validation.images]).reshape(1352, -1)
    assert np.array_equal(np.sort(rows, axis=0), np.sort(whole.splits["train"].images.reshape(1352, -1), axis=0))
    assert np.array_equal(test.images, whole.splits["test"].images)


def test_a_share_that_holds_no_image_of_a_class_is_refused() -> None:
    with pytest.raises(UsageError, match=r"holding out 0.001 of each class leaves no image of class 0"):
        load(validation=0.001)
