"""Segments: what the model sees of a clip, as .npz files.

Stacked frames are stored once each, absorbing steps not at all: a Pong clip of 25 steps takes 28 frames, not 100.
Nothing here imports torch.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.config import UserError
from rlhf_gym.store import Clip, Session, write_atomic


@dataclass(frozen=True)
class Segment:
    """What the model sees of a clip, whole: T steps, of which those from the episode's end on are absorbing."""

    observations: np.ndarray  # (T, *obs_shape) raw and unmasked; after the end the terminal observation, held
    actions: np.ndarray  # (T,) int64 or (T, A) float32; zeros where absorbing
    rewards: np.ndarray  # (T,) float32, the true reward; zeros where absorbing
    absorbing: np.ndarray  # (T,) bool
    infos: dict[str, np.ndarray]  # name -> (T, ...) numbers the environment reported; on Atari also "ram" (T, 128)

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
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_segment(path: Path) -> Segment:
    """Reads what save_segment wrote; raises UserError where the file is missing or damaged."""
    try:
        return _read(path)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"Clip {path} cannot be read ({error}).") from None


def load_clip(session: Session, clip: Clip) -> Segment:
    """The segment that a clip's row names, which has to lie in the session; raises UserError as load_segment."""
    path = session.file(clip.path)
    if path is None:
        raise UserError(f"Clip {session.path / clip.path} cannot be read (there is no such file in its session).")
    return load_segment(path)


def _read(path: Path) -> Segment:
    with np.lib.npyio.NpzFile(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = dict(file)  # all of them, so that every checksum and name is looked at
    absorbing = arrays["absorbing"]
    if "frames" in arrays:
        frames = arrays["frames"]
        shown = _shown(absorbing)
        stack = len(frames) - shown + 1
        observations = np.stack([frames[s : s + stack] for s in np.minimum(np.arange(len(absorbing)), shown - 1)])
    else:
        observations = arrays["observations"]
    infos = {k.removeprefix("info_"): v for k, v in arrays.items() if k.startswith("info_")}
    return Segment(observations, arrays["actions"], arrays["rewards"], absorbing, infos)


def _shown(absorbing: np.ndarray) -> int:
    """Steps with an observation of their own: the live ones and the terminal one, which the others only hold."""
    return len(absorbing) - max(int(absorbing.sum()) - 1, 0)


def unstack(stacks: np.ndarray) -> np.ndarray | None:
    """(T, S, H, W) stacks that slide by one frame a step -> (T + S - 1, H, W) frames; None where they do not."""
    if not np.array_equal(stacks[1:, :-1], stacks[:-1, 1:]):
        return None
    return np.concatenate([stacks[0], stacks[1:, -1]])
