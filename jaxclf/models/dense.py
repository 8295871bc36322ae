"""A classifier slid over images larger than those it answers for: a map of answers for little more than one pass.

Position (y, x) of the map is the window of `side` pixels that begins at pixel (y s, x s), where s is the network's
stride: the backbone computes the last map of the whole image, and pool and head answer at every window of as many
positions of it as an image of `side` pixels has. fc6 and fc7 of AlexNet and VGG and the hidden layers of LeNet are
convolutions of the backbone, so their windows are one position, and nothing is pooled to a fixed size in between, as
torchvision's AlexNet and VGG do at sizes other than 224. A pool inside the network slides as the last one does.

All that follows the last convolution over an area answers exactly as it does for that window of the large map. That the
answer is also the one for the crop of `side` pixels is another matter:

    no padding, nothing global   equal at every position (`lenet5`, `lenet_like`)
    padding                      a crop has zeros around it, a window the features of the image around it: positions of
                                 the last map whose receptive field stays inside the window are equal, others are not
    over the whole map           squeeze-and-excitation and GroupNorm see the image instead of the window

How much padding is worth: between the logits of windows and of crops, the root mean square is 0.37 of their standard
deviation for EfficientNet-Lite0's published weights on four photographs at short sides of 224, 256 and 288 (123
windows, 89 % of which have the crop's class), and 0.20 for AlexNet and 0.27 for VGG-11 with random weights on noise.

Sources: Sermanet et al. 2013, arXiv 1312.6229, section 3.3 (OverFeat); Simonyan & Zisserman 2014, section 3.2.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models.attribution import class_maps
from jaxclf.models.backbone import Backbone
from jaxclf.models.classifier import Classifier

DISTANCE = 2880
"""Pixels that the stride is measured over, 2^6 3^2 5: a multiple of the strides that networks have."""


class SlidingClassifier(Classifier, kw_only=True):
    """A classifier, with its variables, whose class maps are its answers at every window of an image."""

    side: int
    """Side of a window, pixels."""
    window: tuple[int, int]
    """Positions of the last map that a window has."""
    stride: int
    """Pixels from one window to the next."""

    def class_maps(self, images: Float[Array, "n h w c"]) -> Float[Array, "n y x k"]:
        """Return the logits of every window; images of `side` pixels have one, whose logits are those of the image.

        Raises `UsageError` for images smaller than a window.
        """
        _check_fit(self.side, *images.shape[1:3])
        maps = _windows(self._features(images, False), *self.window)  # [n y x i j d]
        features = maps.reshape(-1, *maps.shape[3:])
        # Each window is an image of its own here: a head that divides by a norm takes that of the window.
        if self.head.before_pool:
            logits = self.pool(self._rectify(self.head(features)))
        else:
            logits = self.head(self.pool(self._rectify(features)))
        return self._widen(logits.reshape(*maps.shape[:3], -1))


def convolutionise(model: Classifier, side: int | None = None) -> SlidingClassifier:
    """Return a classifier that slides over larger images, with the variables of `model`.

    `side` is the side in pixels of the images that `model` answers for; None: of those that its backbone was designed
    for. Raises `UsageError` for a side that the backbone does not take, and where its map does not grow by a position
    for every so many pixels, so that it has no stride.
    """
    body = model.backbone
    side = body.image_size if side is None else side
    if body.pools_inside:
        body = body.clone(inner_pool=_map_size(body.clone(maps=1), side)[0])
    window = _map_size(body, side)
    more = _map_size(body, side + DISTANCE)[0] - window[0]
    stride = DISTANCE // more if more else 0
    if not stride or DISTANCE % more or _map_size(body, side + stride) != (window[0] + 1, window[1] + 1):
        raise UsageError(
            f"{type(body).__name__} cannot slide: images of {side} and {side + DISTANCE} pixels give maps of "
            f"{window[0]} and {window[0] + more} positions, which is no whole number of pixels a position"
        )
    names = set(Classifier.__dataclass_fields__) - {"backbone", "parent", "name"}
    fields: dict[str, Any] = {name: getattr(model, name) for name in names}
    return SlidingClassifier(body, **fields, side=side, window=window, stride=stride)


def stitch(
    model: SlidingClassifier,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "n h w c"],
    *,
    step: int = 1,
) -> Float[np.ndarray, "n y x k"]:
    """Return the logits of the windows that begin at every `step`-th pixel, (y step, x step): shift and stitch.

    The image is shifted by 0, step, 2 step ... pixels, less than the stride, along both axes, and the class maps of the
    (stride / step)^2 shifts are interleaved. At most four programs are compiled for a shape, as shifts differ by one
    window at most. Every window lies inside the image; nothing is padded.

    OverFeat (section 3.3, figure 3) shifts the windows of its last pool instead, 3x3 at offsets 0 to 2: without
    padding, an offset of o positions there is a shift of the image by o times the stride below that pool, so
    that its answers are those of step = stride / 3. It computes the layers below once, not nine times.

    Raises `UsageError` for a step that does not divide the stride, and for images smaller than a window.
    """
    shifts = count_shifts(model, step)
    _check_fit(model.side, *images.shape[1:3])
    rows, columns = ((length - model.side) // step + 1 for length in images.shape[1:3])
    stitched = np.empty((len(images), rows, columns, model.head.num_classes), np.float32)
    for row, column in itertools.product(range(min(shifts, rows)), range(min(shifts, columns))):
        part = stitched[:, row::shifts, column::shifts]
        top, left = row * step, column * step
        height, width = (model.side + (count - 1) * model.stride for count in part.shape[1:3])
        shifted = images[:, top : top + height, left : left + width]
        part[...] = class_maps(model, variables, shifted)
    return stitched


def finest(model: Classifier) -> SlidingClassifier:
    """Return a classifier whose windows are as small as the network takes: its stride, or the size it is designed for.

    Raises `UsageError` as `convolutionise` does.
    """
    designed = convolutionise(model)
    try:
        return convolutionise(model, designed.stride)
    except UsageError:  # too small for the network, as 32 pixels for VGG's fc6
        return designed


def fine_maps(
    model: SlidingClassifier,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "n h w c"],
    *,
    step: int,
) -> Float[np.ndarray, "n y x k"]:
    """Return class maps whose positions are `step` pixels apart: the logits of the window around each.

    The images' edge pixels are repeated around them, so that each square of `step` pixels has its window; rows and
    columns of pixels that fill no square have none. The mean of such a map is not the logit of the image. Source:
    shift-and-stitch, as in Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation", CVPR
    2015, arXiv 1411.4038, section 3.2.

    Raises `UsageError` for a step that does not divide the stride.
    """
    count_shifts(model, step)
    margin = (model.side - step) // 2, model.side - step - (model.side - step) // 2
    return stitch(model, variables, np.pad(images, ((0, 0), margin, margin, (0, 0)), "edge"), step=step)


def count_shifts(model: SlidingClassifier, step: int) -> int:
    """Return how many shifts along an axis bring windows `step` pixels apart.

    Raises `UsageError` for a step that does not divide the stride.
    """
    if step < 1 or model.stride % step:
        raise UsageError(f"step is {step} but must divide the stride of the network, {model.stride} pixels")
    return model.stride // step


def _map_size(backbone: Backbone, side: int) -> tuple[int, int]:
    """Return the positions of the last map of images of `side` pixels, whatever their channels; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    features: Any = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)[0]
    return features.shape[1:3]


def _windows(x: Float[Array, "n h w d"], height: int, width: int) -> Float[Array, "n y x i j d"]:
    """Return every window of so many positions of a map."""
    rows, columns = (
        np.add.outer(np.arange(length - side + 1), np.arange(side))
        for length, side in zip(x.shape[1:3], (height, width), strict=True)
    )
    return x[:, rows][:, :, :, columns].transpose(0, 1, 3, 2, 4, 5)  # [n y i w d], then [n y i x j d]


def _check_fit(side: int, height: int, width: int) -> None:
    if min(height, width) < side:
        raise UsageError(f"images are {height}x{width} but must be {side}x{side} or larger: a window has that side")
