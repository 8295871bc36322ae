"""Bytes of an image file to pixels: PIL's, to the last bit."""

from io import BytesIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

PIL_DECODES_WITH_LIBJPEG_TURBO = bool(features.check_feature("libjpeg_turbo"))
"""Only then are simplejpeg's pixels PIL's: IJG's libjpeg since 7 upsamples chroma otherwise. Pillow's wheels: yes."""

SIXTEEN_BITS_AS_I = ("PNG", "PPM")
"""Formats whose greys of 16 bits PIL gives as mode I, of 32 bits: some of its versions for PNG, all for PGM."""


def decode(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an image file as RGB (3 channels) or grey (1): PIL's, exactly.

    Training, evaluation, prediction and `jaxclf data` read every image here. The pixels are those of torchvision's
    ImageFolder (pil_loader in datasets/folder.py, 0.28), `Image.open(file).convert("RGB")`: not turned by EXIF, the
    first of several frames, without transparency, whatever PIL makes of other modes. Only greys of 16 bits differ:
    PIL's convert would clip them to white, and here their upper 8 bits are kept. The result may be read-only. Safe in
    threads.

    Raises what PIL raises for the file, and `ValueError` for pixels of 32 bits or floats, whose range is unknown.
    """
    image = open_lazily(data)  # the header alone, but PIL has a say on it
    if channels == 3 and image.format == "JPEG" and image.mode == "RGB" and PIL_DECODES_WITH_LIBJPEG_TURBO:
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
        except Exception:  # whatever is odd about the file, even if libjpeg only warns: PIL has the last word below
            pixels = None
        # The two read headers by their own code. Where they differ in the size, PIL is right by definition.
        if pixels is not None and pixels.shape[:2] == (image.height, image.width):
            return pixels
    image.load()  # some formats know their mode only now
    image = _eight_bits(image)
    mode = {3: "RGB", 1: "L"}[channels]
    if image.mode != mode:
        # convert warns that a palette's alpha is lost, and drops it: dropped before, the pixels are the same without a
        # warning. Silencing warnings is no way here: warnings.catch_warnings changes the filters of all threads.
        if isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]
        image = image.convert(mode)
    return to_array(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose pixels have 8 bits: of 16, the upper ones."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is unknown; images have 8 or 16 bits")
    if image.mode == "I" and image.format not in SIXTEEN_BITS_AS_I:
        raise ValueError("its pixels have 32 bits, whose range is unknown; images have 8 or 16 bits")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I") else image


def is_turned(data: bytes) -> bool:
    """Tell whether a file says by EXIF that its stored pixels lie on a side, on their head or are mirrored."""
    return open_lazily(data).getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)


def upright(image: Image.Image, data: bytes) -> Image.Image:
    """Return a decoded image as its file says by EXIF that it is to be seen: turned, mirrored, or as it is."""
    image.getexif()[ExifTags.Base.Orientation] = open_lazily(data).getexif().get(ExifTags.Base.Orientation, 1)
    return ImageOps.exif_transpose(image)


def open_lazily(data: bytes) -> Image.Image:
    """Return an image whose header alone is read. Raises what PIL raises; safe in threads."""
    # PIL registers its rarer formats when a file is none of the common ones; of two threads that meet their first such
    # file together, one may find the list as the other left it and call a good file unknown. The common formats come
    # first, as with PIL, which tries them in this order. Nothing happens after the first call.
    Image.preinit()
    Image.init()
    try:
        return Image.open(BytesIO(data))
    except UnidentifiedImageError as error:  # PIL's own text holds an address, and would differ from run to run
        raise UnidentifiedImageError("no image format that PIL knows") from error


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an RGB or grey image, read-only."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
