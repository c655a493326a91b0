"""Sprite sheets: what the person sees of a clip, as one PNG. Nothing here imports torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlhf_gym.store import Clip

MAX_SHOWN_FPS = 30.0  # more frames cost rendering time and memory, and nobody judges better for them
MAX_SIDE = 600  # pixels of a clip's longer side
CLOSE = 12  # of 255: how far a channel may be off in the shades of an edge that find no place in the palette
RUN_LENGTHS = 3  # zlib's Z_RLE: for flat colours smaller, and in half the time
MAX_SHEET_PIXELS = 12_000_000  # of one sprite sheet: 48 MB once the browser has decoded it


@dataclass(frozen=True)
class Sheet:
    """A sprite sheet: frame i stands at column i % columns, row i // columns. Held frames are drawn once."""

    png: bytes
    frame_width: int
    frame_height: int
    columns: int
    frames: int


@dataclass(frozen=True)
class Layout:
    """How a number of frames stand on a sheet."""

    width: int  # of one frame there
    height: int
    columns: int


def layout(frames: int, height: int, width: int) -> Layout:
    """For frames of this size, scaled down to what a browser holds easily."""
    scale = min(1.0, MAX_SIDE / max(height, width), (MAX_SHEET_PIXELS / frames / (height * width)) ** 0.5)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    return Layout(w, h, min(frames, max(1, round((frames * h / w) ** 0.5))))


def shown_stride(fps: float) -> int:
    """Every how many steps a frame is shown."""
    return max(1, round(fps / MAX_SHOWN_FPS))


def make_sheet(frames: Sequence[np.ndarray], shape: tuple[int, int] | None = None) -> Sheet:
    """Lays frames (H, W, 3) out on one PNG of 256 colours.

    A sheet decodes faster than any video and is exact to the frame in every browser (docs/benchmarks.md).

    Args:
        shape: height and width for which to lay it out; None: those of the first frame.
    """
    laid = layout(len(frames), *(shape or frames[0].shape[:2]))
    size, columns = (laid.width, laid.height), laid.columns
    rows = -(-len(frames) // columns)
    frames = [frame if frame.shape[1::-1] == size else shrink(frame, size) for frame in frames]
    places = [(i // columns * size[1], i % columns * size[0]) for i in range(len(frames))]
    buffer = io.BytesIO()
    exact = few_colors(frames, places, (rows * size[1], columns * size[0]))
    if exact is not None:
        exact.save(buffer, "PNG", compress_level=4, compress_type=RUN_LENGTHS)
    else:
        sheet = Image.new("RGB", (columns * size[0], rows * size[1]))
        for frame, (top, left) in zip(frames, places, strict=True):
            sheet.paste(Image.fromarray(np.ascontiguousarray(frame)), (left, top))
        reduced = sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        reduced.save(buffer, "PNG", compress_level=4)
    return Sheet(buffer.getvalue(), *size, columns, len(frames))


def shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))


def few_colors(
    frames: Sequence[np.ndarray], places: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> Image.Image | None:
    """A sheet in the frames' own colours, where they are about 256 or fewer (classic control, Atari), or None.

    Pillow's quantize(palette=…) compares upper bits alone and mixes neighbours up; a table of all colours is exact, and
    several times as fast.
    """
    palette = Palette()
    sheet = np.zeros(shape, np.uint8)
    height, width = frames[0].shape[:2]  # all have the size that they have on the sheet
    channels, number = np.zeros((height, width, 4), np.uint8), np.empty((height, width), np.uint16)
    for frame, (top, left) in zip(frames, places, strict=True):
        for i in range(3):
            channels[..., i] = frame[..., i]
        packed = channels.view("<u4")[..., 0].astype(np.int64)
        np.take(palette.numbers, packed, out=number, mode="clip")
        if not number.all():  # colours that no frame before had
            colors: Any = Image.fromarray(np.ascontiguousarray(frame)).getcolors(256)
            if colors is None or not all(palette.add(color) for _, color in sorted(colors, reverse=True)):
                return None
            np.take(palette.numbers, packed, out=number, mode="clip")
        np.subtract(number, 1, out=sheet[top : top + height, left : left + width], casting="unsafe")
    image = Image.fromarray(sheet)
    image.putpalette(bytes(channel for color in palette.colors for channel in color))
    return image


class Palette:
    """Up to 256 colours; those beyond are shown as one of them, if it is close."""

    def __init__(self) -> None:
        self.colors: list[tuple[int, int, int]] = []
        self.numbers = np.zeros(1 << 24, np.uint16)  # of each colour r + 256 g + 65536 b: its place, plus one

    def add(self, color: tuple[int, int, int]) -> bool:
        """Whether the colour has a place now."""
        where = color[0] | color[1] << 8 | color[2] << 16
        if not self.numbers[where]:
            if len(self.colors) < 256:
                self.colors.append(color)
                self.numbers[where] = len(self.colors)
            else:
                off = np.abs(np.array(self.colors) - color).max(1)
                if off.min() > CLOSE:
                    return False
                self.numbers[where] = off.argmin() + 1
        return True


# ---------------------------------------------------------------------------------------------- read again


@dataclass(frozen=True)
class Decoded:
    """A sheet as `open_sheet` found it, in order."""

    image: Image.Image
    width: int  # of one frame
    height: int
    columns: int
    frames: int

    def frame(self, i: int) -> Image.Image:
        """Frame i, as RGB."""
        left, top = i % self.columns * self.width, i // self.columns * self.height
        return self.image.crop((left, top, left + self.width, top + self.height)).convert("RGB")


def open_sheet(path: Path | None, clip: Clip) -> Decoded | None:
    """A clip's sheet; None where there is none, or where it is damaged or not what the clip's row says.

    Both may be a stranger's, so nothing is decoded that is larger than a sheet.
    """
    width, height, columns, frames = (x or 0 for x in (clip.frame_width, clip.frame_height, clip.columns, clip.frames))
    if path is None or min(width, height, columns, frames) <= 0:
        return None
    size = (width * columns, height * -(-frames // columns))
    try:
        with Image.open(path, formats=["PNG"]) as image:  # others start programs: EPS runs Ghostscript
            # rounding up to whole rows and sizes may exceed the limit a little
            if image.size != size or size[0] * size[1] > 2 * MAX_SHEET_PIXELS:
                return None
            image.load()
    except (OSError, ValueError, SyntaxError, LookupError, Image.DecompressionBombError):  # Pillow's words for damaged
        return None
    return Decoded(image, width, height, columns, frames)
