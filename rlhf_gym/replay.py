"""Plays the chosen clips again, to draw them and, on Atari, to read the console's memory. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_gym.atari import AtariAgain, atari_settings, is_atari
from rlhf_gym.config import Config
from rlhf_gym.envs import Twin
from rlhf_gym.segments import Segment
from rlhf_gym.sheets import Sheet, make_sheet

Report = Callable[[int, int], None]


@dataclass
class Candidate:
    """A segment and how to play it again: reset with `seed`, then `prefix`, then the segment's own actions."""

    segment: Segment
    seed: int
    prefix: list[np.ndarray]  # the episode's actions before the segment
    resets: dict[int, int]  # with hidden episode ends: a new episode with this seed begins at this step
    sheet: Sheet | None = None
    shape: tuple[int, int] | None = None  # height and width of the environment's frames, once drawn


class Player:
    """A twin that plays episodes again and sees exactly what was seen."""

    def __init__(self, config: Config, render: bool) -> None:
        self._twin, self._score = Twin(config, render), config.score
        self._obs = np.empty(0)
        self._info: dict[str, Any] = {}

    def reset(self, seed: int, segment: Segment, step: int, before: int) -> None:
        """Begins an episode of which `before` steps were played before the segment's step `step`."""
        self._obs = self._twin.reset(seed)

    def step(self, action: np.ndarray, look: bool) -> None:
        """look: whether `sees` or `frame` is asked after it."""
        self._obs, _, _, _, self._info = self._twin.step(action)

    def sees(self, obs: np.ndarray, absorbing: bool) -> bool:
        return np.array_equal(self._obs, obs, equal_nan=obs.dtype.kind == "f")

    def frame(self) -> np.ndarray:
        return self._twin.frame()

    def ram(self) -> np.ndarray | None:
        """The console's memory, where there is one and a score function may ask for it."""
        return self._info.get("ram") if self._score else None

    def close(self) -> None:
        self._twin.close()


class QuickPlayer:
    """The same on Atari, in a quarter of the time: what it sees is checked up to one gray level."""

    def __init__(self, config: Config, render: bool) -> None:
        self._game, self._skip = AtariAgain(config, render), atari_settings(config, 1)["frameskip"]
        self._score = config.score

    def reset(self, seed: int, segment: Segment, step: int, before: int) -> None:
        frames = int(segment.infos["episode_frame_number"][step]) - self._skip * (before + 1)
        self._game.reset(seed, frames)

    def step(self, action: np.ndarray, look: bool) -> None:
        self._game.step(int(action), look)

    def sees(self, obs: np.ndarray, absorbing: bool) -> bool:
        return absorbing or self._game.sees(obs)  # of a step that ends early, ale-py shows frames of the one before

    def frame(self) -> np.ndarray:
        return self._game.frame()

    def ram(self) -> np.ndarray | None:
        return self._game.ram() if self._score else None

    def close(self) -> None:
        pass  # nothing is held


def play_again(
    candidates: Sequence[Candidate], config: Config, stride: int, frames: bool, report: Report,
    shape: tuple[int, int] | None = None,
) -> bool:  # fmt: skip
    """Plays candidates again to render them (and, on Atari, to read the console's RAM), filling them in.

    Args:
        shape: as of make_sheet.

    Returns:
        False if an environment did not repeat itself, so that what would be seen is not what was played.
    """
    quick = is_atari(config) and config.frameskip > 1  # else what the agent sees is another thing
    players: list[type[Player | QuickPlayer]] = [QuickPlayer, Player] if quick else [Player]
    return any(play(candidates, make(config, frames), stride, frames, report, shape) for make in players)


def play(
    candidates: Sequence[Candidate], player: Player | QuickPlayer, stride: int, frames: bool, report: Report,
    shape: tuple[int, int] | None = None,
) -> bool:  # fmt: skip
    """As play_again, by this player."""
    playing, played = -1, 0  # the episode the player is in, and its steps so far: many clips may come from one
    drawing: Future[None] | None = None  # of the clip before, while this one is played: one at a time, for memory
    pool = ThreadPoolExecutor(1)
    try:
        for n, c in enumerate(sorted(candidates, key=lambda c: (c.seed, len(c.prefix))), 1):
            seen, rams, segment = [], [], c.segment
            if c.seed != playing or len(c.prefix) < played:
                player.reset(c.seed, segment, 0, len(c.prefix))
                playing, played = c.seed, 0
            for i in range(played, len(c.prefix)):
                player.step(c.prefix[i], look=i == len(c.prefix) - 1)
            over = False
            for t in range(len(segment.rewards)):
                if t in c.resets:
                    player.reset(c.resets[t], segment, t, 0)
                if not (over or player.sees(segment.observations[t], bool(segment.absorbing[t]))):
                    return False
                if frames and not over and (t % stride == 0 or segment.absorbing[t]):
                    seen.append(player.frame())
                over = bool(segment.absorbing[t])  # the terminal frame is the sheet's last: the page holds it
                if not over:
                    player.step(segment.actions[t], look=True)
                if (ram := player.ram()) is not None:
                    rams.append(ram)
            if rams:
                segment.infos["ram"] = np.stack(rams)
            if drawing is not None:
                drawing.result()
            drawing = pool.submit(draw, c, seen, shape) if frames else None
            ended = c.resets or segment.absorbing.any()
            playing, played = (-1, 0) if ended else (c.seed, len(c.prefix) + len(segment.rewards))
            report(n, len(candidates))
        if drawing is not None:
            drawing.result()
    finally:
        pool.shutdown()
        player.close()
    return True


def draw(candidate: Candidate, frames: Sequence[np.ndarray], shape: tuple[int, int] | None) -> None:
    candidate.sheet, candidate.shape = make_sheet(frames, shape), frames[0].shape[:2]
