"""Movies: pictures in, H.264 out, which every browser plays. Nothing here imports torch.

movies.encode(file, (movies.enlarge(frame) for frame in frames), rate=30)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlhf_gym.config import UserError

SMALLEST = 320  # pixels across: smaller frames are enlarged, so that compression does not smear them


def encode(
    file: Path | IO[bytes],
    pictures: Iterable[np.ndarray],
    rate: Fraction | int,
    *,
    kind: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes pictures, one after the other as they come, so that no more than one is ever held.

    Args:
        file: an .mp4 at a path gets its index at the beginning, so that it plays before it is loaded; FFmpeg reads the
            file again for that, which it cannot do with an open one.
        pictures: each (H, W, 3) uint8, RGB, all of one size; odd sides are made even.
        rate: pictures a second.
        kind: of file, by FFmpeg's name for it; so are `codec`, `pixels` (their format) and the codec's `options`.

    Raises:
        OSError, av.error.FFmpegError: it cannot be written; see `writing`.
    """
    import av  # heavy

    place, layout = (str(file), {"movflags": "faststart"}) if isinstance(file, Path) else (file, {})
    with av.open(place, "w", format=kind, options=layout) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.pix_fmt = pixels
        for picture in pictures:
            picture = np.ascontiguousarray(even(picture))
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def times_larger(width: int, smallest: int = SMALLEST) -> int:
    """How many times as large small frames are shown: a whole number, so that their pixels stay sharp."""
    return max(1, round(smallest / width))


def enlarge(frame: np.ndarray, smallest: int = SMALLEST) -> np.ndarray:
    """Doubles small frames (Atari's 160×210) pixel by pixel, or makes them larger still; (H, W, 3) all of them."""
    times = times_larger(frame.shape[1], smallest)
    return frame.repeat(times, 0).repeat(times, 1) if times > 1 else frame


def even(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3); an odd side gets its last line twice: H.264 with 4:2:0 colour wants even ones."""
    high, wide = (side % 2 for side in frame.shape[:2])
    return np.pad(frame, ((0, high), (0, wide), (0, 0)), mode="edge") if high or wide else frame


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Says in a sentence why something ("video") cannot be written to a path.

    Raises:
        UserError: in place of OSError and FFmpeg's own.
    """
    import av

    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"Cannot write the {what} {path} ({said}).") from None
