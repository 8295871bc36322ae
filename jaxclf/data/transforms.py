"""One image from a file to the network's input: PIL's pixels, exactly as torchvision on PIL images makes them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxclf.config import DataConfig
from jaxclf.config.fields import Bound, Count, Natural, build, faults
from jaxclf.data.decoding import decode, to_array
from jaxclf.errors import UsageError

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Channels = Annotated[int, Bound(lambda value: value in (1, 3), "1 or 3")]
Interpolation = Literal["bilinear", "bicubic"]
Range = Annotated[
    tuple[float, float], Bound(lambda value: 0 < value[0] <= value[1], "two numbers above 0, the lower first")
]


def _require_allowed(part: Any, *more: str) -> None:
    """Raise one `UsageError` with the fields whose values their types do not allow, and with other faults."""
    if wrong := [*faults(part), *more]:
        raise UsageError(f"{type(part).__name__}: {'; '.join(wrong)}")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Steps from an image to a network's input; our weight files hold them.

    Without `crop_padding`: resize the short side, then cut the centre square (torchvision's Resize and CenterCrop).
    With it: cut the centre square of crop / (crop + crop_padding) of the short side, then resize it to `crop`
    (TensorFlow's ImageNet evaluation); `resize` is None then.
    """

    resize: Count | None
    """Short side in pixels after resizing; None leaves the image as it is, or stands beside `crop_padding`."""
    crop: Count
    """Side of the square that the network sees, pixels."""
    crop_padding: Natural | None
    """Pixels around the crop, counted at the crop's scale."""
    interpolation: Interpolation
    """PIL's filter, which smooths when it shrinks."""
    mean: Annotated[tuple[float, ...], Bound(lambda mean: len(mean) in (1, 3), "1 or 3 numbers")]
    """Per channel, on the 0..1 scale; one number is a network on grey images."""
    std: Annotated[tuple[float, ...], Bound(lambda std: min(std, default=0) > 0, "above 0")]
    """Per channel, on the 0..1 scale."""

    def __post_init__(self) -> None:
        more: list[str] = []
        if len(self.std) != len(self.mean):
            more.append(f"std is {self.std!r} but must be as long as mean")
        if self.crop_padding is not None and self.resize is not None:
            more.append(f"resize is {self.resize} beside crop_padding {self.crop_padding}, which decides the size")
        _require_allowed(self, *more)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of `dataclasses.asdict`, also after JSON; missing or unknown fields raise `UsageError`.

        >>> Preprocessing.from_dict(dataclasses.asdict(TORCHVISION)) == TORCHVISION
        True
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(names):
            raise UsageError(f"preprocessing has the fields {sorted(values)}; it needs {sorted(names)}")
        return build(cls, values)


TORCHVISION = Preprocessing(256, 224, None, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The evaluation of torchvision's first ImageNet weights (references/classification/presets.py, 0.28)."""
EFFICIENTNET_LITE = Preprocessing(None, 224, 32, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
"""(x - 127) / 128 on 0..255 (tensorflow/tpu, models/official/efficientnet/lite)."""
PREPROCESSING: dict[str, Preprocessing | None] = {
    **{
        f"efficientnet_lite{number}": dataclasses.replace(EFFICIENTNET_LITE, crop=crop)
        for number, crop in enumerate((224, 240, 260))
    },
    **{
        f"efficientnet_b{number}": dataclasses.replace(TORCHVISION, resize=short, crop=crop, interpolation="bicubic")
        for number, (short, crop) in enumerate(
            ((256, 224), (256, 240), (288, 288), (320, 300), (384, 380), (456, 456), (528, 528), (600, 600))
        )
    },
    # torchvision's weights of these two were trained by TensorFlow, on images from -1 to 1 (`transform_input`).
    "googlenet": dataclasses.replace(TORCHVISION, mean=(0.5,) * 3, std=(0.5,) * 3),
    "inception_v3": Preprocessing(342, 299, None, "bilinear", (0.5,) * 3, (0.5,) * 3),
    **dict.fromkeys(("googlenet_paper", "bninception")),  # BGR
    "efficientnet_lite0_timm": dataclasses.replace(TORCHVISION, interpolation="bicubic"),
    **{
        kind: dataclasses.replace(TORCHVISION, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
        for kind in ("tf_efficientnet_lite0", "mobilenet_v1_timm")
    },
    **{  # timm's weights (timm/models/resnetv2.py and nfnet.py, 1.0.31)
        f"bit_{size}": dataclasses.replace(TORCHVISION, mean=(0.5,) * 3, std=(0.5,) * 3)
        for size in ("r50x1", "r50x3", "r101x1", "r101x3", "r152x2", "r152x4")
    },
    **{
        kind: dataclasses.replace(TORCHVISION, resize=284, crop=256, interpolation="bicubic")
        for kind in ("nfnet_f0", "dm_nfnet_f0")
    },
    **{f"shufflenet_v2_{size}_megvii": None for size in ("x0_5", "x1_0", "x1_5", "x2_0")},  # BGR
}
"""By a backbone's `kind`, where it is not TORCHVISION; None where the steps above cannot say it."""


def default_preprocessing(backbone: Any) -> Preprocessing | None:
    """Return the preprocessing of a backbone's published ImageNet weights; None for backbones of small images.

    Small images take the mean and std of their data set's `Facts`.
    """
    standard = TORCHVISION if backbone.image_size == TORCHVISION.crop else None
    return PREPROCESSING.get(getattr(backbone, "kind", ""), standard)


def resize(image: Image.Image, short_side: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize so that the short side has `short_side` pixels; the long one is rounded down (torchvision's Resize)."""
    short, long = min(image.size), max(image.size)
    if short == short_side:
        return image
    other = int(short_side * long / short)
    size = (short_side, other) if image.width <= image.height else (other, short_side)
    return image.resize(size, FILTERS[interpolation])


def resize_images(images: UInt8[np.ndarray, "n h w c"], side: int) -> UInt8[np.ndarray, "n side side c"]:
    """Resize images to squares as torchvision's Resize does on PIL images (bilinear), channel by channel."""
    planes = np.moveaxis(images, 3, 1).reshape(-1, *images.shape[1:3])
    small = [np.asarray(Image.fromarray(plane).resize((side, side), FILTERS["bilinear"])) for plane in planes]
    return np.moveaxis(np.stack(small).reshape(len(images), images.shape[3], side, side), 1, 3)


def resize_side(data: DataConfig) -> int:
    """Return the short side in pixels that streamed test images are resized to before the centre crop."""
    assert data.image_size is not None
    return data.resize or round(data.image_size * 8 / 7)


def pil_filter(data: DataConfig) -> Interpolation:
    """Return the filter that streamed images are resized with."""
    return data.interpolation or "bilinear"


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


def open_image(file: str | Path, channels: int) -> Image.Image:
    """Read an image file as RGB (3 channels) or grey (1) as training does; raises OSError and what `decode` raises."""
    return to_image(decode(Path(file).read_bytes(), channels))


def to_image(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Return RGB or grey pixels for PIL."""
    return _cut(pixels, Box(0, 0, *pixels.shape[:2]))


def resize_center_crop(image: Image.Image, resize_to: int, side: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize the short side to `resize_to` pixels, then cut the centre square of `side` pixels."""
    return center_crop(resize(image, resize_to, interpolation), side)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Float[np.ndarray, "h w c"]:
    """Return the network's input: resized, cropped, (pixels / 255 - mean) / std, float32."""
    return standardise(to_array(square(image, preprocessing)), preprocessing)


def square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the square of an image that the network sees."""
    side, interpolation = preprocessing.crop, preprocessing.interpolation
    if preprocessing.crop_padding is not None:
        return padded_center_crop(image, side, preprocessing.crop_padding, interpolation)
    if preprocessing.resize is not None:
        return resize_center_crop(image, preprocessing.resize, side, interpolation)
    return center_crop(image, side)


def standardise(pixels: UInt8[np.ndarray, "h w c"], preprocessing: Preprocessing) -> Float[np.ndarray, "h w c"]:
    """Return (pixels / 255 - mean) / std, float32."""
    values = pixels.astype(np.float32) / np.float32(255)
    return (values - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_random_resized_crop(
    rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw a box inside an image: its share of the area uniform in `scale`, width / height log-uniform in `ratio`.

    The first of ten draws that fits is placed uniformly; without one, it is the largest centred box within `ratio`.
    The distribution of torchvision's RandomResizedCrop.get_params (transforms/transforms.py, 0.28), after Szegedy et
    al. 2015, section 6.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return Box(top, left, rows, columns)
    # At least one pixel: where the ratio leaves torchvision none of a one-pixel strip, its image is black.
    rows = height if width / height >= ratio[0] else max(1, round(width / ratio[0]))
    columns = width if width / height <= ratio[1] else max(1, round(height * ratio[1]))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Training's transform: a random box, resized to a square, mirrored half the time.

    The pixels of torchvision's RandomResizedCrop and RandomHorizontalFlip on PIL images for the same box.
    """

    size: Count
    """Side of the result, pixels."""
    _: dataclasses.KW_ONLY
    scale: Range = (0.08, 1.0)
    """Least and largest share of the image's area."""
    ratio: Range = (3 / 4, 4 / 3)
    """Least and largest width / height of the box."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    interpolation: Interpolation = "bilinear"
    """PIL's filter, which smooths when it shrinks."""
    channels: Channels = 3
    """Channels of the result: 3 is RGB, 1 is grey."""

    def __post_init__(self) -> None:
        _require_allowed(self)

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of a file's bytes; raises what PIL raises for them."""
        return self.pixels(decode(data, self.channels), rng)

    def pixels(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of decoded pixels."""
        box, mirrored = self.draw(rng, *image.shape[:2])
        return self.apply(image, box, mirrored=mirrored)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[Box, bool]:
        """Draw the box, and whether the result is mirrored, for an image of this many pixels."""
        box = draw_random_resized_crop(rng, height, width, scale=self.scale, ratio=self.ratio)
        return box, self.flip and rng.random() < 0.5

    def apply(self, image: UInt8[np.ndarray, "h w c"], box: Box, *, mirrored: bool) -> UInt8[np.ndarray, "size size c"]:
        """Return the box of an image, resized and perhaps mirrored."""
        # The box is cut first, then resized as an image of its own, as torchvision does: resize(box=...) also looks at
        # pixels around the box, and answers otherwise along its edges.
        picture = _cut(image, box).resize((self.size, self.size), FILTERS[self.interpolation])
        # Not a mirrored view of the array: copying one into a batch takes numpy ten times as long as this.
        return to_array(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeCenterCrop:
    """Evaluation's transform: the pixels of torchvision's Resize and CenterCrop on PIL images."""

    resize: Count
    """Short side after resizing, pixels."""
    size: Count
    """Side of the centre square, pixels; where the resized image is smaller, zeros surround it."""
    interpolation: Interpolation = "bilinear"
    """PIL's filter, which smooths when it shrinks."""
    channels: Channels = 3
    """Channels of the result: 3 is RGB, 1 is grey."""

    def __post_init__(self) -> None:
        _require_allowed(self)

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of a file's bytes, nothing drawn; raises what PIL raises for them."""
        return self.pixels(decode(data, self.channels), rng)

    def pixels(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of decoded pixels, nothing drawn."""
        return to_array(resize_center_crop(to_image(image), self.resize, self.size, self.interpolation))


def _cut(image: UInt8[np.ndarray, "h w c"], box: Box) -> Image.Image:
    """Return a box of an image for PIL."""
    top, left, height, width = box
    if image.shape[2] == 1:
        return Image.fromarray(image[top : top + height, left : left + width, 0])
    # fromarray on the cut array, but PIL steps over the rest of each row, which spares a copy.
    stride = 3 * image.shape[1]
    rows: Any = np.ascontiguousarray(image).data.cast("B")[top * stride + 3 * left :]
    return Image.frombuffer("RGB", (width, height), rows, "raw", "RGB", stride, 1)
