"""Sprite sheets: what the person sees of a clip, as one PNG. Nothing here imports torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_SHOWN_FPS = 30.0  # more frames cost rendering time and memory, and nobody judges better for them
MAX_SIDE = 600  # pixels of a clip's longer side
MAX_SHEET_PIXELS = 12_000_000  # of one sprite sheet: 48 MB once the browser has decoded it


@dataclass(frozen=True)
class Sheet:
    """A sprite sheet: frame i stands at column i % columns, row i // columns. Held frames are drawn once."""

    png: bytes
    frame_width: int
    frame_height: int
    columns: int
    frames: int


def shown_stride(fps: float) -> int:
    """Every how many steps a frame is shown."""
    return max(1, round(fps / MAX_SHOWN_FPS))


def make_sheet(frames: Sequence[np.ndarray]) -> Sheet:
    """Lays frames (H, W, 3) out on one PNG of 256 colours, scaled down to what a browser holds easily.

    A sheet decodes faster than any video and is exact to the frame in every browser (docs/benchmarks.md).
    """
    height, width = frames[0].shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width), (MAX_SHEET_PIXELS / len(frames) / (height * width)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(len(frames), max(1, round((len(frames) * size[1] / size[0]) ** 0.5)))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]))
    for i, frame in enumerate(frames):
        image = Image.fromarray(np.ascontiguousarray(frame))
        image = image if scale == 1.0 else image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        sheet.paste(image, (i % columns * size[0], i // columns * size[1]))
    buffer = io.BytesIO()
    reduced(sheet).save(buffer, "PNG", compress_level=4)
    return Sheet(buffer.getvalue(), *size, columns, len(frames))


def reduced(image: Image.Image) -> Image.Image:
    """The image in 256 colours: exactly its own where they are no more than that (classic control, Atari)."""
    colors = image.getcolors(256)
    if colors is None:
        return image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # quantize(palette=…) compares upper bits alone and mixes neighbours up; a table of 2^24 entries is exact, and fast
    palette = np.array([color for _, color in colors], np.uint8)
    index = np.zeros(1 << 24, np.uint8)
    index[palette @ np.array([1, 1 << 8, 1 << 16])] = np.arange(len(palette))
    packed = np.asarray(image.convert("RGBX")).view("<u4")[..., 0] & 0xFFFFFF
    exact = Image.fromarray(index[packed])
    exact.putpalette(palette.tobytes())
    return exact
