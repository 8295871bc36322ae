"""One image from a file to the network's input: PIL's pixels, exactly as torchvision on PIL images makes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from jaxclf.config import UsageError

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images; part of what a weight file of ours holds.

    Without `crop_padding`: resize the short side, then cut the centre square (torchvision's Resize and CenterCrop).
    With it: cut the centre square of crop / (crop + crop_padding) of the short side, then resize it to `crop`
    (TensorFlow's ImageNet evaluation); `resize` is None then.
    """

    resize: int | None
    """Short side in pixels after resizing; None leaves the image as it is, or stands beside `crop_padding`."""
    crop: int
    """Side of the square that the network sees, pixels."""
    crop_padding: int | None
    """Pixels around the crop, counted at the crop's scale."""
    interpolation: Literal["bilinear", "bicubic"]
    """PIL's filter, which smooths when it shrinks."""
    mean: tuple[float, ...]
    """Per channel, on the 0..1 scale; one number is a network on grey images."""
    std: tuple[float, ...]
    """Per channel, on the 0..1 scale."""

    def __post_init__(self) -> None:
        rules = [
            ("resize", self.resize, self.resize is None or self.resize >= 1, "None or at least 1"),
            ("crop", self.crop, self.crop >= 1, "at least 1"),
            ("crop_padding", self.crop_padding, self.crop_padding is None or self.crop_padding >= 0, "None or >= 0"),
            ("interpolation", self.interpolation, self.interpolation in FILTERS, f"one of {', '.join(FILTERS)}"),
            ("mean", self.mean, len(self.mean) in (1, 3), "1 or 3 numbers"),
            ("std", self.std, len(self.std) == len(self.mean) and min(self.std) > 0, "as long as mean, above 0"),
        ]
        faults = [f"{name} is {value!r} but must be {allowed}" for name, value, good, allowed in rules if not good]
        if self.crop_padding is not None and self.resize is not None:
            faults.append(f"resize is {self.resize} beside crop_padding {self.crop_padding}, which decides the size")
        if faults:
            raise UsageError("preprocessing: " + "; ".join(faults))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`, also after JSON; missing or unknown fields raise `UsageError`.

        >>> Preprocessing.from_dict(TORCHVISION.to_dict()) == TORCHVISION
        True
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(names):
            raise UsageError(f"preprocessing has the fields {sorted(values)}; it needs {sorted(names)}")
        fields: dict[str, Any] = dict(values)
        fields["mean"], fields["std"] = tuple(fields["mean"]), tuple(fields["std"])
        return cls(**fields)


TORCHVISION = Preprocessing(256, 224, None, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The evaluation of torchvision's first ImageNet weights (references/classification/presets.py, 0.28)."""
EFFICIENTNET_LITE = Preprocessing(None, 224, 32, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
"""(x - 127) / 128 on 0..255 (tensorflow/tpu, models/official/efficientnet/lite)."""
PREPROCESSING = {"EfficientNetLite0": EFFICIENTNET_LITE}
"""By backbone class, where it is not TORCHVISION."""


def default_preprocessing(backbone: Any) -> Preprocessing | None:
    """Return what published ImageNet weights of a backbone expect; None for those of small images.

    Their data sets decide: `DatasetInfo` has mean and std.
    """
    found = PREPROCESSING.get(type(backbone).__name__, TORCHVISION)
    return found if backbone.image_size == found.crop else None


def resize(image: Image.Image, short_side: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize so that the short side has `short_side` pixels; the long one is rounded down (torchvision's Resize)."""
    short, long = min(image.size), max(image.size)
    if short == short_side:
        return image
    other = int(short_side * long / short)
    size = (short_side, other) if image.width <= image.height else (other, short_side)
    return image.resize(size, FILTERS[interpolation])


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Cut the centre square of `side` pixels; a smaller image is padded with zeros (torchvision's CenterCrop)."""
    left, top = (-((side - length) // 2) if side > length else round((length - side) / 2.0) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def padded_center_crop(image: Image.Image, side: int, padding: int, interpolation: str = "bicubic") -> Image.Image:
    """Cut the centre square of side / (side + padding) of the short side and resize it to `side` pixels.

    TensorFlow's ImageNet evaluation (decode_and_center_crop in tensorflow/tpu's preprocessing.py), with PIL's filter.
    """
    square = int(side / (side + padding) * min(image.size))
    left, top = ((length - square + 1) // 2 for length in image.size)
    return image.crop((left, top, left + square, top + square)).resize((side, side), FILTERS[interpolation])


def open_image(file: Any, channels: int) -> Image.Image:
    """Read an image file as RGB (3 channels) or grey (1), 8 bits, upright by its EXIF orientation.

    Transparency is dropped, as torchvision's loader does; of 16 bits the upper 8 are kept; of several frames the
    first is read. Raises OSError and whatever else PIL raises for files it cannot decode, and `UsageError` for
    images of floats, whose range nobody knows.
    """
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode == "F":
        raise UsageError("its pixels are floats, whose range is unknown")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # convert("RGB") warns about some palettes with transparency
    return image.convert("RGB" if channels == 3 else "L")


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Float[np.ndarray, "h w c"]:
    """Return the network's input: resized, cropped, (pixels / 255 - mean) / std, float32."""
    if preprocessing.crop_padding is not None:
        image = padded_center_crop(image, preprocessing.crop, preprocessing.crop_padding, preprocessing.interpolation)
    else:
        if preprocessing.resize is not None:
            image = resize(image, preprocessing.resize, preprocessing.interpolation)
        image = center_crop(image, preprocessing.crop)
    pixels = np.asarray(image, np.float32).reshape(preprocessing.crop, preprocessing.crop, -1) / np.float32(255)
    return (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
