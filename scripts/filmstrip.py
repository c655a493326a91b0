"""Draws a film strip of a session: a row for each round, frames of that round's video from left to right.

python scripts/filmstrip.py cartpole-1 --rounds -1 0 2 --into strip.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rlhf_gym import catalog
from rlhf_gym.config import UserError

COLORS = 64  # of the picture: small files
MARGIN, LINE = 6, 22  # pixels


def frames_of(video: Path, count: int, every: float) -> list[tuple[float, Image.Image]]:
    """Frames from the start of a video on, `every` seconds apart, and when each was; its last where it is over."""
    found: list[tuple[float, Image.Image]] = []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 30)
        for n, frame in enumerate(container.decode(stream)):
            if len(found) == count:
                return found
            last = n, frame
            if n % max(1, round(every * fps)) == 0:
                found.append((n / fps, frame.to_image()))
    if found[-1][0] != last[0] / fps and len(found) < count:
        found.append((last[0] / fps, last[1].to_image()))
    return found


def strip(rows: Sequence[tuple[str, Sequence[tuple[float, Image.Image]]]], width: int) -> Image.Image:
    """One picture of all rows, each with its name above; frames are scaled to one width."""
    first = rows[0][1][0][1]
    height = round(first.height * width / first.width)
    columns = max(len(frames) for _, frames in rows)
    size = columns * (width + MARGIN) + MARGIN, len(rows) * (height + LINE + MARGIN) + MARGIN
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for i, (name, frames) in enumerate(rows):
        top = MARGIN + i * (height + LINE + MARGIN)
        draw.text((MARGIN, top), name, "black", font)
        for j, (when, frame) in enumerate(frames):
            corner = MARGIN + j * (width + MARGIN), top + LINE
            picture.paste(frame.resize((width, height), Image.Resampling.LANCZOS), corner)
            draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + width, corner[1] + height), outline="gray")
            draw.text((corner[0] + 4, corner[1] + 2), f"{when:.1f} s", "gray", ImageFont.load_default(11))
    return picture


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("session", help="name of the session")
    parser.add_argument("--rounds", type=int, nargs="+", default=[-1, 0], help="-1 is the untrained agent")
    parser.add_argument("--frames", type=int, default=6, help="in a row, at most")
    parser.add_argument("--every", type=float, default=0.5, help="seconds from one frame to the next")
    parser.add_argument("--width", type=int, default=180, help="of a frame, in pixels")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="directory that holds the sessions")
    parser.add_argument("--into", type=Path, default=Path("strip.png"), help="the picture")
    args = parser.parse_args(argv)
    try:
        session = catalog.open_session(args.data_dir, args.session)
        rows = []
        for number in args.rounds:
            if not (video := session.video(number)).exists():
                raise UserError(f"There is no video of round {number} in {session.path}: was it run with --render?")
            name = "untrained" if number < 0 else f"after round {number}"
            rows.append((name, frames_of(video, args.frames, args.every)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    args.into.parent.mkdir(parents=True, exist_ok=True)
    strip(rows, args.width).quantize(COLORS, dither=Image.Dither.NONE).save(args.into, optimize=True)
    print(f"{args.into}: {args.into.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
