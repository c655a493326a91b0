"""Environments: that episodes can be played again bit for bit, that ends are told truly, and what frames show."""

from __future__ import annotations

import gc
import itertools
import math

import numpy as np
import pytest
from gymnasium import spaces
from strange import strange

from rlhf_gym import atari, dot, envs
from rlhf_gym.config import Config


def some_actions(info: envs.EnvInfo, rng: np.random.Generator, n: int) -> np.ndarray:
    if info.num_actions:
        return rng.integers(info.num_actions, size=n)
    return rng.uniform(-1.5, 1.5, (n, *info.action_shape)).astype(np.float32)  # beyond the bounds of most


REPLAYED = [
    ("CartPole-v1", 60, {}), ("Pendulum-v1", 210, {}), ("Acrobot-v1", 60, {}), ("MountainCar-v0", 210, {}),
    ("LunarLander-v3", 200, {}), ("BipedalWalker-v3", 250, {}), ("Hopper-v5", 80, {}), ("HalfCheetah-v5", 40, {}),
    ("ALE/Pong-v5", 150, {"env_kwargs": {"max_num_frames_per_episode": 202}}), ("ALE/Breakout-v5", 300, {}),
    ("ALE/DonkeyKong-v5", 150, {"env_kwargs": {"max_num_frames_per_episode": 400}}), ("rlhf_gym/Dot-v0", 60, {}),
    ("CartPole-v1", 40, {"pixels": True}),
]  # fmt: skip


@pytest.mark.parametrize(("env_id", "steps", "settings"), REPLAYED, ids=[f"{e}{'*' * bool(s)}" for e, _, s in REPLAYED])
def test_a_twin_plays_every_episode_again_bit_for_bit(env_id, steps, settings):
    config, rng = Config(env_id=env_id, **settings), np.random.default_rng(0)
    vec = envs.Envs(config, 2, (3, 1))
    obs = vec.reset()
    episodes = [[(int(vec.episode_seeds[i]), obs[i], [])] for i in range(2)]
    for _ in range(steps):
        actions = some_actions(vec.info, rng, 2)
        step = vec.step(actions)
        for i in range(2):
            outcome = (step.final_obs[i], step.rewards[i], step.terminated[i], step.truncated[i], step.info_of(i))
            episodes[i][-1][2].append((actions[i], outcome))
            if step.terminated[i] or step.truncated[i]:
                episodes[i].append((int(vec.episode_seeds[i]), step.obs[i], []))
    vec.close()
    assert vec.info.obs_shape == obs.shape[1:]
    assert obs.dtype == (np.uint8 if vec.info.image else np.float32)
    short = env_id in ("HalfCheetah-v5", "Acrobot-v1", "CartPole-v1")
    assert sum(map(len, episodes)) > 2 or short, "the test saw no episode end"

    twin = envs.Twin(config, render=env_id.startswith("ALE/"))
    for seed, first, played in itertools.chain(*episodes):
        assert np.array_equal(twin.reset(seed), first)
        for action, (final_obs, reward, terminated, truncated, info) in played:
            obs, *rest, seen = twin.step(action)
            assert obs.dtype == final_obs.dtype
            assert np.array_equal(obs, final_obs)
            assert rest == [reward, terminated, truncated]
            assert envs.numbers(seen) == info
    twin.close()


def test_episode_seeds_depend_on_nothing_but_their_place():
    def seeds(path, n, steps):
        vec = envs.Envs(Config(env_id="CartPole-v1"), n, path)
        vec.reset()
        found = [[int(s)] for s in vec.episode_seeds]
        for _ in range(steps):
            step = vec.step(np.ones(n, np.int64))
            for i in np.flatnonzero(step.terminated):
                found[i].append(int(vec.episode_seeds[i]))
        return found

    few, many = seeds((1, 2), 1, 60), seeds((1, 2), 3, 60)
    assert few[0] == many[0]
    assert many[2][1] == np.random.SeedSequence((1, 2, 2, 1)).generate_state(1)[0] >> 1  # (*seed_path, i, k)
    flat = list(itertools.chain(*many))
    assert len(flat) > 9
    assert len(set(flat)) == len(flat)
    assert all(0 <= s < 2**31 for s in flat)
    assert not set(flat) & set(itertools.chain(*seeds((1, 3), 3, 60)))


@pytest.mark.parametrize("game", ["ALE/Pong-v5", "ALE/Breakout-v5"])
def test_atari_games_used_before_are_as_good_as_new(game):
    """Making them takes a second and a half, so they are kept. Sticky actions are random, and so are the no-ops."""
    config = Config(env_id=game, num_envs=2)

    def play() -> list[np.ndarray]:
        vec, rng = envs.Envs(config, 2, (7,)), np.random.default_rng(0)
        seen = [vec.reset()]
        for _ in range(150):
            step = vec.step(rng.integers(0, vec.info.num_actions, 2))
            seen += [step.obs, step.rewards, step.terminated]
        vec.close()
        return seen

    atari.SPARE.clear()
    new = play()
    assert len(atari.SPARE) == 1
    kept = list(atari.SPARE.values())
    used = play()
    assert list(atari.SPARE.values()) == kept  # it was these
    assert all(np.array_equal(a, b) for a, b in zip(new, used, strict=True))


def test_a_second_reset_begins_other_episodes():
    vec = envs.Envs(Config(env_id="CartPole-v1"), 2, (1,))
    first = vec.reset()
    assert not np.array_equal(first, vec.reset())


def test_ends_by_termination_and_by_truncation():
    vec = envs.Envs(strange(end=3), 2, (0,))
    obs = vec.reset()
    for t in (1, 2, 3):
        step = vec.step(np.zeros(2, np.int64))
        assert step.terminated.tolist() == [t == 3] * 2
        if t < 3:
            assert step.final_obs is step.obs
    assert not step.truncated.any()
    assert not (step.obs == step.final_obs).any()  # random in both: the new episode's and the old one's
    assert step.info_of(1) == {"t": 3.0, "np": 0.5}, "the info must be the step's, not the reset's"
    twin = envs.Twin(strange(end=3), render=False)
    assert np.array_equal(twin.reset(int(vec.episode_seeds[1])), step.obs[1])

    vec = envs.Envs(strange(), 1, (0,))
    vec.reset()
    ends = [bool(vec.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(10)]
    assert ends == [False] * 4 + [True] + [False] * 4 + [True]
    assert obs.shape == (2, 2)


@pytest.mark.parametrize("game", ["Pong", "Breakout", "DonkeyKong"])
def test_the_info_of_an_ended_atari_game_is_its_last_steps(game):
    config = Config(env_id=f"ALE/{game}-v5", env_kwargs={"max_num_frames_per_episode": 40})
    vec = envs.Envs(config, 1, (0,))
    vec.reset()
    frames = []
    for _ in range(10):
        step = vec.step(np.zeros(1, np.int64))
        frames.append(step.info_of(0)["episode_frame_number"])
        assert step.truncated[0] == (len(frames) == 10)
    assert np.diff(frames).tolist() == [4] * 9
    assert not np.array_equal(step.obs, step.final_obs)
    assert (step.obs[0, :3] == 0).all(), "a new game's stack begins empty"


def test_arrays_are_the_callers_to_keep():
    for env_id in ("ALE/Pong-v5", "CartPole-v1", "rlhf_gym/Dot-v0"):
        vec, rng = envs.Envs(Config(env_id=env_id), 2, (0,)), np.random.default_rng(0)
        kept = [vec.reset()]
        copies = [kept[0].copy()]
        for _ in range(60):
            step = vec.step(some_actions(vec.info, rng, 2))
            kept += [step.obs, step.final_obs, step.rewards]
            copies += [step.obs.copy(), step.final_obs.copy(), step.rewards.copy()]
        assert all(map(np.array_equal, kept, copies)), env_id
        vec.close()


def test_rewards_pass_untouched_even_nan():
    vec = envs.Envs(strange(reward=math.nan), 2, (0,))
    vec.reset()
    assert np.isnan(vec.step(np.zeros(2, np.int64)).rewards).all()
    twin = envs.Twin(strange(reward=math.nan))
    twin.reset(0)
    assert math.isnan(twin.step(0)[1])


def test_continuous_actions_are_clipped_and_discrete_ones_shifted():
    box = spaces.Box(np.array([[-1, 0]]), np.array([[1, 3]]), dtype=np.float64)
    vec = envs.Envs(strange(act=box), 1, (0,))
    assert (vec.info.kind, vec.info.action_shape) == ("classic-continuous", (2,))
    assert (vec.info.action_low, vec.info.action_high) == ((-1.0, 0.0), (1.0, 3.0))
    vec.reset()
    vec.step(np.array([[-5.0, 2.0]], np.float32))
    (action,) = vec._vector.envs[0]._env.unwrapped.actions
    assert action.dtype == np.float64
    assert action.tolist() == [[-1.0, 2.0]]
    vec = envs.Envs(strange(act=spaces.Discrete(3, start=7)), 1, (0,))
    vec.reset()
    vec.step(np.array([2]))
    assert vec._vector.envs[0]._env.unwrapped.actions == [9]


@pytest.mark.parametrize(
    ("env_id", "settings", "expected"),
    [
        ("CartPole-v1", {}, ("classic", (4,), 2, 50.0, 500)),
        ("Pendulum-v1", {}, ("classic-continuous", (3,), None, 30.0, 200)),
        ("LunarLander-v3", {}, ("box2d", (8,), 4, 50.0, 1000)),
        ("Hopper-v5", {}, ("mujoco-falls", (11,), None, 125.0, 1000)),
        ("Hopper-v5", {"env_kwargs": {"terminate_when_unhealthy": False}}, ("mujoco", (11,), None, 125.0, 1000)),
        ("HalfCheetah-v5", {}, ("mujoco", (17,), None, 20.0, 1000)),
        ("ALE/Pong-v5", {}, ("atari", (4, 84, 84), 6, 15.0, 27000)),
        ("ALE/Pong-v5", {"env_kwargs": {"frameskip": 3, "full_action_space": True}},
         ("atari", (4, 84, 84), 18, 20.0, 36000)),
        ("ALE/Pong-v5", {"frameskip": 2, "image_size": 60, "frame_stack": 2}, ("atari", (2, 60, 60), 6, 30.0, 54000)),
        ("rlhf_gym/Dot-v0", {}, ("pixels", (4, 44, 44), 5, 15.0, 50)),
        ("rlhf_gym.dot:rlhf_gym/Dot-v0", {}, ("pixels", (4, 44, 44), 5, 15.0, 50)),
        ("CarRacing-v3", {}, ("pixels", (4, 84, 84), None, 50.0, 1000)),
        ("CartPole-v1", {"pixels": True, "frame_stack": 3}, ("pixels", (3, 84, 84), 2, 50.0, 500)),
        ("FrozenLake-v1", {}, ("classic", (16,), 4, 4.0, 100)),
        ("Blackjack-v1", {}, ("classic", (32 + 11 + 2,), 2, 4.0, None)),
        ("CartPole-v1", {"env_kwargs": {"max_episode_steps": 7}}, ("classic", (4,), 2, 50.0, 7)),
    ],
)  # fmt: skip
def test_describe(env_id, settings, expected):
    i = envs.describe(Config(env_id=env_id, **settings))
    assert (i.kind, i.obs_shape, i.num_actions, i.fps, i.max_episode_steps) == expected


def test_discrete_observations_are_one_hot():
    obs = envs.Envs(Config(env_id="FrozenLake-v1"), 2, (0,)).reset()
    assert obs.tolist() == [[1.0] + [0.0] * 15] * 2


def test_images_are_kept_resized_stacked():
    small = spaces.Box(0, 255, (40, 50, 3), np.uint8)
    assert envs.describe(strange(obs=small)).obs_shape == (4, 40, 50)
    assert envs.describe(strange(obs=small, image_size=45)).obs_shape == (4, 45, 45)
    assert envs.describe(strange(pixels=True)).obs_shape == (4, 84, 84)  # its frames are 40x60
    ramp = np.add.outer(np.arange(168), np.zeros(168)).astype(np.uint8)
    assert np.abs(envs.gray(ramp, (84, 84))[:, 0] - (np.arange(84) * 2 + 0.5)).max() <= 0.5
    red = np.zeros((4, 4, 3), np.uint8)
    red[:, :, 0] = 255
    assert (envs.gray(red, (4, 4)) == 76).all()  # ITU-R 601: 0.299 red

    twin = envs.Twin(Config(env_id="rlhf_gym/Dot-v0"))
    first = twin.reset(5)
    assert (first == first[0]).all()
    images = [first[-1]]
    for action in (1, 3, 2, 4, 4, 4):
        obs = twin.step(action)[0]
        images.append(obs[-1])
        assert np.array_equal(obs, ([first[-1]] * 3 + images)[-4:])
    assert len({i.tobytes() for i in images}) > 2


def test_frames_are_rgb():
    twin = envs.Twin(strange())
    twin.reset(0)
    assert twin.frame()[0, 0].tolist() == [255, 0, 0]
    twin = envs.Twin(Config(env_id="ALE/Breakout-v5"))
    twin.reset(0)
    frame = twin.frame()
    assert frame.shape == (210, 160, 3)
    assert frame[60, 80].tolist() == [200, 72, 72]  # the top row of bricks is red
    assert frame[90, 80].tolist() == [66, 72, 200]  # the lowest is blue
    twin.close()
    twin = envs.Twin(Config(env_id="rlhf_gym/Dot-v0"))
    twin.reset(0)
    assert (twin.frame() == dot.DOT_COLOUR).all(-1).sum() == (dot.DOT * dot.SCALE) ** 2


def test_mujoco_frames_follow_the_agent_and_survive_other_environments():
    config = Config(env_id="Hopper-v5")
    old = envs.Twin(config)
    old.reset(0)
    expected = old.frame()
    inner = old._env._env.unwrapped
    position = inner.data.qpos.copy()
    position[0] = 15.0
    inner.set_state(position, inner.data.qvel.copy())
    wood = [(f[:, :, 0].astype(int) - f[:, :, 2] > 50).sum() for f in (expected, old.frame())]
    assert wood[0] > 1000, "no hopper in the first frame"
    assert abs(wood[1] - wood[0]) < 0.1 * wood[0], "it has left the picture"
    old.close()

    new, other = envs.Twin(config), envs.Twin(Config(env_id="HalfCheetah-v5"))
    other.reset(0)
    cheetah = other.frame()
    new.reset(0)
    assert np.array_equal(new.frame(), expected)
    del old, inner
    gc.collect()  # gymnasium's renderer would now take the new one's buffers with it
    assert np.array_equal(new.frame(), expected)
    assert np.array_equal(other.frame(), cheetah)
    assert not np.array_equal(cheetah, expected)
    new.close()
    other.close()


def test_atari_memory_and_colours_belong_to_the_observation():
    """The plain emulator's screen, seen as the vector environment sees it, is its newest observation."""
    config = Config(env_id="ALE/Pong-v5", image_size=84)
    twin, rng = envs.Twin(config), np.random.default_rng(0)
    twin.reset(11)
    balls = set()
    for _ in range(200):
        obs, _, _, _, info = twin.step(rng.integers(6))
        assert info["ram"].shape == (128,)
        assert info["ram"].dtype == np.uint8
        balls.add(int(info["ram"][49]))  # the ball's column
        mine = envs.gray(twin.frame(), (84, 84)).astype(int)
        assert np.abs(mine - obs[-1]).mean() < 3  # ALE's own gray palette, OpenCV's area average
        assert np.corrcoef(mine[13:78].ravel(), obs[-1][13:78].ravel())[0, 1] > 0.9
    assert len(balls) > 10
    twin.close()


def test_the_score_is_painted_over_and_nothing_else_of_pong():
    config = Config(env_id="ALE/Pong-v5")
    regions = atari.score_regions(config)
    twin, rng = envs.Twin(config, render=False), np.random.default_rng(0)
    tops, rewards = [twin.reset(0)[-1]], 0
    for _ in range(300):
        obs, reward, *_ = twin.step(rng.integers(6))
        rewards += reward != 0
        tops.append(obs[-1])
    twin.close()
    assert rewards > 1
    plain = np.stack(tops)
    (top, bottom, left, right) = regions[0]
    assert (top, bottom, left, right) == (0, 9, 0, 84)
    assert np.ptp(plain[:, top:bottom], axis=0).any(), "the score changes there"
    assert not np.ptp(plain[:, 10:13], axis=0).any(), "the wall under the score never changes"


def test_score_regions_scale_and_can_be_switched_off():
    assert atari.score_regions(Config(env_id="CartPole-v1")) == []
    assert atari.score_regions(Config(env_id="ALE/Pong-v5", mask_score=False)) == []
    assert atari.score_regions(Config(env_id="ALE/Pong-v5", image_size=168)) == [(0, 18, 0, 168)]
    assert atari.score_regions(Config(env_id="ALE/Breakout-v5"))
    assert atari.score_regions(Config(env_id="ALE/DonkeyKong-v5"))


def test_the_dot_and_its_best_play():
    vec = envs.Envs(Config(env_id="rlhf_gym/Dot-v0"), 200, (0,))
    vec.reset()
    returns, stay = np.zeros(200), np.zeros(200)
    for t in range(50):
        cells = [e._env.unwrapped.cell for e in vec._vector.envs]
        actions = [1 if y > 10 else 2 if y < 10 else 3 if x > 10 else 4 if x < 10 else 0 for y, x in cells]
        step = vec.step(np.array(actions))
        returns += step.rewards
        assert not step.terminated.any()
        assert step.truncated.all() == (t == 49)
    for _ in range(50):
        stay += vec.step(np.zeros(200, np.int64)).rewards
    assert abs(returns.mean() - dot.OPTIMAL_RETURN) < 0.5
    assert abs(stay.mean() - dot.STAY_RETURN) < 2
    assert stay.mean() < dot.SOLVED_RETURN < returns.mean()
