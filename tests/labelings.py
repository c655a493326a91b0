"""What tests of the engine share: kinds of environments, segments and labels made by hand, one thread and a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo
from rlhf_gym.labels import Labels
from rlhf_gym.segments import Segment
from rlhf_gym.store import Pair

CPU = torch.device("cpu")
VECTOR = EnvInfo("classic", (4,), False, 2, (), None, None, 50.0, 500)
TORQUE = EnvInfo("classic-continuous", (3,), False, None, (1,), (-2.0,), (2.0,), 30.0, 200)
IMAGE = EnvInfo("pixels", (2, 36, 36), True, 3, (), None, None, 15.0, 50)
CARTPOLE = Config(env_id="CartPole-v1", num_envs=2, num_steps=64, update_epochs=2, normalize_obs=True)


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def segment(obs: np.ndarray, actions: np.ndarray, ended: int = 0) -> Segment:
    """A segment whose last `ended` steps are absorbing."""
    steps = len(obs)
    return Segment(obs, actions, np.zeros(steps, np.float32), np.arange(steps) >= steps - ended, {})


def pair(number: int, left: int, right: int, choice: str = "left", strength: str = "normal", **more) -> Pair:
    row = dict(round=0, attempt=0, position=number, kind="uniform", repeat_of=None, p_left=None, disagreement=None)
    return Pair(id=number, left_clip=left, right_clip=right, choice=choice, strength=strength, **{**row, **more})


def random_labels(count: int, members: int = 2, info: EnvInfo = VECTOR, steps: int = 5) -> Labels:
    """Labels of someone who likes a large first number (or a bright picture), held frames too, and dislikes an end."""
    rng, segments, worth = np.random.default_rng(1), {}, {}
    for i in range(2 * count):
        ended = int(rng.integers(0, 3)) if not info.image else 0
        if info.image:
            obs = rng.integers(0, 256, (steps, *info.obs_shape), dtype=np.uint8) // int(rng.integers(1, 5))
        else:
            obs = rng.normal(size=(steps, *info.obs_shape)).astype(np.float32)
        obs[steps - ended :] = obs[min(steps - ended, steps - 1)]  # what was seen last, held
        if info.num_actions:
            actions = rng.integers(info.num_actions, size=steps)
        else:
            actions = rng.normal(size=(steps, *info.action_shape)).astype(np.float32)
        segments[i] = segment(obs, actions, ended)
        worth[i] = (float(obs.mean()) if info.image else obs[:, 0].sum()) - 3 * ended
    pairs = [
        pair(n + 1, 2 * n, 2 * n + 1, "left" if worth[2 * n] > worth[2 * n + 1] else "right") for n in range(count)
    ]
    return Labels(pairs, segments, lambda a: a, seed=1, members=members)


def same(a, b) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
