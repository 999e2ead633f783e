"""How figures look, and the files that they become: byte-identical for identical figures, without dates and random ids."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

DPI = 130
STYLE: Any = {
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "ytick.minor.width": 0.4,
    "svg.fonttype": "path",
    "svg.hashsalt": "pagoda-bench",
    "path.simplify": False,
}
COLOURS = 160  # of a strip of photographs in an SVG


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as {"png": bytes, "svg": bytes}, without dates and software versions.

    Photographs inside an SVG have at most `COLOURS` colours a strip, which halves the file; the PNG has them all.
    """
    out = {}
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi="figure", metadata=metadata)
            out[kind] = buffer.getvalue()
    out["png"] = _opaque(out["png"])
    out["svg"] = re.sub(rb"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+", _fewer_colours, out["svg"])
    return out


def _opaque(png: bytes) -> bytes:
    """Without the alpha channel."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, format="PNG", dpi=image.info.get("dpi"))
    return buffer.getvalue()


def _fewer_colours(found: re.Match[bytes]) -> bytes:
    """A base64 PNG with a palette of at most `COLOURS`, without dithering."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue())
