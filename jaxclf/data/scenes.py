"""Scenes: digits at drawn places of a larger image, among fragments of digits of other classes. Pure, but for `rng`."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from jaxclf.data.kinds import Images
from jaxclf.data.transforms import resize_images

SIDE = 32
"""Side of a scene in pixels."""
DIGIT_SIDES = (9, 10, 11, 12)
"""Sides in pixels that a digit is enlarged to."""
FRAGMENT_SIDES = (4, 5)
"""Sides in pixels of the windows that fragments are."""
FRAGMENTS = 3
"""Most fragments in a scene; there is at least one."""
NONE = -1
"""Class of an object that is not there; its box is (0, 0, 0, 0)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Images with m places for objects each, of which the first is taken."""

    images: UInt8[np.ndarray, "n h w c"]
    boxes: Int32[np.ndarray, "n m 4"]
    """y0, x0, y1, x1 in pixels, half-open: the smallest box that holds all of a digit that is not black."""
    classes: Int32[np.ndarray, "n m"]
    """Class of each object, `NONE` for one that is not there."""

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """The class of each image's first object."""
        return self.classes[:, 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Enlarged:
    """Digits, sorted by their classes, in each of `DIGIT_SIDES`."""

    pixels: UInt8[np.ndarray, "s d h w"]
    """Zeros follow a digit that is smaller than the largest side."""
    boxes: Int32[np.ndarray, "s d 4"]
    """The smallest box that holds all of a digit that is not black."""
    sizes: Int[np.ndarray, " k"]
    """Number of digits of each class."""

    def of_classes(self, classes: Int32[np.ndarray, "n m"], rng: np.random.Generator) -> Int[np.ndarray, "n m"]:
        """Draw a digit of each class, and any for `NONE`."""
        starts = np.cumsum(self.sizes) - self.sizes
        return starts[classes] + (rng.random(classes.shape) * self.sizes[classes]).astype(np.int64)


def enlarge(digits: Images) -> Enlarged:
    """Enlarge digits bilinearly to each side."""
    order, most = np.argsort(digits.labels, kind="stable"), max(DIGIT_SIDES)
    pixels = np.stack(
        [
            np.pad(resize_images(digits.images[order], side)[..., 0], ((0, 0), (0, most - side), (0, most - side)))
            for side in DIGIT_SIDES
        ]
    )  # [s d h w]
    ends = []
    for axis in (3, 2):
        seen = np.any(pixels, axis=axis)  # [s d most]
        ends.append((seen.argmax(-1), most - seen[..., ::-1].argmax(-1)))
    (top, bottom), (left, right) = ends
    boxes = np.stack([top, left, bottom, right], axis=-1).astype(np.int32)
    return Enlarged(pixels, boxes, np.bincount(digits.labels))


def draw_scenes(digits: Enlarged, classes: Int32[np.ndarray, "n m"], rng: np.random.Generator) -> Scenes:
    """Draw a scene for each row of classes: a digit of each, and one to three fragments of digits of other classes.

    What is drawn: the digits and their sides, the fragments' classes, digits, sides and windows, then all places
    together, anew until no two squares overlap.
    """
    n, m = classes.shape
    absent = np.asarray(classes == NONE)[..., np.newaxis]
    scale = rng.integers(len(DIGIT_SIDES), size=(n, m))
    chosen = digits.of_classes(classes, rng)
    fragments, windows = _fragments(digits, classes, rng)
    sides = np.where(absent[..., 0], 0, np.asarray(DIGIT_SIDES)[scale])  # [n m]
    corners = place(np.concatenate([sides, windows], axis=1), rng)  # [n m+f 2]
    images = np.zeros((n, SIDE, SIDE), np.uint8)
    _paint(images, np.where(absent[..., np.newaxis], 0, digits.pixels[scale, chosen]), corners[:, :m])
    _paint(images, fragments, corners[:, m:])
    boxes = digits.boxes[scale, chosen] + np.tile(corners[:, :m], 2)
    boxes = np.where(absent, 0, boxes)
    return Scenes(images[..., np.newaxis], boxes.astype(np.int32), classes)


def _fragments(
    digits: Enlarged, classes: Int32[np.ndarray, "n m"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "n f a a"], Int[np.ndarray, "n f"]]:
    """Draw windows of digits of classes that a scene does not have; return them and their sides, 0 for none."""
    n, m = classes.shape
    ranks = rng.random((n, FRAGMENTS, len(digits.sizes)))
    for place in range(m):
        ranks[np.arange(n), :, classes[:, place]] += classes[:, place, None] != NONE
    chosen = digits.of_classes(ranks.argmin(-1).astype(np.int32), rng)
    scale = rng.integers(len(DIGIT_SIDES), size=chosen.shape)
    sides = rng.choice(FRAGMENT_SIDES, chosen.shape)
    offsets = (rng.random((n, FRAGMENTS, 2)) * (np.asarray(DIGIT_SIDES)[scale] - sides + 1)[..., None]).astype(np.int64)
    sides[np.arange(FRAGMENTS) >= rng.integers(1, FRAGMENTS + 1, (n, 1))] = 0
    steps = np.arange(max(FRAGMENT_SIDES))
    inside = steps < sides[..., None]  # [n f a]
    rows, columns = (np.where(inside, offsets[..., axis, None] + steps, 0) for axis in (0, 1))
    pixels = digits.pixels[scale[..., None, None], chosen[..., None, None], rows[..., None], columns[..., None, :]]
    return np.where(inside[..., None] & inside[..., None, :], pixels, 0).astype(np.uint8), sides


def place(sides: Int[np.ndarray, "n p"], rng: np.random.Generator) -> Int[np.ndarray, "n p 2"]:
    """Draw the upper left corners of p squares inside each scene, anew until no two overlap; side 0 is no square."""
    corners = np.zeros((*sides.shape, 2), np.int64)
    pairs = np.triu_indices(sides.shape[1], 1)
    left = np.arange(len(sides))
    while len(left):
        own = sides[left]
        corners[left] = drawn = rng.integers(SIDE + 1 - np.repeat(own[..., None], 2, axis=-1))
        left = left[_overlap(drawn, own, pairs)]
    return corners


def _overlap(
    corners: Int[np.ndarray, "n p 2"], sides: Int[np.ndarray, "n p"], pairs: tuple[np.ndarray, np.ndarray]
) -> Bool[np.ndarray, " n"]:
    """Return which scenes have two squares that overlap, of pairs of places."""
    own, other = (sides[:, chosen] for chosen in pairs)
    apart = corners[:, pairs[0]] - corners[:, pairs[1]]  # [n pairs 2]
    both = (apart < other[..., np.newaxis]) & (-apart < own[..., np.newaxis])
    return np.any(both[..., 0] & both[..., 1] & (own > 0) & (other > 0), axis=1)


def _paint(
    images: UInt8[np.ndarray, "n h w"], pieces: UInt8[np.ndarray, "n p a a"], corners: Int[np.ndarray, "n p 2"]
) -> None:
    """Put pieces into images at their corners; what is black, or outside of the image, changes nothing."""
    room = pieces.shape[-1]
    wide = np.pad(images, ((0, 0), (0, room), (0, room)))
    steps, number = np.arange(room), np.arange(len(images))[:, None, None]
    for place in range(pieces.shape[1]):
        rows, columns = (corners[:, place, axis, None] + steps for axis in (0, 1))  # [n a]
        wide[number, rows[:, :, None], columns[:, None, :]] += pieces[:, place]
    images[:] = wide[:, :SIDE, :SIDE]
