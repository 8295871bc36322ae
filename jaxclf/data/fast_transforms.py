"""Crops of other pixels than torchvision's on PIL, in less time: libjpeg decodes smaller images, OpenCV resizes them.

Classes of their own in a module of its own, not a field of the exact ones: whoever trains or evaluates on other pixels
than everybody else has written so, and a configuration, a log or a traceback shows it.
"""

import dataclasses
import math
from typing import Any, cast

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from jaxclf.data.decoding import decode, open_lazily
from jaxclf.data.transforms import Box, RandomResizedCrop, ResizeCenterCrop
from jaxclf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class FastRandomResizedCrop(RandomResizedCrop):
    """The boxes of `RandomResizedCrop` from the same generator, but other pixels, in less time.

    libjpeg decodes at a half or less where that leaves the box `size` pixels; OpenCV resizes. Needs jaxclf[fast].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of a file's bytes; raises what PIL raises for them."""
        height, width = image_size(data)
        box, mirrored = self.draw(rng, height, width)
        return self.apply(*_decode_box(data, self.channels, box, self.size, height, width), mirrored=mirrored)

    def apply(self, image: UInt8[np.ndarray, "h w c"], box: Box, *, mirrored: bool) -> UInt8[np.ndarray, "size size c"]:
        """Return the box of an image, resized by OpenCV and perhaps mirrored."""
        return _fast_resize(image, box, self.size, mirrored=mirrored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastResizeCenterCrop(ResizeCenterCrop):
    """About the pixels of `ResizeCenterCrop`, in less time; see `FastRandomResizedCrop`. `size` is at most `resize`.

    The square is cut first, at whole pixels of the file, and then resized.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size > self.resize:
            raise UsageError(f"size is {self.size} but must be at most resize, {self.resize}: fast crops do not pad")
        _check(self)

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of a file's bytes, nothing drawn; raises what PIL raises for them."""
        height, width = image_size(data)
        box = self._box(height, width)
        return _fast_resize(*_decode_box(data, self.channels, box, self.size, height, width), self.size, mirrored=False)

    def pixels(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "size size c"]:
        """Return the transformed image of decoded pixels, nothing drawn."""
        return _fast_resize(image, self._box(*image.shape[:2]), self.size, mirrored=False)

    def _box(self, height: int, width: int) -> Box:
        """Return the square of the file that is the centre crop of the resized image, to whole pixels of the file."""
        short = min(height, width)
        side = max(1, round(short * self.size / self.resize))
        resized = (int(self.resize * length / short) for length in (height, width))
        top, left = (round(round((length - self.size) / 2) * short / self.resize) for length in resized)
        return Box(min(top, height - side), min(left, width - side), side, side)


def require_fast() -> Any:
    """Return OpenCV, keeping to the calling thread. Raises `UsageError` where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise UsageError("fast crops need OpenCV, which is not installed: pip install 'jaxclf[fast]'") from None
    if cv2.getNumThreads() > 1:  # its threads would fight with the workers that call it, each with an image of its own
        cv2.setNumThreads(0)
    return cv2


def _check(transform: RandomResizedCrop | ResizeCenterCrop) -> None:
    if transform.interpolation != "bilinear":
        raise UsageError(f"interpolation is {transform.interpolation!r} but fast crops have bilinear alone")
    require_fast()


def _decode_box(
    data: bytes, channels: int, box: Box, size: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "h w c"], Box]:
    """Decode at about the least scale at which the box of the full image has `size` pixels; return the box in it."""
    rows, columns = math.ceil(height * size / box.height), math.ceil(width * size / box.width)
    image = decode_scaled(data, channels, min_height=rows, min_width=columns)
    down, across = image.shape[0] / height, image.shape[1] / width
    top, left = round(box.top * down), round(box.left * across)
    bottom, right = round((box.top + box.height) * down), round((box.left + box.width) * across)
    top, left = min(top, image.shape[0] - 1), min(left, image.shape[1] - 1)
    return image, Box(top, left, max(1, bottom - top), max(1, right - left))


def _fast_resize(
    image: UInt8[np.ndarray, "h w c"], box: Box, size: int, *, mirrored: bool
) -> UInt8[np.ndarray, "size size c"]:
    cv2 = require_fast()
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # To half the size and above, two taps miss no pixel. Areas are nearer to PIL's filter, but OpenCV has them in plain
    # code: they would take away half of what is gained.
    interpolation = cv2.INTER_AREA if max(box.height, box.width) > 2 * size else cv2.INTER_LINEAR
    pixels = cv2.resize(cut, (size, size), interpolation=interpolation)
    pixels = cv2.flip(pixels, 1) if mirrored else pixels
    return pixels.reshape(size, size, -1)  # of one channel OpenCV returns two axes


def image_size(data: bytes) -> tuple[int, int]:
    """Return height and width in pixels, from the header alone. Raises what PIL raises."""
    if _plain_jpeg(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return cast(int, height), cast(int, width)
    image = open_lazily(data)
    return image.height, image.width


def decode_scaled(data: bytes, channels: int, *, min_height: int, min_width: int) -> UInt8[np.ndarray, "h w c"]:
    """Return about the pixels of a JPEG at libjpeg's smallest scale (eighths) that leaves the given height and width.

    Either half the size or less, or the whole image: scales between take libjpeg longer than that. Grey is the file's
    luma, not PIL's. A file that is no plain JPEG, or a damaged one, comes from `decode`, at its full size.
    """
    if _plain_jpeg(data):
        space = "RGB" if channels == 3 else "GRAY"
        options = {"fastdct": False, "fastupsample": False, "strict": True}  # the fast ones gain 2 %
        try:
            return simplejpeg.decode_jpeg(
                data, space, min_height=min_height, min_width=min_width, min_factor=2, **options
            )
        except Exception:  # as in `decode`
            pass
    return decode(data, channels)


def _plain_jpeg(data: bytes) -> bool:
    """Whether simplejpeg reads the header, and the colours are not CMYK's, which it converts in its own way.

    Not for a header that claims more pixels than PIL takes: libjpeg would believe it, and 538 bytes that claim 60,000 x
    60,000 cost it 10 GB and more than a minute.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    try:
        height, width, space, _ = cast(tuple[int, int, str, str], simplejpeg.decode_jpeg_header(data))
    except Exception:  # as in `decode`
        return False
    most = math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS  # PIL warns from half of it on
    return space in ("YCbCr", "RGB", "Gray") and height * width <= most
