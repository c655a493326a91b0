"""Segments: what the model sees of a clip, as .npz files.

Stacked frames are stored once each, absorbing steps not at all: a Pong clip of 25 steps takes 28 frames, not 100.
Nothing here imports torch.
"""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.config import RANGES, UserError
from rlhf_gym.files import write_atomic
from rlhf_gym.store import Clip, Session

MAX_BYTES = 2**31  # of a segment, on disk and in memory: a minute of the largest images takes 1.9e9
MAX_STACK = int(RANGES["frame_stack"][1])


@dataclass(frozen=True)
class Segment:
    """What the model sees of a clip, whole: T steps, of which those from the episode's end on are absorbing."""

    observations: np.ndarray  # (T, *obs_shape) raw and unmasked; after the end the terminal observation, held
    actions: np.ndarray  # (T,) int64 or (T, A) float32; zeros where absorbing
    rewards: np.ndarray  # (T,) float32, the true reward; zeros where absorbing
    absorbing: np.ndarray  # (T,) bool
    infos: dict[str, np.ndarray]  # name -> (T, ...) numbers the environment reported; on Atari also "ram" (T, 128)

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the reward model judges: the live steps and, once, what was seen last where the episode ended.

        Returns:
            observations (R, *obs_shape), actions (R,) or (R, A), ended (R,) bool, and how many steps each row stands
            for (R,): one, or all absorbing ones.
        """
        kept = ~self.absorbing | (np.cumsum(self.absorbing) == 1)
        count = np.where(self.absorbing, self.absorbing.sum(), 1)
        return self.observations[kept], self.actions[kept], self.absorbing[kept], count[kept]

    def beside(self) -> np.ndarray:
        """What stands beside each of the `rows`, as `potential.Potential.forward` has it, (R, *obs_shape)."""
        live = int((~self.absorbing).sum())
        rows = live + int(self.absorbing.any())
        return self.observations[np.clip(np.arange(rows) + 1, 0, max(live - 1, 0))]

    def info_dicts(self) -> list[dict[str, Any]]:
        return [{k: v[t] for k, v in self.infos.items()} for t in range(len(self.rewards))]


def save_segment(path: Path, segment: Segment) -> None:
    """Writes a segment as .npz; stacked frames are stored once each, not once per stack they stand in."""
    arrays: dict[str, Any] = {"actions": segment.actions, "rewards": segment.rewards, "absorbing": segment.absorbing}
    arrays |= {f"info_{k}": v for k, v in segment.infos.items()}
    frames = None
    if segment.observations.dtype == np.uint8 and segment.observations.ndim == 4:
        frames = unstack(segment.observations[: _shown(segment.absorbing)])
    arrays |= {"observations": segment.observations} if frames is None else {"frames": frames}
    write_arrays(path, arrays)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_segment(path: Path) -> Segment:
    """Reads what save_segment wrote; raises UserError where the file is missing, damaged, or no segment."""
    try:
        return _read(path)
    except Exception as error:  # numpy and zipfile say it in many ways: TokenError, struct.error, MemoryError
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"Clip {path} cannot be read ({said}).") from None


def load_clip(session: Session, clip: Clip) -> Segment:
    """The segment that a clip's row names, which has to lie in the session; raises UserError as load_segment."""
    path = session.file(clip.path)
    if path is None:
        raise UserError(f"Clip {session.path / clip.path} cannot be read (there is no such file in its session).")
    return load_segment(path)


def _read(path: Path) -> Segment:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    arrays = parse_arrays(path.read_bytes())
    absorbing = arrays["absorbing"]
    steps = len(absorbing)
    if absorbing.shape != (steps,) or absorbing.dtype != bool or not steps or np.any(absorbing[:-1] > absorbing[1:]):
        raise ValueError("its steps do not end in absorbing ones")
    if "frames" in arrays:
        frames = arrays["frames"]
        shown = _shown(absorbing)
        stack = len(frames) - shown + 1
        if not 1 <= stack <= MAX_STACK or steps * stack * frames[:1].nbytes > MAX_BYTES:
            raise ValueError(f"{len(frames)} frames are none of {shown} stacks")
        observations = np.stack([frames[s : s + stack] for s in np.minimum(np.arange(steps), shown - 1)])
    else:
        observations = arrays["observations"]
    infos = {k.removeprefix("info_"): v for k, v in arrays.items() if k.startswith("info_")}
    named = {"observations": observations, "actions": arrays["actions"], "rewards": arrays["rewards"], **infos}
    for name, array in named.items():
        if array.shape[:1] != (steps,):
            raise ValueError(f"its {name[:60]!r} have the shape {array.shape[:4]}, not {steps} steps")
    return Segment(observations, arrays["actions"], arrays["rewards"], absorbing, infos)


def parse_arrays(data: bytes) -> dict[str, np.ndarray]:
    """All arrays of an .npz, so that every checksum and name is looked at; none larger than it says or than is sane."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        if (size := sum(entry.file_size for entry in file.infolist())) > MAX_BYTES:
            raise ValueError(f"it would take {size} bytes, more than {MAX_BYTES}")
        for entry in file.infolist():
            content = io.BytesIO(file.read(entry))
            version = np.lib.format.read_magic(content)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(content)
            if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename[:60]!r} is no array of {shape[:4]} numbers")
            content.seek(0)
            name = entry.filename.removesuffix(".npy")
            arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


def _shown(absorbing: np.ndarray) -> int:
    """Steps with an observation of their own: the live ones and the terminal one, which the others only hold."""
    return len(absorbing) - max(int(absorbing.sum()) - 1, 0)


def stack(observations: Sequence[np.ndarray]) -> np.ndarray:
    """T observations -> (T, *obs_shape). Stacks of frames (S, H, W) that slide by one frame a step become a view of the
    frames, to be read only: a quarter of the memory."""
    first, rest = observations[0], observations[1:]
    slide = first.ndim == 3 and all(np.array_equal(a[1:], b[:-1]) for a, b in itertools.pairwise(observations))
    if not slide:
        return np.stack(observations)
    frames = np.concatenate([first, *(o[-1:] for o in rest)])
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, len(first), axis=0), -1, 1)


def unstack(stacks: np.ndarray) -> np.ndarray | None:
    """(T, S, H, W) stacks that slide by one frame a step -> (T + S - 1, H, W) frames; None where they do not."""
    if not np.array_equal(stacks[1:, :-1], stacks[:-1, 1:]):
        return None
    return np.concatenate([stacks[0], stacks[1:, -1]])
