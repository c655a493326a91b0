"""Videos and sheets for tests.

Videos are written and read with PyAV: imageio's plugin collects garbage at each close, other tests' too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from rlhf_gym.sheets import Sheet


def write_video(path: Path, frames: np.ndarray | Sequence[np.ndarray], fps: int = 30) -> None:
    """frames: (T, H, W, 3) uint8."""
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def frames_of(sheet: Sheet) -> list[np.ndarray]:
    image, (w, h) = pixels(sheet.png), (sheet.frame_width, sheet.frame_height)
    places = [(i // sheet.columns * h, i % sheet.columns * w) for i in range(sheet.frames)]
    return [image[y : y + h, x : x + w] for y, x in places]
