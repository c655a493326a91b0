"""Evaluation: whole episodes, each counted as often as it happens, within bounds; and videos of what was played."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlhf_gym import checkpoints, envs, evaluate
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.envs import Envs, Twin
from rlhf_gym.evaluate import record_video
from rlhf_gym.train import Agent

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Lives(gymnasium.Env):
    """Lives of 2 or 40 steps, drawn at each reset; 1 a step. The frame is red on the left, blue on the right, and
    green says which step it is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, lives=(2, 40), reward=1.0, fps=10, size=(321, 401), action_pays=False):
        self.metadata = {**self.metadata, "render_fps": fps}
        self.render_mode, self.lives, self.reward, self.size = render_mode, lives, float(reward), size
        self.action_pays = action_pays
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.life = 0, self.np_random.choice(self.lives)
        return np.array([0, self.life], np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(action) if self.action_pays else self.reward
        obs = np.array([self.t, self.life], np.float32)
        return obs, reward, bool(self.t >= self.life), False, {"time": self.t, "name": "x"}

    def render(self):
        frame = np.zeros((*self.size, 3), np.uint8)
        half = self.size[1] // 2
        frame[:, :half, 0], frame[:, half:, 2], frame[..., 1] = 220, 220, 4 * self.t
        return frame


gymnasium.register("evaluate/Lives-v0", entry_point=Lives)
gymnasium.register("evaluate/Lives-v1", entry_point=Lives, max_episode_steps=30)


def made(env_id="evaluate/Lives-v0", **settings) -> tuple[Agent, Config, envs.EnvInfo]:
    given = {"env_id": env_id, "num_envs": 2, **settings}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    return checkpoints.new_agent(info, config, CPU), config, info


def first_lives(config: Config, shares: list[int]) -> list[int]:
    """Lengths of the first shares[i] episodes of environment i, as evaluation must see them."""
    vec = Envs(config, len(shares), (config.seed, checkpoints.PHASE_SEED["record"]))
    lives: list[list[int]] = [[int(o[1])] for o in vec.reset()]
    while any(len(found) < n for found, n in zip(lives, shares, strict=True)):
        step = vec.step(np.zeros(len(shares), np.int64))
        for i in np.flatnonzero(step.terminated):
            lives[i].append(int(step.obs[i][1]))
    vec.close()
    return [x for found, n in zip(lives, shares, strict=True) for x in found[:n]]


# ---------------------------------------------------------------------------------------------- whole episodes


@pytest.mark.parametrize(("episodes", "shares"), [(1, [1]), (3, [1] * 3), (8, [1] * 8), (21, [3] * 5 + [2] * 3)])
def test_short_episodes_count_no_more_than_long_ones(episodes, shares):
    agent, config, info = made()
    result = evaluate.evaluate(agent, config, info, 4, episodes)
    lives = first_lives(config, shares)
    assert result["mean"] == result["mean_length"] == pytest.approx(np.mean(lives))
    assert result["std"] == pytest.approx(np.std(lives))
    assert (result["min"], result["max"]) == (min(lives), max(lives))
    assert (result["episodes"], result["round"], result["capped"]) == (episodes, 4, 0)
    assert len(set(lives)) == 2 or episodes < 8
    assert "score_mean" not in result


def test_the_same_episodes_for_every_round_and_others_for_another_seed():
    agent, config, info = made("CartPole-v1")
    one, two = (evaluate.evaluate(agent, config, info, r, 6) for r in (0, 5))
    assert {**one, "round": 5} == two
    other = made("CartPole-v1", seed=2)
    assert evaluate.evaluate(agent, other[1], info, 0, 6)["mean"] != one["mean"]


def test_greedy_everywhere_but_on_atari():
    agent, config, info = made(env_kwargs={"action_pays": True, "lives": (40,)})
    with torch.no_grad():
        agent.actor[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.1]))  # action 2, by a hair
        agent.actor[-1].weight.zero_()
    greedy = evaluate.evaluate(agent, config, info, 0, 8)
    assert greedy["greedy"]
    assert greedy["mean"] == 80
    sampled = evaluate.evaluate(agent, config, info, 0, 8, greedy=False)
    assert not sampled["greedy"]
    assert 30 < sampled["mean"] < 55
    pong = made("ALE/Pong-v5", frameskip=16, env_kwargs={"max_num_frames_per_episode": 200})
    assert not evaluate.evaluate(*pong, 0, 1)["greedy"]


def test_an_episode_without_an_end_is_cut_and_said_to_be():
    agent, config, info = made(env_kwargs={"lives": (5, 10**9)})
    result = evaluate.evaluate(agent, config, info, 0, 8, step_cap=50)
    lives = first_lives(config, [1] * 8)
    endless = sum(x > 50 for x in lives)
    assert 0 < endless < 8
    assert result["capped"] == endless
    assert result["max"] == 50
    assert result["mean"] == pytest.approx(np.mean([min(x, 50) for x in lives]))


def test_truncated_is_an_end():
    agent, config, info = made("evaluate/Lives-v1", env_kwargs={"lives": (99,)})
    result = evaluate.evaluate(agent, config, info, 0, 3)
    assert (result["mean"], result["capped"]) == (30, 0)


@pytest.mark.parametrize(
    ("lives", "seconds", "episodes", "mean", "capped"),
    [
        ((10,), 25.5, 24, 10, 0),  # three rounds of eight: the third began in time
        ((100,), 25.5, 8, 100, 0),  # one, which ends in time
        ((200,), 25.5, 8, 103, 8),  # none does: what has been played so far counts, of all eight
    ],
)
def test_the_clock_ends_an_evaluation(lives, seconds, episodes, mean, capped):
    ticks = iter(range(10**6))  # a second a step
    agent, config, info = made(env_kwargs={"lives": lives})
    result = evaluate.evaluate(agent, config, info, 0, 100, max_seconds=seconds, clock=lambda: float(next(ticks)))
    assert (result["episodes"], result["mean"], result["capped"]) == (episodes, mean, capped)


def test_where_time_is_short_long_episodes_count_as_well():
    """Else an agent that holds out longer looks no better: the first that lose are all that is counted."""
    ticks = iter(range(10**6))
    agent, config, info = made(env_kwargs={"lives": (20, 99)})
    result = evaluate.evaluate(agent, config, info, 0, 100, max_seconds=6.4, clock=lambda: float(next(ticks)))
    lives = first_lives(config, [1] * 8)
    assert set(lives) == {20, 99}
    assert (result["episodes"], result["capped"]) == (8, lives.count(99))
    assert result["mean"] == pytest.approx(np.mean([min(x, 26) for x in lives]))


def test_the_clock_is_looked_at_in_time():
    agent, config, info = made("CartPole-v1")
    began = time.monotonic()
    result = evaluate.evaluate(agent, config, info, 0, 10**6, max_seconds=0.5)
    assert 0.25 <= time.monotonic() - began < 10
    assert 0 < result["episodes"] < 10**6


def test_time_that_does_not_count_cuts_nothing_off():
    """A pause in the middle: the clock that is given stands still meanwhile."""
    agent, config, info = made("evaluate/Lives-v0")
    asked = []
    result = evaluate.evaluate(
        agent, config, info, 0, 6, max_seconds=1e-3, clock=lambda: 0.0, report=lambda *a: asked.append(a)
    )
    assert (result["episodes"], result["capped"]) == (6, 0)
    assert asked[-1] == (6, 6)


def test_a_true_reward_that_is_nan_is_none():
    agent, config, info = made(env_kwargs={"reward": "nan"})
    result = evaluate.evaluate(agent, config, info, 0, 4, score=lambda episode: float(len(episode.rewards)))
    assert [result[k] for k in ("mean", "std", "min", "max")] == [None] * 4
    assert result["mean_length"] == result["score_mean"] == pytest.approx(np.mean(first_lives(config, [1] * 4)))
    json.dumps(result, allow_nan=False)


def test_the_score_sees_whole_episodes():
    agent, config, info = made()
    seen = []

    def score(episode) -> float:
        seen.append(episode)
        return float(episode.infos[-1]["time"] * 10)

    result = evaluate.evaluate(agent, config, info, 0, 12, score=score)
    lives = first_lives(config, [2] * 4 + [1] * 4)
    assert result["score_mean"] == pytest.approx(10 * np.mean(lives))
    assert result["score_std"] == pytest.approx(10 * np.std(lives))
    assert sorted(len(e.rewards) for e in seen) == sorted(lives)
    for e in seen:
        n = len(e.rewards)
        assert e.observations[:, 0].tolist() == list(range(n))
        assert set(e.observations[:, 1]) == {n}
        assert e.rewards.tolist() == [1.0] * n
        assert e.actions.shape == (n,)
        assert not e.absorbing.any()
        assert [i["time"] for i in e.infos] == list(range(1, n + 1))


def test_the_score_sees_the_consoles_memory_on_atari(monkeypatch):
    settings = dict(frameskip=8, noop_max=2, image_size=42, env_kwargs={"max_num_frames_per_episode": 120})
    agent, config, info = made("ALE/Pong-v5", **settings)
    seen = []

    def score(episode) -> float:
        seen.append(episode)
        return 0.0

    monkeypatch.setattr(evaluate, "EVAL_ENVS", 2)
    evaluate.evaluate(agent, config, info, 0, 3, score=score)
    vec, seeds = Envs(config, 2, (config.seed, checkpoints.PHASE_SEED["record"])), []
    for _ in range(2):
        vec.reset()
        seeds += vec.episode_seeds.tolist()
    vec.close()
    seeds = seeds[:3]  # two episodes of the first, one of the second
    twin = Twin(config, render=False)

    def same(episode, seed: int) -> bool:
        twin.reset(seed)
        for t, action in enumerate(episode.actions):
            ram = twin.step(action)[4]["ram"]
            if not np.array_equal(episode.infos[t]["ram"], ram):
                return False
        return True

    assert [[same(e, seed) for seed in seeds].count(True) for e in seen] == [1] * 3
    assert len({e.infos[-1]["ram"].tobytes() for e in seen}) == 3
    twin.close()


def test_progress_is_told():
    agent, config, info = made()
    seen = []
    evaluate.evaluate(agent, config, info, 0, 9, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert seen == sorted(seen)


# ---------------------------------------------------------------------------------------------- videos


def watched(path: Path) -> tuple[list[np.ndarray], Fraction]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"  # what every browser plays
        rate = stream.average_rate
        return [f.to_ndarray(format="rgb24") for f in file.decode(video=0)], rate


@pytest.mark.parametrize(
    ("fps", "life", "frames", "rate"),
    [(10, 7, 8, 10), (30, 7, 8, 30), (60, 7, 4, 30), (50, 8, 5, 25), (60, 8, 5, 30)],
)
def test_a_video_shows_every_frame_in_its_colours(tmp_path, fps, life, frames, rate):
    agent, config, info = made(env_kwargs={"lives": (life,), "fps": fps})
    path = record_video(agent, config, info, tmp_path / "new" / "r000.mp4")
    assert [p.name for p in path.parent.iterdir()] == ["r000.mp4"]  # nothing left aside
    shown, found_rate = watched(path)
    assert len(shown) == frames
    assert found_rate == rate
    stride = round(fps / rate)
    for i, frame in enumerate(shown):
        assert frame.shape == (322, 402, 3)  # 321x401, made even
        left, right = frame[:, :190].mean((0, 1)), frame[:, 210:].mean((0, 1))
        assert left == pytest.approx([220, 4 * i * stride, 0], abs=6)  # red is red and blue is blue
        assert right == pytest.approx([0, 4 * i * stride, 220], abs=6)


@pytest.mark.parametrize(
    ("fps", "life", "frames"), [(30, 7, 8), (60, 7, 4), (60, 8, 5), (120, 1, 1), (120, 7, 2), (120, 8, 3)]
)
def test_no_frame_is_drawn_that_is_not_shown(tmp_path, monkeypatch, fps, life, frames):
    """MuJoCo takes 20 ms for each."""
    agent, config, info = made(env_kwargs={"lives": (life,), "fps": fps})
    drawn, draw = [], Twin.frame
    monkeypatch.setattr(Twin, "frame", lambda twin: drawn.append(draw(twin)) or drawn[-1])
    played = evaluate.Played()
    shown, _ = watched(record_video(agent, config, info, tmp_path / "r000.mp4", played=played))
    assert len(shown) == len(drawn) == frames
    assert [int(frame[0, 0, 1]) for frame in drawn] == [4 * t for t in range(0, life + 1, round(fps / 30))]
    assert len(played.steps) == life
    assert played.end.tolist() == [life, life]


def test_long_episodes_are_cut(tmp_path):
    endless = made(env_kwargs={"lives": (10**9,)})
    played = evaluate.Played()
    path = record_video(*endless, tmp_path / "a.mp4", max_seconds_shown=1.5, played=played)
    assert len(watched(path)[0]) == 16  # 1.5 s at 10 steps a second, and the last frame
    assert (len(played.steps), played.end) == (15, None)


def test_where_time_is_up_what_was_played_is_the_video(tmp_path, monkeypatch):
    agent, config, info = made(env_kwargs={"lives": (50,)})
    draw = Twin.frame
    monkeypatch.setattr(Twin, "frame", lambda twin: (time.sleep(0.05), draw(twin))[1])
    assert len(watched(record_video(agent, config, info, tmp_path / "a.mp4", max_seconds=0))[0]) == 1
    shown, _ = watched(record_video(agent, config, info, tmp_path / "b.mp4", max_seconds=0.3))
    assert 1 < len(shown) <= 8


def test_another_number_is_another_episode(tmp_path):
    agent, config, info = made(env_kwargs={"lives": tuple(range(2, 60))})
    lengths = [len(watched(record_video(agent, config, info, tmp_path / "a.mp4", number=n))[0]) for n in (0, 1, 2, 0)]
    assert lengths[0] == lengths[3]
    assert len(set(lengths)) == 3


@pytest.mark.parametrize(
    ("size", "shape"),
    [((210, 160), (420, 320)), ((21, 33), (210, 330)), ((101, 107), (304, 322)), ((333, 401), (334, 402))],
)
def test_sizes_are_even_and_small_pictures_are_enlarged(tmp_path, size, shape):
    agent, config, info = made(env_kwargs={"lives": (2,), "size": size})
    shown, _ = watched(record_video(agent, config, info, tmp_path / "r000.mp4"))
    assert shown[0].shape == (*shape, 3)


def test_a_video_of_the_same_agent_is_the_same(tmp_path):
    agent, config, info = made("ALE/Pong-v5", frameskip=16, env_kwargs={"max_num_frames_per_episode": 400})
    films, actions = [], []
    for _ in range(2):
        played = evaluate.Played()
        films.append(watched(record_video(agent, config, info, tmp_path / "r000.mp4", played=played))[0])
        actions.append([int(action) for _, action, _ in played.steps])
    assert actions[0] == actions[1]
    assert len(set(actions[0])) > 1  # they are drawn
    for a, b in zip(*films, strict=True):  # x264 rounds otherwise, in one film of 36, when frames come at another pace
        assert np.abs(a.astype(int) - b).max() <= 16


def test_a_video_that_cannot_be_written_is_told(tmp_path):
    agent, config, info = made(env_kwargs={"lives": (2,)})
    (tmp_path / "videos").write_text("a file where a directory should be")
    with pytest.raises(UserError, match=r"Cannot write the video .*r000\.mp4"):
        record_video(agent, config, info, tmp_path / "videos" / "r000.mp4")


def test_a_video_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    agent, config, info = made(env_kwargs={"lives": (20,)})
    frames = []

    def breaks(frame):
        frames.append(frame)
        if len(frames) == 5:
            raise RuntimeError("the fifth frame")
        return frame

    monkeypatch.setattr(evaluate.movies, "enlarge", breaks)
    with pytest.raises(RuntimeError, match="the fifth frame"):
        record_video(agent, config, info, tmp_path / "r000.mp4")
    assert list(tmp_path.iterdir()) == []
