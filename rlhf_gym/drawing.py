"""Clips that are drawn while the person labels the first of them. Nothing here loads torch.

Until all are drawn, `undrawn.npz` beside the clips holds how each is to be played again, so a program that was killed
goes on where it was. Only for environments that are known to repeat themselves: others are drawn before anybody sees
the batch, and filmed where they turn out not to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo
from rlhf_gym.files import remove, write_atomic
from rlhf_gym.replay import Candidate, Report, play_again
from rlhf_gym.segments import MAX_BYTES, Segment, load_clip, parse_arrays, write_arrays
from rlhf_gym.sheets import shown_stride
from rlhf_gym.spec import find_spec
from rlhf_gym.store import Clip, Session

T = TypeVar("T")
NOTHING = Segment(np.empty(0), np.empty(0), np.empty(0), np.empty(0), {})
REPEAT_THEMSELVES = ("gymnasium.envs.", "ale_py.", "rlhf_gym.")
NAME = re.compile(r"\d{4,9}")  # of a clip's files, without suffix
BATCH = re.compile(r"r(\d{3,9})(?:-(\d{1,9}))?")
MAX_SIDE = 10_000  # pixels of an environment's frames


def repeats_itself(config: Config) -> bool:
    """Whether episodes of this environment are known to play again bit for bit (tests/test_envs.py)."""
    spec = find_spec(config.env_id)
    known = str(spec.entry_point).startswith(REPEAT_THEMSELVES) and ":" not in config.env_id
    return known and not spec.additional_wrappers  # which may do what they like


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
    session: Session, config: Config, info: EnvInfo, number: int, attempt: int, report: Report,
    wanted: Callable[[], bool] = lambda: True,
) -> list[str]:  # fmt: skip
    """Draws what is left of a batch, in the order of its pairs: a few clips first, then more and more at once.

    Args:
        wanted: asked now and then whether anybody will still look at them.

    Returns:
        a sentence for each thing that keeps clips without a picture.
    """
    note = session.file(session.undrawn(number, attempt).relative_to(session.path).as_posix())
    trouble: list[str] = []
    shape: tuple[int, int] | None = None
    postponed: dict[str, Candidate] = {}
    try:
        if note is not None:
            shape, postponed = parse(read(note))
    except Exception as error:  # numpy and zipfile say in many ways that it is damaged
        if isinstance(error, OSError | MemoryError):
            raise  # of this moment: nothing is lost
        said = " ".join(str(error).split())[:200] or type(error).__name__
        trouble.append(f"{note} is damaged ({said}): clips of this batch have no picture, skip them.")
    waiting = undrawn_clips(session, number, attempt, set(postponed))
    done = missing = 0
    for some in growing(waiting):
        if not wanted():
            break
        group: list[tuple[Clip, Candidate]] = []
        for clip in some:
            try:
                again = postponed[Path(clip.path).stem]
                group.append((clip, replace(again, segment=load_clip(session, clip))))
            except UserError as error:
                trouble.append(f"{error} It has no picture: skip its pair.")

        def write(group: list[tuple[Clip, Candidate]] = group) -> None:
            for clip, candidate in group:
                place = session.path / str(clip.sheet)
                if candidate.sheet is not None and not place.exists():
                    write_atomic(place, candidate.sheet.png)

        def drawn(n: int, _total: int, before: int = done, write: Callable[[], None] = write) -> None:
            write()  # the last one is still being drawn, in a thread
            report(before + n, len(waiting))

        if not replayed([candidate for _, candidate in group], config, info, shape, drawn, trouble):
            for _, candidate in group:  # one by one, so that one that does not repeat itself takes no other along
                if candidate.sheet is None:
                    replayed([candidate], config, info, shape, drawn, trouble)
        write()
        missing += sum(candidate.sheet is None for _, candidate in group)
        done += len(some)
    if missing:
        trouble.append(f"{config.env_id} did not repeat itself: {missing} clips have no picture, skip their pairs.")
    give_up(session, number, attempt)
    return trouble


def replayed(
    candidates: Sequence[Candidate], config: Config, info: EnvInfo, shape: tuple[int, int] | None, report: Report,
    trouble: list[str],
) -> bool:  # fmt: skip
    """Whether all of them played again; what the environment complains about goes to `trouble`."""
    try:
        return play_again(candidates, config, shown_stride(info.fps), True, report, shape)
    except UserError as error:
        if str(error) not in trouble:
            trouble.append(str(error))
        return False


def undrawn_clips(session: Session, number: int, attempt: int, postponed: set[str]) -> list[Clip]:
    """Those of a batch that are to be drawn, as its pairs come. A row may say anything, if somebody else wrote it."""
    directory = session.clip_directory(number, attempt)
    if os.path.realpath(directory) != os.path.join(os.path.realpath(session.path), "clips", directory.name):
        return []
    pairs = session.pairs(number, attempt)
    clips = session.clips([i for p in pairs for i in (p.left_clip, p.right_clip)])
    found = []
    for clip in [clips[i] for p in pairs for i in (p.left_clip, p.right_clip)]:  # repeats show clips of other rounds
        name = Path(clip.path).stem
        place = f"clips/{directory.name}/{name}"
        mine = NAME.fullmatch(name) and (clip.path, clip.sheet) == (f"{place}.npz", f"{place}.png")
        if mine and name in postponed and not os.path.lexists(session.path / f"{place}.png"):
            found.append(clip)
    return found


def give_up(session: Session, number: int, attempt: int) -> None:
    """From now on no clip of the batch is still to come."""
    remove(session.undrawn(number, attempt))
    session.measure_batch(number, attempt)


def give_up_others(session: Session, number: int, attempt: int) -> None:
    """The same for all batches but one: what nobody looks at any more is not drawn."""
    for path in session.path.glob("clips/*/undrawn.npz"):
        batch = BATCH.fullmatch(path.parent.name)
        if batch and path != session.undrawn(number, attempt):
            give_up(session, int(batch[1]), int(batch[2] or 0))


def growing(items: list[T]) -> Iterator[list[T]]:
    """2, 4, 8 ... of them: the first ones soon; and the more at once, the less is played twice."""
    begin, size = 0, 2
    while begin < len(items):
        yield items[begin : begin + size]
        begin, size = begin + size, 2 * size


def read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    return path.read_bytes()


def parse(data: bytes) -> tuple[tuple[int, int], dict[str, Candidate]]:
    """What `postpone` wrote: the frames' height and width, and the candidates without their segments."""
    arrays = parse_arrays(data)
    height, width = (int(side) for side in arrays.pop("shape").tolist())
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"frames of {height} x {width} pixels")
    found = {}
    for name in {key.partition("_")[0] for key in arrays}:
        resets = {int(t): int(seed) for t, seed in arrays[f"{name}_resets"].tolist()}
        found[name] = Candidate(NOTHING, int(arrays[f"{name}_seed"]), list(arrays[f"{name}_prefix"]), resets)
    return (height, width), found
