"""The embedded data set: procedural, class-conditional, unlimited, rendered from (split, index) alone.

A picture is one large shape on a plain ground. The class (label = index mod 10) is readable at 8x8: five shapes, each light on
dark or dark on light. Every octave above 8 px adds detail that the octave below cannot hold and that depends on the class:
16 px adds stripes inside the shape (their direction is the class's), 32, 64, ... 512 px each add a fine wavy outline along the
edge (its phase is the class's). Colours, place, size and contrast vary from image to image.

Coordinates are in units of the image width, centre (0, 0), y downwards. Nothing here keeps state: the random numbers of an
image are a hash of (split, index, attribute), so access is random, splits are disjoint and there is no last image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import EmbeddedData, Split

Array = NDArray[np.float32]

SHAPES = ("disc", "ring", "bar", "pillar", "cross")
GROUNDS = ("dark", "light")
CLASSES = tuple(f"{shape} on {ground}" for shape in SHAPES for ground in GROUNDS)
COLOURS = ("red", "orange", "green", "teal", "blue", "purple")
STRIPES = ("level stripes", "upright stripes", "rising stripes", "falling stripes", "echoing stripes")
OCTAVES = (16, 32, 64, 128, 256, 512)
VARIANTS = 5  # kinds of detail in every octave
PLAIN = -1  # a detail that is left out; only the feature network's training asks for it

STRIPE_FREQUENCY = 4.25  # cycles per image width of the 16-px octave
LINE_FREQUENCY = 0.27  # cycles per pixel of an outline, at the resolution of its octave
STRIPE_HEIGHT, LINE_HEIGHT = 0.18, 0.2  # in units of full scale
_CHUNK = 16  # images rendered at once at 64 px: what fits the cache
_SPLIT_KEYS: dict[Split, int] = {"train": 0x9E3779B97F4A7C15, "val": 0xD1B54A32D192ED03}


class Attributes(NamedTuple):
    """What an image shows. All arrays have length N; `detail` is (N, 6), one variant an octave, or PLAIN."""

    label: NDArray[np.int64]
    centre_x: Array
    centre_y: Array
    size: Array
    hue: Array  # of the shape, in [0, 1)
    ground_hue: Array
    saturation: Array
    light: Array  # value of the lighter of shape and ground
    dark: Array
    slope: Array  # brightness gradient of the ground, top to bottom
    contrast: Array  # of the stripes
    detail: NDArray[np.int64]


def class_detail(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) labels -> (N, 6) detail variants. Any two classes differ in most octaves."""
    octave = np.arange(len(OCTAVES))
    shape, ground = label[:, None] // 2, label[:, None] % 2
    return (shape * (1 + octave % 4) + ground * (2 + octave % 3) + octave) % VARIANTS


def attributes(indices: NDArray[np.int64], split: Split) -> Attributes:
    """The attributes of images `indices` (N,), each below 2^53."""
    label = np.asarray(indices, np.int64) % len(CLASSES)
    u = _uniform(np.asarray(indices, np.int64), split, 10)
    return Attributes(
        label=label,
        centre_x=0.24 * u[0] - 0.12,
        centre_y=0.24 * u[1] - 0.12,
        size=0.85 + 0.3 * u[2],
        hue=u[3],
        ground_hue=u[4],
        saturation=0.45 + 0.4 * u[5],
        light=0.7 + 0.15 * u[6],
        dark=0.15 + 0.15 * u[7],
        slope=0.3 * u[8] - 0.15,
        contrast=0.5 + 0.5 * u[9],
        detail=class_detail(label),
    )


def render(a: Attributes, resolution: int) -> NDArray[np.uint8]:
    """Anti-aliased images (N, R, R, 3) of the attributes `a` at `resolution` px (a power of two from 8 to 512)."""
    if resolution not in (8, *OCTAVES):
        raise UserError(f"the embedded data set has no {resolution} px images: use a power of two from 8 to 512")
    out = np.empty((len(a.label), resolution, resolution, 3), np.uint8)
    step = max(1, _CHUNK * 64 * 64 // resolution**2)
    shapes = a.label // 2
    for shape in range(len(SHAPES)):
        rows = np.flatnonzero(shapes == shape)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            out[chunk] = _render(_select(a, chunk), resolution, shape)
    return out


def _select(a: Attributes, rows: NDArray[np.int64]) -> Attributes:
    return Attributes(**{name: value[rows] for name, value in a._asdict().items()})


def captions(a: Attributes) -> list[str]:
    """One sentence an image, e.g. "a red ring with rising stripes on dark green"."""
    names = [COLOURS[int(h * len(COLOURS)) % len(COLOURS)] for h in a.hue]
    grounds = [COLOURS[int(h * len(COLOURS)) % len(COLOURS)] for h in a.ground_hue]
    out = []
    for i, label in enumerate(a.label):
        stripes = "plain surface" if a.detail[i, 0] == PLAIN else STRIPES[int(a.detail[i, 0])]
        strength = "faint " if a.contrast[i] < 0.75 and a.detail[i, 0] != PLAIN else ""
        article = "an" if names[i][0] in "aeiou" else "a"
        shape = f"{article} {names[i]} {SHAPES[label // 2]}"
        out.append(f"{shape} with {strength}{stripes} on {GROUNDS[label % 2]} {grounds[i]}")
    return out


class Embedded:
    """The data set behind the common interface; `size` is None because it never ends."""

    classes = CLASSES

    def __init__(self, config: EmbeddedData) -> None:
        if config.master not in (8, *OCTAVES):
            raise UserError(f"master resolution {config.master} of the embedded data set: use a power of two from 8 to 512")
        self.config = config

    def size(self, split: Split) -> int | None:
        return None

    def labels(self, indices: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """(N,) int64 in [0, 10)."""
        return np.asarray(indices, np.int64) % len(CLASSES)

    def images(self, indices: NDArray[np.int64], resolution: int, split: Split) -> NDArray[np.uint8]:
        """(N, R, R, 3) uint8. Below the master resolution: the exact box mean of the master image, never a new rendering."""
        from pagoda_bench.data.resize import box_down

        if resolution > self.config.master:
            raise UserError(f"{resolution} px images of an embedded data set with master={self.config.master}: raise `master`")
        master = render(attributes(indices, split), self.config.master)
        return master if resolution == self.config.master else box_down(master, resolution)

    def captions(self, indices: NDArray[np.int64], split: Split) -> list[str]:
        return captions(attributes(indices, split))


def _uniform(indices: NDArray[np.int64], split: Split, count: int) -> Array:
    """(count, N) uniform float32 in [0, 1): the splitmix64 hash of (split, index, attribute)."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64)[None] * np.uint64(0x2545F4914F6CDD1D) + np.uint64(_SPLIT_KEYS[split])
        x = x + (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))[:, None]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).astype(np.float32)


def _distance(shape: int, x: Array, y: Array, size: Array) -> Array:
    """Signed distance to the edge of the shape, negative inside; x (N, 1, R), y (N, R, 1), size (N, 1, 1)."""
    if shape == 0:
        return np.sqrt(x * x + y * y) - 0.3 * size
    if shape == 1:
        return np.abs(np.sqrt(x * x + y * y) - 0.265 * size) - 0.085 * size
    if shape == 2:
        return _box(x, y, 0.36 * size, 0.15 * size)
    if shape == 3:
        return _box(x, y, 0.15 * size, 0.36 * size)
    return np.minimum(_box(x, y, 0.36 * size, 0.1 * size), _box(x, y, 0.1 * size, 0.36 * size))


def _box(x: Array, y: Array, width: Array, height: Array) -> Array:
    dx, dy = np.abs(x) - width, np.abs(y) - height
    outside = np.sqrt(np.square(np.maximum(dx, 0)) + np.square(np.maximum(dy, 0)))
    return outside + np.minimum(np.maximum(dx, dy), 0)


def _render(a: Attributes, resolution: int, shape: int) -> NDArray[np.uint8]:
    fine = 2 * resolution  # every pixel is the mean of 2x2 samples: the finest wave spans almost 8 of them
    grid = (np.arange(fine, dtype=np.float32) + np.float32(0.5)) / np.float32(fine) - np.float32(0.5)
    x = grid[None, None, :] - a.centre_x[:, None, None]
    y = grid[None, :, None] - a.centre_y[:, None, None]
    distance = _distance(shape, x, y, a.size[:, None, None])
    inside = np.clip(np.float32(0.5) - distance * np.float32(fine), 0, 1)
    detail = _stripes(a, x, y, distance, resolution)
    detail *= inside
    for octave, pixels in enumerate(OCTAVES[1:], start=1):
        if pixels <= resolution:
            _add_line(detail, a.detail[:, octave], distance, pixels)
    ground_is_light = (a.label % 2).astype(bool)
    front = _rgb(a.hue, a.saturation, np.where(ground_is_light, a.dark, a.light))
    back = _rgb(a.ground_hue, a.saturation, np.where(ground_is_light, a.light, a.dark))
    back_slope = 1 + a.slope[:, None, None] * (2 * grid[None, :, None])
    out = np.empty((len(a.label), resolution, resolution, 3), np.uint8)
    for c in range(3):
        ground = back[:, c, None, None] * back_slope
        value = inside * (front[:, c, None, None] - ground)
        value += ground
        value += detail
        np.clip(value, 0, 1, out=value)
        value = value[:, ::2] + value[:, 1::2]
        value = value[:, :, ::2] + value[:, :, 1::2]
        out[..., c] = value * np.float32(255 / 4) + np.float32(0.5)
    return out


def _stripes(a: Attributes, x: Array, y: Array, distance: Array, resolution: int) -> Array:
    """The 16-px octave: stripes whose direction is the variant; through the centre of the shape a light one runs."""
    out = np.zeros_like(distance)
    if resolution < OCTAVES[0]:
        return out
    kind = a.detail[:, 0]
    for variant, coordinate in enumerate((y + 0 * x, x + 0 * y, (x + y) * 0.7071, (x - y) * 0.7071, distance)):
        rows = np.flatnonzero(kind == variant)
        if len(rows):
            out[rows] = np.cos(np.float32(2 * np.pi * STRIPE_FREQUENCY) * coordinate[rows])
    return out * (STRIPE_HEIGHT * a.contrast)[:, None, None]


def _add_line(detail: Array, kind: NDArray[np.int64], distance: Array, octave: int) -> None:
    """One higher octave: a wave packet along the edge; its phase is the variant."""
    frequency = LINE_FREQUENCY * octave
    near = np.float32(frequency) * distance  # in wavelengths from the edge
    envelope = np.exp(np.float32(-1.1) * near * near)
    phase = (kind.astype(np.float32) * np.float32(2 * np.pi / VARIANTS))[:, None, None]
    wave = np.cos(np.float32(2 * np.pi) * near + phase)
    wave *= envelope
    wave *= np.where(kind == PLAIN, np.float32(0), np.float32(LINE_HEIGHT))[:, None, None]
    detail += wave


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """HSV, each (N,) in [0, 1], to RGB (N, 3)."""
    ramp = np.abs((hue[:, None] * 6 + np.array([0, 4, 2], np.float32)) % 6 - 3) - 1
    return (value[:, None] * (1 - saturation[:, None] * (1 - np.clip(ramp, 0, 1)))).astype(np.float32)
