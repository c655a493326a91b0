"""Atari: ale-py's C++ vector environment for acting and learning, and one game that can also be seen.

Nothing here imports torch; ale-py is loaded when a game is made.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rlhf_gym.config import Config, UserError
from rlhf_gym.spec import EnvInfo, find_spec, said

ATARI_FPS = 60  # emulator frames a second (NTSC)
ATARI_MAX_FRAMES = 108_000  # half an hour of play, as ALE's v5 ids register it
# What --env-kwargs may hold for Atari: the arguments of AtariEnv that AtariVectorEnv has too.
ATARI_KWARGS = ("frameskip", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode")

# (top, bottom, left, right), ends excluded, of the score in an 84x84 observation: found by looking at frames.
SCORE_REGIONS: dict[str, list[tuple[int, int, int, int]]] = {
    "ALE/Pong-v5": [(0, 9, 0, 84)],
    "ALE/Breakout-v5": [(0, 6, 0, 84)],  # lives and player stand in the same rows
    "ALE/DonkeyKong-v5": [(0, 6, 0, 84)],  # Donkey Kong's head begins in row 6
}


def is_atari(config: Config) -> bool:
    return config.env_id.startswith("ALE/")


def atari_settings(config: Config, num_envs: int) -> dict[str, Any]:
    """The arguments of ale_py's AtariVectorEnv.

    Raises:
        UserError: unknown game, ale_py missing, or something in --env-kwargs that AtariVectorEnv cannot do.
    """
    try:
        import ale_py

        gymnasium.register_envs(ale_py)
    except ImportError as error:
        raise UserError(
            f"{config.env_id} needs ale-py, which is not installed: pip install ale-py ({said(error)})"
        ) from error
    spec = find_spec(config.env_id)
    for name in config.env_kwargs:
        if name not in ATARI_KWARGS:
            raise UserError(
                f"--env-kwargs {name} does not work with {config.env_id}: ALE's vector environment knows only "
                f"{', '.join(ATARI_KWARGS)}."
            )
    given = {
        "frameskip": config.frameskip,
        "repeat_action_probability": config.repeat_action_probability,
        "full_action_space": False,
        "max_num_frames_per_episode": spec.kwargs.get("max_num_frames_per_episode") or ATARI_MAX_FRAMES,
        **config.env_kwargs,
    }
    return dict(
        given,
        game=spec.kwargs["game"],
        num_envs=num_envs,
        num_threads=min(num_envs, 2 * (os.cpu_count() or 1)),  # ale_py 0.12 caps it at the cores
        stack_num=config.frame_stack,
        img_height=config.image_size,
        img_width=config.image_size,
        noop_max=config.noop_max,
        reward_clipping=False,  # it clips by default
        episodic_life=False,  # it would reset the whole game at each lost life
        # NEXT_STEP resets an ended episode only if we do not do it ourselves first, with a seed, and we always do.
        # SAME_STEP would reset it without a seed, at once, and report the reset's lives and frame number.
        autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP,
    )


# Vector environments that are not in use, by their settings: eight games take a second and a half to make. A reset with
# a seed begins anew all the same (tests/test_envs.py).
SPARE: dict[str, Any] = {}


class AtariVector:
    """N Atari games in ale_py's threads."""

    def __init__(self, config: Config, num_envs: int) -> None:
        self.settings = settings = atari_settings(config, num_envs)
        import ale_py
        from ale_py.vector_env import AtariVectorEnv

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it prints a banner
        self._key = json.dumps(settings, default=str, sort_keys=True)
        try:
            self.vector: Any = SPARE.pop(self._key, None) or AtariVectorEnv(**settings)
        except Exception as error:
            given = f" with --env-kwargs {config.env_kwargs}" if config.env_kwargs else ""
            raise UserError(f"{config.env_id} could not be made{given}: {said(error)}") from error
        frameskip, frames = settings["frameskip"], settings["max_num_frames_per_episode"]
        self.info = EnvInfo(
            kind="atari",
            obs_shape=(config.frame_stack, config.image_size, config.image_size),
            image=True,
            num_actions=len(self.vector.ale.get_action_set()),
            action_shape=(),
            action_low=None,
            action_high=None,
            fps=ATARI_FPS / frameskip,
            max_episode_steps=math.ceil(frames / frameskip),
        )

    # The arrays that ale_py returns are new each time (its buffers are released to numpy), so they are not copied.

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        return self.vector.reset(seed=seeds)[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, info = self.vector.step(np.asarray(actions, np.int64))
        names = ("lives", "episode_frame_number")
        infos = [dict(zip(names, v, strict=True)) for v in zip(*(info[k].tolist() for k in names), strict=True)]
        return obs, rewards.astype(np.float32), terminated, truncated, infos

    def restart(self, obs: np.ndarray, ended: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return self.vector.reset(seed=seeds[ended], options={"reset_mask": ended})[0]

    def close(self) -> None:
        vector, self.vector = self.vector, None
        if vector is not None and SPARE.setdefault(self._key, vector) is not vector:
            vector.close()


class Console:
    """The plain emulator: it has the colours and the memory that the vector environment lacks."""

    def __init__(self, settings: dict[str, Any], render: bool) -> None:
        import ale_py
        from ale_py import roms

        rom = roms.get_rom_path(settings["game"])
        assert rom is not None  # AtariVector has loaded it
        self._rom, self._render = rom, render
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", settings["repeat_action_probability"])
        # no limit of frames: the emulator would count the no-ops, too, which ALE's vector environment does not
        self.ale.loadROM(self._rom)
        full = settings["full_action_space"]
        self.actions = self.ale.getLegalActionSet() if full else self.ale.getMinimalActionSet()
        self.screens: list[np.ndarray] = []  # the last two, (210, 160, 3)

    def begin(self, seed: int, begun: Callable[[], bool]) -> None:
        """Plays the emulator's beginning as ALE's preprocessed_env.cpp does: FIRE if there is one, then no-ops."""
        import ale_py

        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(self._rom)
        self.ale.reset_game()
        if ale_py.Action.FIRE in self.actions:
            self.ale.act(ale_py.Action.FIRE)
        while not begun():
            self.ale.act(ale_py.Action.NOOP)
            if self.ale.game_over():
                self.ale.reset_game()
        self.screens = [self.ale.getScreenRGB()] if self._render else []

    def act(self, action: int, keep: bool) -> int:
        """One frame; `keep` says that it may be among those that `frame` shows. Returns its reward."""
        reward = self.ale.act(self.actions[action])
        if self._render and keep:
            self.screens = [*self.screens[-1:], self.ale.getScreenRGB()]
        return int(reward)

    def frame(self) -> np.ndarray:
        # Games draw sprites on alternate frames; like the agent's view, the lighter of the last two shows them all.
        return np.maximum(self.screens[0], self.screens[-1])


class AtariOne:
    """One Atari game, and with it a plain emulator in lock-step that has what the other lacks: colours and memory."""

    def __init__(self, config: Config, render: bool) -> None:
        self._atari = AtariVector(config, 1)
        self.info = self._atari.info
        self._console = Console(self._atari.settings, render)
        self._ale = self._console.ale

    def native(self, actions: np.ndarray) -> list[int]:
        return [int(a) for a in actions]

    def reset(self, seed: int) -> np.ndarray:
        obs, info = self._atari.vector.reset(seed=np.array([seed]))
        target = int(info["frame_number"][0])
        self._console.begin(seed, lambda: self._ale.getFrameNumber() >= target)
        self._check(info)
        return obs[0]

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, rewards, terminated, truncated, info = self._atari.vector.step(np.array([action], np.int64))
        target, reward = int(info["frame_number"][0]), 0
        while (left := target - self._ale.getFrameNumber()) > 0 and not self._ale.game_over():
            reward += self._console.act(action, left <= 2)
        assert reward == rewards[0], (reward, rewards[0])
        self._check(info)
        return obs[0], float(reward), bool(terminated[0]), bool(truncated[0]), {
            "lives": int(info["lives"][0]),
            "episode_frame_number": int(info["episode_frame_number"][0]),
            "ram": self._ale.getRAM().copy(),
        }  # fmt: skip

    def _check(self, info: dict[str, Any]) -> None:
        for name, mine in (
            ("frame_number", self._ale.getFrameNumber()),
            ("episode_frame_number", self._ale.getEpisodeFrameNumber()),
            ("lives", self._ale.lives()),
        ):
            assert mine == info[name][0], f"the emulators went apart: {name} {mine}, {info[name][0]}"

    def frame(self) -> np.ndarray:
        return self._console.frame()

    def action_names(self) -> list[str]:
        return [" ".join(re.findall("noop|up|down|left|right|fire", a.name.lower())) for a in self._console.actions]

    def close(self) -> None:
        self._atari.close()


class AtariAgain:
    """Plays an Atari episode that is known again, on the plain emulator alone: several times as fast as AtariOne.

    It sees what AtariVector sees up to one gray level, since averages over areas are rounded.
    """

    def __init__(self, config: Config, render: bool) -> None:
        self._settings = atari_settings(config, 1)
        self._console = Console(self._settings, render)
        self._ale, self._skip = self._console.ale, self._settings["frameskip"]
        height, width = self._ale.getScreenGrayscale().shape
        self._rows, self._columns = areas(height, config.image_size), areas(width, config.image_size).T
        self._grays: list[np.ndarray] = []
        self._limit = 0  # an episode ends at this frame, be it in the middle of a step

    def reset(self, seed: int, frames: int) -> None:
        """Begins the episode that has come so many frames far when the agent takes over."""
        latest = frames + self._settings["noop_max"] + 1

        def begun() -> bool:
            nonlocal latest
            latest -= 1
            return self._ale.getEpisodeFrameNumber() == frames or latest < 0

        self._console.begin(seed, begun)
        self._limit = self._ale.getEpisodeFrameNumber() + self._settings["max_num_frames_per_episode"]
        self._grays = [self._ale.getScreenGrayscale()]

    def step(self, action: int, look: bool = True) -> float:
        """Returns the reward.

        Args:
            look: whether `sees` or `frame` is asked after it.
        """
        reward = 0
        for _ in range(self._skip):
            if self._ale.game_over() or self._ale.getEpisodeFrameNumber() >= self._limit:
                break
            reward += self._console.act(action, look)  # each frame: which are the last two, only the end tells
            if look:
                self._grays = [*self._grays[-1:], self._ale.getScreenGrayscale()]
        return float(reward)

    def sees(self, obs: np.ndarray) -> bool:
        """Whether this is the newest frame of obs (S, H, W)."""
        gray = self._rows @ np.maximum(self._grays[0], self._grays[-1]).astype(np.float32) @ self._columns
        return bool(np.abs(np.rint(gray) - obs[-1]).max() <= 1)

    def ram(self) -> np.ndarray:
        return np.array(self._ale.getRAM())

    def frame(self) -> np.ndarray:
        return self._console.frame()


def areas(pixels: int, wanted: int) -> np.ndarray:
    """(wanted, pixels): how much of each of the wanted pixels each old one covers; rows add up to one."""
    edges = np.linspace(0, pixels, wanted + 1)
    low, high = edges[:-1, None], edges[1:, None]
    covered = np.clip(np.minimum(high, np.arange(pixels) + 1) - np.maximum(low, np.arange(pixels)), 0, None)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def score_regions(config: Config) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of what shows the score, in pixels of the observation, ends excluded.

    Empty if it is not an Atari game whose regions we know, or if the settings say not to mask.
    """
    if not (config.mask_score and is_atari(config)):
        return []
    regions = SCORE_REGIONS.get(config.env_id, [])
    scale = config.image_size / 84
    return [
        (math.floor(t * scale), math.ceil(b * scale), math.floor(lft * scale), math.ceil(r * scale))
        for t, b, lft, r in regions
    ]
