"""Bytes of an image file to pixels: PIL's, to the last bit."""

from io import BytesIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, features

PIL_DECODES_WITH_LIBJPEG_TURBO = bool(features.check_feature("libjpeg_turbo"))
"""Only then are simplejpeg's pixels PIL's: IJG's libjpeg since 7 upsamples chroma otherwise. Pillow's wheels: yes."""


def decode(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an image file as RGB (3 channels) or grey (1): PIL's, exactly.

    Those of torchvision's ImageFolder (pil_loader in datasets/folder.py, 0.28), `Image.open(file).convert("RGB")`: not
    turned by EXIF, the first of several frames, whatever PIL makes of other modes. The result may be read-only. Raises
    what PIL raises for the file; safe in threads.
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
    mode = {3: "RGB", 1: "L"}[channels]
    if image.mode != mode:
        # convert warns that a palette's alpha is lost, and drops it: dropped before, the pixels are the same without a
        # warning. Silencing warnings is no way here: warnings.catch_warnings changes the filters of all threads.
        if isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]
        image = image.convert(mode)
    return to_array(image)


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
