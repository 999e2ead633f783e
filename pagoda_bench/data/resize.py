"""Changing the size of images, exactly. Everything here is a pure function of uint8 arrays in RGB, channels last.

How an image was resized is part of what a score means, so each function says which filter it is, what it rounds and when.
Nothing here uses the image library's 8-bit resampling except `center_crop_adm`, whose definition it is: that one rounds and
clips between its two passes and is not the rounding of the real-valued result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pagoda_bench.errors import UserError

Pixels = NDArray[np.uint8]
UpsampleFilter = Literal["nearest", "bicubic"]


def box_down(images: Pixels, resolution: int) -> Pixels:
    """The mean over boxes of 2^k x 2^k pixels, rounded half to even, in exact integer arithmetic.

    `images` is uint8 (N, R, R, C) with R = resolution * 2^k, k from 0 to 8; the result is uint8 (N, resolution, resolution, C),
    and is `images` itself when k = 0. Two steps of it round twice, so lower resolutions are always taken from the same
    original. Raises `UserError` when R is no such multiple.
    """
    size = images.shape[1]
    if images.ndim != 4 or images.shape[2] != size or images.dtype != np.uint8:
        raise ValueError(f"box_down wants uint8 (N, R, R, C), not {images.dtype} {images.shape}")
    factor, rest = divmod(size, resolution) if resolution > 0 else (0, 1)
    if rest or factor & (factor - 1) or not 1 <= factor <= 256:
        raise UserError(f"{resolution} px is not {size} px divided by a power of two up to 256: choose another resolution")
    if factor == 1:
        return images
    bits = factor.bit_length() - 1
    # 255 * 16 * 16 and the rounding term stay below 2^16; 255 * 256 * 256 below 2^32.
    total: NDArray[np.unsignedinteger] = images.astype(np.uint16 if factor <= 16 else np.uint32)
    for _ in range(bits):
        total = total[:, 0::2] + total[:, 1::2]
    for _ in range(bits):
        total = total[:, :, 0::2] + total[:, :, 1::2]
    shift = 2 * bits
    # Half to even: a sum that lies just half way goes up only when the integer below it is odd.
    odd = (total >> shift) & 1
    total = total + odd + ((1 << (shift - 1)) - 1)
    return (total >> shift).astype(np.uint8)


def upsample(images: Pixels, resolution: int, filter: UpsampleFilter) -> Pixels:
    """uint8 (N, R, R, C) enlarged to uint8 (N, resolution, resolution, C), resolution >= R.

    `nearest` repeats each pixel; `resolution` must be a multiple of R. `bicubic` is the separable cubic convolution of Keys
    (1981) with a = -0.5 at half-pixel centres, weights outside the image dropped and the rest normalised: what PIL computes
    on a float image of each channel. It is clipped to [0, 255] and rounded half to even once, at the end.
    """
    count, size, _, channels = images.shape
    if resolution < size:
        raise UserError(f"cannot upsample {size} px to {resolution} px: use box_down")
    if resolution == size:
        return images
    if filter == "nearest":
        if resolution % size:
            raise UserError(f"nearest-neighbour upsampling wants a multiple of {size} px, not {resolution}")
        return images.repeat(resolution // size, axis=1).repeat(resolution // size, axis=2)
    if filter != "bicubic":
        raise UserError(f"unknown upsampling filter '{filter}' (known: bicubic, nearest)")
    weights = _bicubic_weights(size, resolution)
    out = np.empty((count, resolution, resolution, channels), np.uint8)
    for start in range(0, count, 256):  # bounded memory: the float64 middle is eight times the uint8 result
        block = images[start : start + 256].astype(np.float64)
        rows = np.matmul(weights, block.reshape(len(block), size, size * channels))
        columns = np.matmul(weights, rows.reshape(-1, size, channels))
        np.rint(np.clip(columns, 0, 255, out=columns), out=columns)
        out[start : start + 256] = columns.reshape(len(block), resolution, resolution, channels)
    return out


@lru_cache(maxsize=32)
def _bicubic_weights(size: int, resolution: int) -> NDArray[np.float64]:
    """(resolution, size) weights whose rows sum to one: Keys' kernel, a = -0.5, support 2, half-pixel centres."""
    centres = (np.arange(resolution) + 0.5) * size / resolution
    distance = np.abs(np.arange(size)[None, :] + 0.5 - centres[:, None])
    a = -0.5
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    weights: NDArray[np.float64] = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def center_crop_box(image: Pixels, resolution: int) -> Pixels:
    """uint8 (H, W, 3) of any size to uint8 (resolution, resolution, 3): the centre square, then the box filter.

    The square has the shorter side's length and starts at (longer - shorter) // 2. Where its side is a multiple of
    `resolution` each value is the exact box mean, rounded half to even. Any other larger side goes through PIL's box filter
    on float channels, one rounding at the end. A smaller side is enlarged by `upsample`'s bicubic.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(square)
    if side < resolution:
        enlarged: Pixels = upsample(square[None], resolution, "bicubic")[0]
        return enlarged
    factor, rest = divmod(side, resolution)
    if rest == 0:
        boxes = square.reshape(resolution, factor, resolution, factor, 3)
        means: NDArray[np.float64] = boxes.sum(axis=(1, 3), dtype=np.int64) / factor**2
        return np.rint(means).astype(np.uint8)
    values: NDArray[np.float32] = np.stack([_box_channel(square[..., channel], resolution) for channel in range(3)], axis=-1)
    return np.rint(values).astype(np.uint8)


def _box_channel(channel: Pixels, resolution: int) -> NDArray[np.float32]:
    plane = Image.fromarray(channel.astype(np.float32))
    return np.asarray(plane.resize((resolution, resolution), Image.Resampling.BOX))


def center_crop_adm(image: Pixels, resolution: int) -> Pixels:
    """uint8 (H, W, 3) of any size to uint8 (resolution, resolution, 3) as ADM prepares ImageNet (Dhariwal and Nichol 2021).

    While the shorter side is at least twice `resolution`, both sides are halved (rounding down) with PIL's 8-bit box filter;
    then PIL's 8-bit bicubic brings the shorter side to `resolution`, and the centre square is cut out. A smaller image is
    enlarged by the same bicubic step.
    """
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - resolution) // 2, (pixels.shape[1] - resolution) // 2
    return np.ascontiguousarray(pixels[top : top + resolution, left : left + resolution])


CROPS: dict[str, Callable[[Pixels, int], Pixels]] = {"box": center_crop_box, "adm": center_crop_adm}
