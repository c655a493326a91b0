"""An environment with whatever spaces, rewards and faults a test asks for."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlhf_gym.config import Config


class Strange(gymnasium.Env):
    """An environment with whatever spaces, rewards and faults a test asks for."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(self, render_mode=None, obs=None, act=None, fail="", reward=1.0, end=0):
        self.render_mode, self.fail, self.reward, self.end = render_mode, fail, reward, end
        self.observation_space = obs or spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = act or spaces.Discrete(2)
        self.actions: list[Any] = []
        if fail == "init":
            raise ValueError("the moon is full\nand more")

    def reset(self, *, seed=None, options=None):
        if self.fail == "later reset" and hasattr(self, "t"):
            raise RuntimeError("once is enough")
        if self.fail == "reset":
            raise RuntimeError("no reset today")
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {"t": -1}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        if self.fail == "step" and self.t == 3:
            raise ZeroDivisionError("the wind has turned\nand more")
        info = {"t": self.t, "words": "x", "array": np.ones(2), "np": np.float32(0.5)}
        obs = self.observation_space.sample()
        if self.fail == "nan" and self.t == 3:
            obs[-1] = math.nan
        if self.fail == "inf" and self.t == 3:
            obs[-1] = math.inf
        if self.fail == "shape" and self.t == 3:
            obs = obs[:1]
        if self.fail == "info" and self.t == 3:
            return obs, self.reward, False, False, "nothing to say"
        if self.fail == "rewards" and self.t == 3:
            return obs, np.ones(2), False, False, info
        return obs, self.reward, bool(self.end and self.t >= self.end), False, info

    def render(self):
        frame = np.zeros((40, 60, 3), np.uint8)
        frame[:, :, 0] = 255  # red
        self.drawn = getattr(self, "drawn", 0) + 1
        if self.fail == "later frame" and self.drawn == 3:
            raise OSError("no more film")
        if self.fail == "no later frame" and self.drawn == 3:
            return None
        return frame


class Blind(Strange):
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        super().__init__()


gymnasium.register("test/Strange-v0", entry_point=Strange, max_episode_steps=5)
gymnasium.register("test/Blind-v0", entry_point=Blind)


def strange(pixels=False, image_size=84, **kwargs) -> Config:
    return Config(env_id="test/Strange-v0", env_kwargs=kwargs, pixels=pixels, image_size=image_size)
