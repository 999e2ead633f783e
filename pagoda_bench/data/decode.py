"""One encoded image to RGB pixels: what is accepted, what is converted and how, what is refused.

The conversions are part of what a score on the data means:
  grey          repeated into the three channels
  16-bit grey   v / 257, rounded half to even (65535 becomes 255); 16-bit colour keeps its high byte
  palette       its colours
  CMYK, YCCK    PIL's conversion without colour management; ICC profiles are ignored throughout
  transparency  of any mode, composited on white, rounded half to even
  orientation   the EXIF turn or mirror is applied
  animation     the first frame
Refused: float and other modes that have no fixed white, truncated files, and more than 89 million pixels. The format is told
from the content, not from the name, and only JPEG, PNG and WebP are read.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from pagoda_bench.data.containers import BadFile

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 89_478_485  # PIL's own limit for a warning: a quarter of a gibibyte of RGB

# What PIL's readers let through on damaged input, beside its own errors.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def decoder_version() -> str:
    """The libraries that turn bytes into pixels; two versions of them may differ by one in a few values."""
    return f"pillow {PIL.__version__}, jpeg {features.version('libjpeg_turbo') or features.version('jpg')}"


@contextmanager
def decoding() -> Iterator[None]:
    """Around any number of `decode` calls in threads: loads the readers, silences PIL's warnings.

    Here rather than in `decode`, because Python's warning filters belong to the process.
    """
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(data: bytes, *, turn: bool = True) -> NDArray[np.uint8]:
    """The bytes of a JPEG, PNG or WebP file as uint8 (H, W, 3). Raises `BadFile` with the reason when it cannot be used.
    Without `turn` the EXIF orientation is not applied."""
    if not data:
        raise BadFile("is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadFile(f"is a decompression bomb or too large ({image.width} x {image.height} pixels)")
            pixels = to_rgb(image)
            return orient(pixels, _orientation(image)) if turn else pixels
    except BadFile:
        raise
    except UnidentifiedImageError:
        raise BadFile("is no readable JPEG, PNG or WebP image") from None
    except (Image.DecompressionBombError, MemoryError):
        raise BadFile("is a decompression bomb or too large") from None
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile("is truncated" if "truncated" in reason.lower() else f"is damaged ({reason[:100]})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The first frame of `image` as uint8 (H, W, 3) by the conversions of this module's text."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if mode == "I" or mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = np.rint(values / 257)
        clear = image.info.get("transparency")  # the one grey value that a PNG may declare transparent
        if isinstance(clear, int):
            grey[values == clear] = 255
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or (mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        # 255 is odd, so a sum is never half way between two multiples of it, and + 127 rounds to the nearest.
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if mode in ("1", "L", "P", "CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    raise BadFile(f"has the pixel mode {mode}, which has no fixed range; save it as an 8-bit PNG")


def orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(H, W, 3) turned and mirrored as the EXIF orientation 1 to 8 says; any other number changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    vertical = orientation in (3, 4, 7, 8)
    horizontal = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except DECODING_ERRORS:  # a damaged EXIF block does not make the picture unusable
        return 1
    return value if isinstance(value, int) else 1
