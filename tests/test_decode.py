"""One file to pixels: every mode, turn and fault."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from image_files import chunked_png, encoded, pixels_of
from PIL import Image, ImageOps

from pagoda_bench.data.containers import BadFile
from pagoda_bench.data.decode import decode, decoding


def decoded(data: bytes) -> np.ndarray:
    with decoding():
        return decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colour_is_read_as_pil_reads_it(kind: str) -> None:
    data = encoded(pixels_of(1, 9, 14), kind)
    np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_palette_and_bits() -> None:
    grey = pixels_of(2)[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        np.testing.assert_array_equal(decoded(encoded(image)), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(decoded(encoded(bits))[..., 1], np.where(grey > 100, 255, 0))
    few = Image.fromarray(pixels_of(3)).quantize(7)
    np.testing.assert_array_equal(decoded(encoded(few)), np.asarray(few.convert("RGB")))


def test_16_bit_grey_is_divided_by_257() -> None:
    deep = np.array([[0, 128, 129, 257, 385, 386], [32768, 40000, 65278, 65279, 65406, 65535]], dtype=np.uint16)
    out = decoded(encoded(Image.fromarray(deep)))
    np.testing.assert_array_equal(out[..., 0], [[0, 0, 1, 1, 1, 2], [128, 156, 254, 254, 254, 255]])
    assert (out == out[..., :1]).all()


def test_a_transparent_grey_of_16_bits_becomes_white() -> None:
    data = chunked_png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 1000, 2000), tRNS=struct.pack(">H", 1000))
    np.testing.assert_array_equal(decoded(data)[0, :, 0], [255, 8])


def test_transparency_is_composited_on_white() -> None:
    rgba = np.random.default_rng(4).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    alpha = rgba[..., 3:].astype(float)
    expected = np.rint((rgba[..., :3] * alpha + 255.0 * (255 - alpha)) / 255)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decoded(encoded(rgba, kind, **options)), expected)
    la = Image.merge("LA", Image.fromarray(rgba).split()[2:])
    np.testing.assert_array_equal(decoded(encoded(la))[..., 0], expected[..., 2])
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([10, 20, 30, 100, 100, 100, 0, 0, 0])
    out = decoded(encoded(palette, transparency=bytes([255, 0, 128])))
    np.testing.assert_array_equal(out[0], [[10, 20, 30], [255, 255, 255], [127, 127, 127]])
    keyed = decoded(encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(1, 2, 3)))
    np.testing.assert_array_equal(keyed[0], [[255, 255, 255], [4, 5, 6]])
    bit = chunked_png(2, 1, 1, 0, b"\0\x40", tRNS=b"\0\0")
    np.testing.assert_array_equal(decoded(bit)[0, :, 0], [255, 255])


def test_cmyk() -> None:
    image = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    np.testing.assert_allclose(decoded(encoded(image, "JPEG", quality=100))[0, 0], [0, 255, 255], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels_of(5, 6, 10), kind, exif=exif)
    np.testing.assert_array_equal(
        decoded(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    )
    assert decoded(data).shape == ((6, 10, 3) if orientation < 5 else (10, 6, 3))


def test_damaged_exif_changes_nothing() -> None:
    picture = pixels_of(5, 6, 10)
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b""):
        np.testing.assert_array_equal(decoded(encoded(picture, "PNG", exif=exif)), picture)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(pixels_of(seed)) for seed in (6, 7, 8)]
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options)
        np.testing.assert_array_equal(decoded(data), np.asarray(frames[0]))


def test_what_is_refused_says_why() -> None:
    picture = Image.fromarray(pixels_of(9, 64, 64))

    def reason(data: bytes) -> str:
        with pytest.raises(BadFile) as caught:
            decoded(data)
        return str(caught.value)

    assert reason(b"") == "is empty"
    assert "no readable JPEG" in reason(b"hello")
    for kind in ("TIFF", "BMP", "GIF"):
        assert "no readable JPEG" in reason(encoded(picture, kind))
    assert "no readable JPEG" in reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encoded(picture, kind)
        for keep in (0.05, 0.5, 0.9):
            assert reason(whole[: int(len(whole) * keep)]).startswith("is ")
    assert reason(encoded(picture, "JPEG")[:-900]) == "is truncated"
    broken = bytearray(encoded(picture))
    broken[200] ^= 255
    assert "is damaged" in reason(bytes(broken))
    assert "decompression bomb" in reason(chunked_png(10_000, 10_000, 8, 2, b""))
    assert "decompression bomb" in reason(chunked_png(60_000, 60_000, 8, 2, b""))
