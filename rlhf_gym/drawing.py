"""Clips that are drawn while the person labels the first of them. Nothing here loads torch.

Until all are drawn, `undrawn.npz` beside the clips holds how each is to be played again, so a program that was killed
goes on where it was. Only for environments that are known to repeat themselves: others are drawn before anybody sees
the batch, and filmed where they turn out not to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo
from rlhf_gym.files import write_atomic
from rlhf_gym.replay import Candidate, Report, play_again
from rlhf_gym.segments import MAX_BYTES, Segment, load_clip, parse_arrays, write_arrays
from rlhf_gym.sheets import shown_stride
from rlhf_gym.spec import find_spec
from rlhf_gym.store import Clip, Session

T = TypeVar("T")
NOTHING = Segment(np.empty(0), np.empty(0), np.empty(0), np.empty(0), {})
REPEAT_THEMSELVES = ("gymnasium.envs.", "ale_py.", "rlhf_gym.")


def repeats_itself(config: Config) -> bool:
    """Whether episodes of this environment are known to play again bit for bit (tests/test_envs.py)."""
    return str(find_spec(config.env_id).entry_point).startswith(REPEAT_THEMSELVES)


def shown_frames(segment: Segment, stride: int) -> int:
    """How many frames a clip's sheet has: every stride-th step, and the terminal one."""
    live = int((~segment.absorbing).sum())
    return -(-live // stride) + (live < len(segment.rewards))


def postpone(path: Path, candidates: Mapping[str, Candidate], shape: tuple[int, int]) -> None:
    """Writes down how to play candidates again, by the name of their clip (its file without the suffix).

    Args:
        shape: height and width of the environment's frames.
    """
    arrays = {"shape": np.array(shape)}
    for name, c in candidates.items():
        arrays[f"{name}_seed"] = np.array(c.seed)
        arrays[f"{name}_prefix"] = np.array(c.prefix)
        arrays[f"{name}_resets"] = np.array(sorted(c.resets.items()), np.int64).reshape(-1, 2)
    write_arrays(path, arrays)


def draw_rest(
    session: Session, config: Config, info: EnvInfo, number: int, attempt: int, report: Report
) -> list[str]:  # fmt: skip
    """Draws what is left of a batch, in the order of its pairs: a few clips first, then more and more at once.

    Returns:
        a sentence for each thing that keeps clips without a picture.
    """
    path, trouble = session.undrawn(number, attempt), []
    shape: tuple[int, int] | None = None
    postponed: dict[str, Candidate] = {}
    try:
        shape, postponed = read(path)
    except Exception as error:  # numpy and zipfile say it in many ways
        said = " ".join(str(error).split())[:200] or type(error).__name__
        trouble.append(f"{path} cannot be read ({said}): clips of this batch have no picture, skip them.")
    pairs = session.pairs(number, attempt)
    clips = session.clips([i for p in pairs for i in (p.left_clip, p.right_clip)])
    waiting: list[tuple[Clip, Candidate]] = []
    for clip in [clips[i] for p in pairs for i in (p.left_clip, p.right_clip)]:
        here = (clip.round, clip.attempt) == (number, attempt)  # repeats show clips of earlier rounds
        again = postponed.get(Path(clip.path).stem)
        if here and again is not None and clip.sheet is not None and session.file(clip.sheet) is None:
            try:
                waiting.append((clip, replace(again, segment=load_clip(session, clip))))
            except UserError as error:
                trouble.append(f"{error} It has no picture: skip its pair.")
    count = 0
    for some in growing(waiting):
        done = count

        def drawn(n: int, _total: int, done: int = done) -> None:
            report(done + n, len(waiting))

        candidates = [candidate for _, candidate in some]
        if not play_again(candidates, config, shown_stride(info.fps), True, drawn, shape):
            trouble.append(f"{config.env_id} did not repeat itself: some clips have no picture, skip them.")
        for clip, candidate in some:
            if candidate.sheet is not None and clip.sheet is not None:
                write_atomic(session.path / clip.sheet, candidate.sheet.png)
        count += len(some)
    path.unlink()
    session.measure_batch(number, attempt)
    return trouble


def growing(items: list[T]) -> Iterator[list[T]]:
    """2, 4, 8 ... of them: the first ones soon; and the more at once, the less is played twice."""
    begin, size = 0, 2
    while begin < len(items):
        yield items[begin : begin + size]
        begin, size = begin + size, 2 * size


def read(path: Path) -> tuple[tuple[int, int], dict[str, Candidate]]:
    """What `postpone` wrote, the segments aside."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    arrays = parse_arrays(path.read_bytes())
    height, width = arrays.pop("shape").tolist()
    found = {}
    for name in {key.partition("_")[0] for key in arrays}:
        resets = {int(t): int(seed) for t, seed in arrays[f"{name}_resets"].tolist()}
        found[name] = Candidate(NOTHING, int(arrays[f"{name}_seed"]), list(arrays[f"{name}_prefix"]), resets)
    return (int(height), int(width)), found
