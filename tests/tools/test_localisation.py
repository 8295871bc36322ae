"""Boxes and points of maps, and the measures of how well they agree with true boxes: numbers worked out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf import UsageError, create_model
from jaxclf.config import DataConfig
from jaxclf.data.datasets import DigitScenes
from jaxclf.tools.localisation import (
    bilinear,
    energy_inside,
    intersection_over_union,
    largest_boxes,
    localise,
    max_box_accuracy,
    peaks,
    pointing_game,
)

NOTHING = [0, 0, 0, 0]


def painted(*boxes: tuple[int, int, int, int], values: tuple[float, ...] = (), side: int = 8) -> np.ndarray:
    """Return a map [1 side side] that is 0, and 1 or a value of its own in each box."""
    canvas = np.zeros((1, side, side))
    for (y0, x0, y1, x1), value in zip(boxes, values or (1.0,) * len(boxes), strict=True):
        canvas[0, y0:y1, x0:x1] = value
    return canvas


def test_a_map_is_enlarged_bilinearly_with_half_pixel_centres() -> None:
    # torch.nn.functional.interpolate([[0, 4]], size=(1, 4), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(bilinear(np.array([[0.0, 4.0]]), (1, 4)), [[0, 1, 3, 4]])
    np.testing.assert_allclose(bilinear(np.array([[[0.0], [4.0]]]), (4, 2)), [[[0, 0], [1, 1], [3, 3], [4, 4]]])


def test_the_box_is_that_of_the_largest_region_above_the_threshold() -> None:
    maps = painted((0, 0, 2, 2), (4, 3, 7, 8), values=(10.0, 3.0))
    assert largest_boxes(maps, 0.2).tolist() == [[4, 3, 7, 8]]
    assert largest_boxes(maps, 0.5).tolist() == [[0, 0, 2, 2]]
    assert largest_boxes(maps, 0.3).tolist() == [[0, 0, 2, 2]]  # above, not at, the threshold
    assert largest_boxes(maps - 5, 0.2).tolist() == [[4, 3, 7, 8]]  # between minimum and maximum


def test_regions_touch_at_corners_but_never_in_another_map() -> None:
    corner = painted((0, 0, 2, 2), (2, 2, 4, 4), side=5)
    above = painted((0, 0, 3, 5), side=5)
    maps = np.concatenate([corner, above, corner])
    assert largest_boxes(maps, 0.2).tolist() == [[0, 0, 4, 4], [0, 0, 3, 5], [0, 0, 4, 4]]


def test_the_first_of_equally_large_regions_and_of_equally_large_positions_is_taken() -> None:
    maps = painted((5, 0, 6, 3), (1, 4, 2, 7))
    assert largest_boxes(maps, 0.2).tolist() == [[1, 4, 2, 7]]
    assert peaks(maps, (8, 8)).tolist() == [[1.5, 4.5]]


def test_a_point_is_the_centre_of_the_largest_position_in_pixels_of_the_image() -> None:
    maps = np.zeros((1, 4, 2))
    maps[0, 3, 1] = -1.0
    maps[0, 2, 0] = 1.0
    assert peaks(maps, (32, 32)).tolist() == [[20.0, 8.0]]
    assert peaks(maps, (48, 4)).tolist() == [[30.0, 1.0]]


def test_a_constant_map_has_no_place_and_earns_nothing() -> None:
    for constant in (0.0, -3.0):
        maps, truth = np.full((1, 8, 8), constant), np.array([[[0, 0, 8, 8], [0, 0, 1, 1]]])
        assert largest_boxes(maps, 0.0).tolist() == [NOTHING]
        point = peaks(maps, (8, 8))
        assert np.isnan(point).all()
        assert pointing_game(point, truth, tolerance=100.0).tolist() == [False]
        assert max_box_accuracy(maps, truth).tolist() == [0, 0, 0]
        assert energy_inside(maps, truth).tolist() == [0]
    assert energy_inside(np.ones((1, 8, 8)), np.array([[[0, 0, 4, 4]]])).tolist() == [0.25]  # and no less than its area


def test_intersection_over_union_of_boxes_worked_out_by_hand() -> None:
    truth = np.array([[[0, 0, 2, 2], [1, 1, 3, 4], [2, 0, 4, 2], NOTHING]])
    # shared 4, 1 and 0 of unions 4, 9 and 8
    np.testing.assert_allclose(intersection_over_union(np.array([[0, 0, 2, 2]]), truth), [[1, 1 / 9, 0, 0]])
    np.testing.assert_allclose(intersection_over_union(np.array([[0, 0, 3, 4]]), truth), [[1 / 3, 1 / 2, 1 / 7, 0]])
    assert intersection_over_union(np.array([NOTHING]), truth).tolist() == [[0, 0, 0, 0]]
    np.testing.assert_allclose(intersection_over_union(np.array([[0, 0, 3, 3]]), np.array([[[1.5, 0, 3, 3]]])), [[0.5]])


def test_a_point_hits_any_of_the_true_boxes_or_comes_as_near_as_is_tolerated() -> None:
    truth = np.array([[[2, 2, 4, 6], [20, 20, 22, 22], NOTHING]])

    def hit(y: float, x: float, tolerance: float = 0.0) -> bool:
        return bool(pointing_game(np.array([[y, x]]), truth, tolerance=tolerance)[0])

    assert hit(3.5, 5.5)
    assert hit(21.5, 20.5)
    assert not hit(3.5, 6.5)
    assert hit(3.5, 6.5, 0.5)
    assert hit(7.0, 10.0, 5.0)  # 3 below and 4 beside the first
    assert not hit(7.0, 10.0, 4.9)
    assert not hit(0.0, 0.0, 1.0)  # no box is no place


def test_one_threshold_serves_all_maps_and_the_best_is_taken_at_each_overlap() -> None:
    # Above .05 to .45 the box is 4x8, IoU 1 and .5; above .5 to .95 it is 4x4, IoU .5 and 1.
    maps = painted((0, 0, 4, 8), (0, 0, 4, 4), values=(0.5, 1.0)).repeat(4, axis=0)
    wide, narrow = [0, 0, 4, 8], [0, 0, 4, 4]
    truth = np.array([[wide, NOTHING], [narrow, NOTHING], [narrow, NOTHING], [NOTHING, NOTHING]])
    assert max_box_accuracy(maps, truth).tolist() == [0.75, 0.75, 0.5]
    assert max_box_accuracy(maps, truth, thresholds=(0.2,)).tolist() == [0.75, 0.75, 0.25]
    two = np.array([[wide, narrow], [wide, narrow], [narrow, wide], [NOTHING, narrow]])
    assert max_box_accuracy(maps, two, overlaps=(1.0,)).tolist() == [1.0]


def test_energy_is_the_positive_part_inside_the_union_of_the_boxes() -> None:
    maps = painted((0, 0, 2, 4), (6, 6, 8, 8), (4, 0, 6, 8), values=(1.0, 4.0, -9.0))  # energies 8 and 16
    assert energy_inside(maps, np.array([[[0, 0, 2, 4]]])).tolist() == [8 / 24]
    assert energy_inside(maps, np.array([[[0, 0, 2, 3], [0, 1, 2, 4]]])).tolist() == [8 / 24]
    assert energy_inside(maps, np.array([[[0, 0, 2, 4], [6, 6, 8, 7]]])).tolist() == [16 / 24]
    # A box of halves holds the pixels whose centres it holds, the first edge among them.
    assert energy_inside(maps, np.array([[[0.0, 0.5, 2.0, 3.5]]])).tolist() == [6 / 24]


SCENES = DigitScenes(DataConfig("digit_scenes")).scenes("test")


def everything(maps: np.ndarray, truth: np.ndarray) -> list[list[float]]:
    """Return every measure of maps [n h w]."""
    points = peaks(maps, (maps.shape[1], maps.shape[2]))
    hits = pointing_game(points, truth)
    return [hits.tolist(), max_box_accuracy(maps, truth).tolist(), energy_inside(maps, truth).tolist()]


def of_scenes(chosen: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return maps that are 1 in the boxes of some scenes, more so in the first one, and these boxes."""
    truth = SCENES.boxes[chosen]
    maps = np.zeros((len(truth), 32, 32))
    for number, boxes in enumerate(truth):
        for place, (y0, x0, y1, x1) in enumerate(boxes):
            maps[number, y0:y1, x0:x1] = 1.0 if place else 2.0
    return maps, truth


def test_a_perfect_map_earns_everything_in_every_measure() -> None:
    maps, truth = of_scenes(slice(0, 2000, 10))
    hits, boxes, energy = everything(maps, truth)
    assert hits == [True] * 200
    assert boxes == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(energy, 1, rtol=0, atol=1e-12)


def test_moving_scene_and_map_together_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    maps, truth = of_scenes(slice(0, 2000, 40))
    maps = np.pad(np.clip(maps + 2 * rng.normal(size=maps.shape), 0, None), ((0, 0), (8, 8), (8, 8)))
    truth = np.where(truth.any(-1, keepdims=True), truth + 8, 0)
    base = everything(maps, truth)
    assert 0 < np.mean(base[0]) < 1  # not every point hits, so that a change would show
    for dy, dx in ((8, -8), (-3, 5), (-8, 0)):
        moved = np.where(truth.any(-1, keepdims=True), truth + np.array([dy, dx, dy, dx]), 0)
        found = everything(np.roll(maps, (dy, dx), (1, 2)), moved)
        assert found[:2] == base[:2]
        np.testing.assert_allclose(found[2], base[2], rtol=1e-12)


@pytest.fixture(scope="module")
def network() -> tuple[Any, Any, np.ndarray]:
    """Return a tiny network that ends in three maps, its variables, and two images of noise."""
    model = create_model("tests.tiny:Tiny", num_classes=3, head="identity", maps=3)
    images = np.random.default_rng(3).normal(size=(2, 8, 8, 1)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.asarray(images)), images


def test_classes_are_localised_by_their_own_maps(network: tuple[Any, Any, np.ndarray]) -> None:
    model, variables, images = network
    classes = np.array([[2, 0], [1, 1]])
    found = localise(model, variables, images, classes, threshold=0.5)
    maps = np.asarray(model.apply(variables, jnp.asarray(images), method="class_maps"))  # [2 4 4 3]
    for n, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own = maps[n, ..., classes[n, t]]
        assert found.scores[n, t] == pytest.approx(own.mean(), abs=1e-6)
        row, column = divmod(int(own.argmax()), 4)
        assert found.points[n, t].tolist() == [2 * row + 1, 2 * column + 1]
        assert found.boxes[n, t].tolist() == largest_boxes(bilinear(own[np.newaxis], (8, 8)), 0.5)[0].tolist()
    assert found.boxes.shape == (2, 2, 4)


def test_what_cannot_be_localised_is_refused(network: tuple[Any, Any, np.ndarray]) -> None:
    model, variables, images = network
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match=rf"^threshold is {threshold} but must be from 0 to below 1"):
            localise(model, variables, images, np.array([[0], [1]]), threshold=threshold)
    with pytest.raises(UsageError, match=r"classes \[3\] given, but the model has 0 to 2"):
        localise(model, variables, images, np.array([[0], [3]]))
    with pytest.raises(UsageError, match=r"unknown method 'cam'"):
        localise(model, variables, images, np.array([[0], [1]]), method="cam")
