"""What scripts/bench/learning.py teaches: tastes and measures by hand, and on what the environments really show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.atari import AtariOne
from rlhf_gym.config import Config
from rlhf_gym.labelers import ScoredClip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.bench import tasks


def clip(obs: Any, ended: int = 0, infos: Any = None) -> ScoredClip:
    obs = np.array(obs, float)
    absorbing = np.arange(len(obs)) >= len(obs) - ended
    return ScoredClip(obs, np.zeros(len(obs)), np.zeros(len(obs)), absorbing, infos or [{}] * len(obs))


def test_every_task_has_its_taste_and_its_measure() -> None:
    for task in tasks.TASKS.values():
        assert task.measure in ("return", "length") or callable(getattr(tasks, task.measure))
        assert not task.taste or callable(getattr(tasks, task.taste))


def test_classic_control() -> None:
    assert tasks.centred(clip([[1.2, 0], [0, 0], [2.4, 0]], ended=1)) == pytest.approx(1.5)
    assert tasks.fall(clip([[0], [0], [0]], ended=2)) == 2
    assert tasks.offset(clip([[-0.5], [0.1]])) == pytest.approx(0.3)
    hanging, upright, level = [1, 0, 1, 0], [-1, 0, 1, 0], [0, 1, 1, 0]  # cos and sin of both angles
    assert [tasks.tip_height(clip([o])) for o in (hanging, upright, level)] == pytest.approx([-2, 2, 0])
    assert tasks.car_height(clip([[-np.pi / 6], [np.pi / 6]])) == pytest.approx(0)


def hopping(angle: Any, height: float = 1.2, spin: float = 0.0) -> np.ndarray:
    """(T, 11) what Hopper sees."""
    obs = np.zeros((len(angle), 11))
    obs[:, 0], obs[:, 1], obs[:, 7] = height, angle, spin
    return obs


def test_a_backflip_is_a_whole_turn_backwards_landed_and_gone_on() -> None:
    turn = 2 * np.pi
    once = np.concatenate([np.zeros(50), np.linspace(0, -turn, 100), np.full(200, -turn)])
    assert tasks.flips(clip(hopping(once))) == 1
    assert tasks.flips(clip(hopping(-once))) == 0  # forwards
    assert tasks.flips(clip(hopping(once * 0.45))) == 0  # on its head
    assert tasks.flips(clip(hopping(once[:200]))) == 0  # and then?
    assert tasks.flips(clip(hopping(once, height=0.3))) == 0  # rolled over the ground
    forth_and_back = np.concatenate([np.linspace(0, turn, 100), np.linspace(turn, 0, 100), np.zeros(200)])
    assert tasks.flips(clip(hopping(forth_and_back))) == 1
    turned = -5 * np.arange(4) / 125  # by 5 rad/s
    standing, turning, forwards = hopping(np.zeros(4)), hopping(turned), hopping(-turned)
    lying, rocking = hopping(turned, height=0.2), hopping(np.array([0, 0.3, 0.3, 0]))
    scores = [tasks.backflip(clip(x)) for x in (turning, standing, lying, forwards, rocking)]
    assert scores == pytest.approx([6.5, 0.5, 1.0, -5.5, 0.5])


def test_the_hoppers_second_is_one_and_backwards_is_negative() -> None:
    import gymnasium
    import mujoco

    env = gymnasium.make("Hopper-v5").unwrapped
    env.reset(seed=1)
    assert tasks.HOPPER_SECOND * env.dt == pytest.approx(1)
    env.data.qpos[2], env.data.qvel[2] = -0.3, -2.0
    mujoco.mj_forward(env.model, env.data)
    obs = env._get_obs()
    assert (obs[tasks.HOPPER_ANGLE], obs[tasks.HOPPER_SPIN]) == pytest.approx((-0.3, -2.0))
    assert env.data.body("torso").xmat[2] < 0  # it hops towards +x and leans the other way
    env.close()


def test_donkey_kong_is_climbed_by_the_first_ladder() -> None:
    """Starts, walks to the ladder, which is at column 109 to 111, and climbs it; a jump on the way counts for nothing."""
    config = Config(env_id="ALE/DonkeyKong-v5", repeat_action_probability=0.0, noop_max=0)
    noop, fire, up, right = 0, 1, 2, 3
    game = AtariOne(config, render=False)
    game.reset(1)
    infos: list[dict[str, Any]] = []

    def play(action: int, steps: int) -> None:
        for _ in range(steps):
            infos.append(game.step(action)[4])

    def seen() -> ScoredClip:
        return clip(np.zeros((len(infos), 1)), infos=infos)

    def taste_of(action: int, steps: int) -> float:
        """Of the clip in which he does that."""
        begin = len(infos)
        play(action, steps)
        return tasks.climbed(clip(np.zeros((steps, 1)), infos=infos[begin:]))

    play(noop, 8)
    play(fire, 14)  # the game begins, and he jumps
    assert tasks.highest(seen()) == 0
    play(noop, 20)  # and stands again
    assert taste_of(noop, 5) == pytest.approx(0, abs=0.5)
    assert taste_of(fire, 8) == pytest.approx(0, abs=0.5)
    walking = [taste_of(right, 8) for _ in range(4)]
    assert walking == sorted(walking)
    assert walking[-1] > walking[0] + 1
    for _ in range(60):
        play(right, 1)
        if infos[-1]["ram"][tasks.KONG_COLUMN] >= 109:
            break
    below = taste_of(noop, 1)
    assert below == pytest.approx(tasks.KONG_RISE, abs=0.2)
    climbing = [taste_of(up, 5) for _ in range(4)]
    assert below < climbing[0] < climbing[1] < climbing[2] < climbing[3]
    game.close()
    assert tasks.highest(seen()) == 22
    assert climbing[-1] <= 22 + tasks.KONG_RISE


def test_donkey_kong_who_is_not_there_or_begins_with_a_jump_is_nowhere() -> None:
    def one(row: int, jump: int = 255, column: int = 110) -> dict[str, Any]:
        memory = np.zeros(128, np.uint8)
        memory[[tasks.KONG_COLUMN, tasks.KONG_ROW, tasks.KONG_JUMP]] = column, row, jump
        return {"ram": memory}

    def taste(*infos: dict[str, Any]) -> float:
        return tasks.climbed(clip(np.zeros((len(infos), 1)), infos=list(infos)))

    assert taste(one(0)) == 0
    assert taste(one(140, jump=20)) == 0
    assert taste(one(154, column=49), one(140, jump=20, column=60)) == 0
    assert taste(one(144), one(130, jump=20)) == 15
    assert taste(one(144), one(137, jump=0)) == 15  # the last step of a jump
    assert taste(one(154, column=180)) == 0
