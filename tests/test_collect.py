"""Clips: what is cut from an episode, what is seen of it, and which pairs are shown."""

from __future__ import annotations

import io
import itertools
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from rich.console import Console
from videos import frames_of

from rlhf_gym import catalog, checkpoints, collect, envs, replay, sheets, store
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.collect import Cutter, choose_pairs, clip_steps
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.control import Control
from rlhf_gym.envs import EnvInfo, Twin
from rlhf_gym.labels import Labels
from rlhf_gym.loop import Loop, collect_pairs
from rlhf_gym.monitor import Monitor
from rlhf_gym.replay import Candidate
from rlhf_gym.segments import load_segment
from rlhf_gym.train import pair_logits

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Film(gymnasium.Env):
    """Shows (step, episode's number); ends after `life` steps. Its frame's red is the step, its blue the episode.

    With `forgetful` it draws its start from a source that no seed reaches, so no episode can be played again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    source = np.random.default_rng(0)

    def __init__(self, render_mode=None, life=99, cut=99, forgetful=False, fps=10, size=(20, 30)):
        self.metadata = {**self.metadata, "render_fps": fps}
        self.render_mode, self.life, self.cut, self.forgetful, self.size = render_mode, life, cut, forgetful, size
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.name = int((self.source if self.forgetful else self.np_random).integers(250))
        return self.view(), {}

    def view(self):
        return np.array([self.t, self.name], np.float32)

    def step(self, action):
        self.t += 1
        info = {"time": self.t, "action": int(action), "text": "x"}
        return self.view(), float(self.t), self.t >= self.life, self.t >= self.cut, info

    def render(self):
        frame = np.zeros((*self.size, 3), np.uint8)
        frame[..., 0], frame[..., 2] = self.t, self.name
        return frame


gymnasium.register("collect/Film-v0", entry_point=Film, max_episode_steps=40)
gymnasium.register("collect/Endless-v0", entry_point=Film)


def made(env_id="collect/Film-v0", round=-1, reward=False, **settings) -> tuple[Snapshot, Config, EnvInfo]:
    given = {"env_id": env_id, "num_envs": 3, "ensemble_size": 2, **settings}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    agent = checkpoints.new_agent(info, config, CPU)
    model = checkpoints.new_reward_model(info, config, CPU, 0) if reward else None
    return Snapshot(agent, model, config, info, round), config, info


def gathered(snapshot: Snapshot, count: int, steps: int, film=False, seed=0) -> list[Candidate]:
    return collect.gather(snapshot, snapshot.config, snapshot.info, count, steps, (seed, 3), lambda *_: None, film)


# ---------------------------------------------------------------------------------------------- segments


@pytest.mark.parametrize(
    ("seconds", "fps", "limit", "longer", "steps"),
    [
        (1.7, 30, None, 1.0, 51), (1.7, 50, 500, 1.0, 85), (1.7, 50, 500, 2.0, 170), (2.0, 15, 20, 1.0, 20),
        (2.0, 15, 25, 2.0, 25), (0.05, 10, None, 1.0, 2), (1.0, 12.5, None, 1.0, 12),
    ],
)  # fmt: skip
def test_a_clip_lasts_as_many_seconds_as_it_should_and_no_longer_than_an_episode(seconds, fps, limit, longer, steps):
    info = EnvInfo("classic", (4,), False, 2, (), None, None, fps, limit)
    assert clip_steps(Config(clip_seconds=seconds), info, longer) == steps


@pytest.mark.parametrize(("fps", "stride"), [(10, 1), (30, 1), (44, 1), (50, 2), (60, 2), (125, 4), (500, 17)])
def test_nobody_is_shown_many_more_than_30_frames_a_second(fps, stride):
    assert sheets.shown_stride(fps) == stride
    assert fps / stride <= 45


@pytest.mark.parametrize("life", [4, 7, 15, 99])
def test_no_clip_spans_a_reset_and_an_end_is_held(life):
    """Film's observation is (step, episode): so every clip must be one episode's consecutive steps."""
    snapshot, _, _ = made(env_kwargs={"life": life})
    candidates = gathered(snapshot, 60, 10)
    ends = 0
    for c in candidates:
        s, start = c.segment, len(c.prefix)
        live = ~s.absorbing
        n = int(live.sum())
        assert [len(x) for x in (s.observations, s.actions, s.rewards, s.absorbing)] == [10] * 4
        assert s.observations[:n, 0].tolist() == list(range(start, start + n))
        assert len(set(s.observations[:, 1])) == 1
        assert s.rewards[:n].tolist() == list(range(start + 1, start + n + 1))
        assert s.infos["time"].tolist() == [*range(start + 1, start + n + 1)] + [start + n] * (10 - n)
        assert s.infos["action"][:n].tolist() == s.actions[:n].tolist()
        assert "text" not in s.infos
        assert c.resets == {}
        assert live.tolist() == sorted(live, reverse=True)  # live, then absorbing
        if n < 10:
            ends += 1
            assert start + n == life  # it ended, rather than being cut off
            assert np.all(s.observations[n:, 0] == life)  # the terminal observation, held
            assert not s.rewards[n:].any()
            assert not s.actions[n:].any()
        else:
            assert start + n <= min(life, 40)
    assert (ends > 0) == (life < 40)
    assert len({(c.seed, len(c.prefix)) for c in candidates}) == 60
    if life > 10:
        assert len({len(c.prefix) for c in candidates}) > 3  # from all over the episode


def test_clips_cut_off_by_truncation_are_dropped_and_never_padded():
    snapshot, _, _ = made()  # episodes are cut off at 40
    candidates = gathered(snapshot, 40, 25)
    assert not any(c.segment.absorbing.any() for c in candidates)
    assert all(len(c.prefix) <= 15 for c in candidates)
    assert {len(c.prefix) for c in candidates} >= {0, 15}  # up to the last place there is
    whole = gathered(snapshot, 5, 40)  # as long as the episode
    assert all(c.prefix == [] for c in whole)


def test_a_clip_that_ends_early_begins_earlier():
    """Episodes of 12 steps, clips of 20: at least half of each is there to be seen, and it is that part of the episode."""
    snapshot, config, _ = made(env_kwargs={"life": 12})
    candidates = gathered(snapshot, 40, 20)
    live = [int((~c.segment.absorbing).sum()) for c in candidates]
    assert min(live) == 10
    assert max(live) == 12
    for c, n in zip(candidates, live, strict=True):
        assert c.segment.observations[:n, 0].tolist() == list(range(len(c.prefix), len(c.prefix) + n))
        assert len(c.prefix) + n == 12
    assert replay.play_again(candidates, config, 1, True, lambda *_: None)  # seed and actions give the same again


def test_hidden_ends_are_ordinary_steps():
    snapshot, _, _ = made(env_kwargs={"life": 7}, episode_ends="hide")
    candidates = gathered(snapshot, 30, 10)
    for c in candidates:
        s = c.segment
        assert len(s.observations) == 10
        assert not s.absorbing.any()
        steps = (len(c.prefix) + np.arange(10)) % 7
        assert s.observations[:, 0].tolist() == steps.tolist()
        assert sorted(c.resets) == (1 + np.flatnonzero(steps[1:] == 0)).tolist()
    assert {len(c.resets) for c in candidates} == {1, 2}


def test_clips_that_fit_nowhere_are_told():
    snapshot, _, _ = made("collect/Endless-v0", env_kwargs={"cut": 9})  # cut off, and its registration does not say so
    with pytest.raises(UserError, match=r"0 of 4 clips of 10 steps.*collect/Endless-v0.*lower --clip-seconds"):
        gathered(snapshot, 4, 10)


def test_one_seed_gives_the_same_clips_and_another_gives_others():
    snapshot, _, _ = made()
    a, b, c = (gathered(snapshot, 8, 10, seed=s) for s in (0, 0, 1))
    same = [np.array_equal(x.segment.observations, y.segment.observations) for x, y in zip(a, b, strict=True)]
    assert all(same)
    assert all(np.array_equal(x.segment.actions, y.segment.actions) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0].segment.observations, c[0].segment.observations)


def test_a_cutter_takes_an_end_at_every_place():
    """A clip that ends at its first, a middle, and its last step."""
    for life in (1, 2, 3, 4):
        cutter = Cutter(3, 0, False, np.random.default_rng(0))
        cutter.reset(5)
        found = []
        for t in range(life):
            terminated = t == life - 1
            found.append(cutter.add(np.array([t]), np.array(1), 1.0, {}, np.array([t + 1]), terminated))
        kept = [c.segment for c in found if c is not None]
        if life < 3:
            assert [s.observations[:, 0].tolist() for s in kept] == [[min(t, life) for t in range(3)]]
            assert kept[0].absorbing.tolist() == [t >= life for t in range(3)]
        else:
            assert kept[0].observations[:, 0].tolist() == [0, 1, 2]
            assert not kept[0].absorbing.any()
        if life == 4:
            assert kept[1].observations[:, 0].tolist() == [3, 4, 4]
            assert kept[1].absorbing.tolist() == [False, True, True]


# ---------------------------------------------------------------------------------------------- seen again


def shown(candidate: Candidate) -> list[tuple[int, int]]:
    """What a Film clip shows: (step, episode) of each frame; the frames must be whole."""
    assert all(len(np.unique(f.reshape(-1, 3), axis=0)) == 1 for f in frames_of(candidate.sheet))
    return [(int(f[0, 0, 0]), int(f[0, 0, 2])) for f in frames_of(candidate.sheet)]


def wanted(candidate: Candidate, stride: int) -> list[tuple[int, int]]:
    """What it should show: every stride-th step, and of an end its own frame, once."""
    s = candidate.segment
    n = int((~s.absorbing).sum())
    steps = [*range(0, n, stride)] + ([n] if n < len(s.rewards) else [])
    return [(int(s.observations[t, 0]), int(s.observations[t, 1])) for t in steps]


@pytest.mark.parametrize("film", [False, True], ids=["played again", "filmed"])
@pytest.mark.parametrize("ends", ["absorb", "hide"])
@pytest.mark.parametrize(("life", "fps"), [(4, 10), (8, 60), (99, 60), (13, 90)])
def test_what_is_seen_is_what_was_played(film, ends, life, fps):
    snapshot, config, info = made(env_kwargs={"life": life, "fps": fps}, episode_ends=ends)
    stride = sheets.shown_stride(info.fps)
    candidates = gathered(snapshot, 24, 10, film)
    if not film:
        assert replay.play_again(candidates, config, stride, True, lambda *_: None)
    for c in candidates:
        assert shown(c) == wanted(c, stride)
    if ends == "absorb" and life < 40:
        assert any(c.segment.absorbing.any() for c in candidates)


def test_an_environment_that_does_not_repeat_itself_is_noticed_and_filmed(tmp_path):
    snapshot, config, info = made(env_kwargs={"life": 14, "forgetful": True}, pairs_per_round=6, clip_seconds=1.0)
    candidates = gathered(snapshot, 12, 10)
    assert not replay.play_again(candidates, config, 1, True, lambda *_: None)

    session = catalog.create_session(tmp_path, "film-1", config)
    collect.collect(session, snapshot, config, info, 0, 0, lambda *_: None)
    clips = session.clips()
    assert len(clips) == 12
    for clip in clips.values():
        segment = load_segment(session.path / clip.path)
        sheet = sheets.Sheet(
            (session.path / clip.sheet).read_bytes(), clip.frame_width, clip.frame_height, clip.columns, clip.frames
        )
        candidate = Candidate(segment, 0, [], {}, sheet)
        assert shown(candidate) == wanted(candidate, 1)
    session.close()


@pytest.mark.parametrize("score", ["", "somewhere:score"])
def test_ram_is_in_the_infos_of_atari_where_there_is_a_score(tmp_path, score):
    settings = dict(frameskip=8, env_kwargs={"max_num_frames_per_episode": 400}, labeler="synthetic", noop_max=3)
    snapshot, config, info = made("ALE/Pong-v5", pairs_per_round=2, clip_seconds=1.0, score=score, **settings)
    session = catalog.create_session(tmp_path, "pong-1", config)
    collect.collect(session, snapshot, config, info, 0, 0, lambda *_: None)
    clips = list(session.clips().values())
    assert len(clips) == 4
    for clip in clips:
        infos = load_segment(session.path / clip.path).infos
        assert clip.sheet is None  # nobody looks
        assert ("ram" in infos) == bool(score)
        assert not score or (infos["ram"].shape, infos["ram"].dtype) == ((clip.steps, 128), np.uint8)
    session.close()


@pytest.mark.parametrize("limit", [400, 203])  # of frames: at the end of a step, and in the middle of one
def test_the_memory_is_what_it_was_after_each_step(limit):
    settings = dict(frameskip=8, image_size=42, env_kwargs={"max_num_frames_per_episode": limit}, noop_max=3)
    snapshot, config, _ = made("ALE/Pong-v5", score="a:score", **settings)
    candidates = gathered(snapshot, 6, 5)
    assert replay.play_again(candidates, config, 1, False, lambda *_: None)
    twin = Twin(config, render=False)
    for c in candidates[::2]:
        assert c.sheet is None
        twin.reset(c.seed)
        for action in c.prefix:
            twin.step(action)
        rams = [twin.step(action)[4]["ram"] for action in c.segment.actions]
        assert np.array_equal(c.segment.infos["ram"], rams)
        assert len({ram.tobytes() for ram in rams}) == 5
    twin.close()


def test_before_there_is_a_reward_model_random_actions_are_held_in_most_environments():
    def played(share: float) -> list[np.ndarray]:
        given = {"env_id": "Pendulum-v1", "explore_share": share, "num_envs": 8}
        config = resolve(given, "classic-continuous")
        info = envs.describe(config)
        agent = checkpoints.new_agent(info, config, CPU)
        snapshot = Snapshot(agent, None, config, info, -1)
        found = collect.gather(snapshot, config, info, 40, 30, (1, 0), lambda done, total: None)
        return [c.segment.actions for c in found]

    def held(clips: list[np.ndarray]) -> float:
        """Share of the steps whose action, within its bounds, is that of the step before."""
        same = [(a[1:] == a[:-1])[np.abs(a[1:]) < 2] for a in clips]
        return float(np.concatenate(same).mean())

    assert held(played(0.0)) == 0
    assert 0.3 < held(played(0.75)) < 0.7
    clips = played(1.0)
    assert 0.6 < held(clips) < 0.95
    every = np.concatenate(clips)
    assert -2 <= every.min() < -1.9  # as the environment takes them
    assert 1.9 < every.max() <= 2


def test_an_agent_with_a_reward_model_shows_itself_alone(monkeypatch):
    given = {"env_id": "CartPole-v1", "explore_share": 1.0}
    config = resolve(given, "classic")
    info = envs.describe(config)
    agent, reward = checkpoints.new_agent(info, config, CPU), checkpoints.new_reward_model(info, config, CPU, 0)
    monkeypatch.setattr(collect.HeldActions, "choose", lambda self, i: 1)  # always to the right
    for model, alone in ((None, False), (reward, True)):
        snapshot = Snapshot(agent, model, config, info, -1)
        found = collect.gather(snapshot, config, info, 8, 5, (1, 0), lambda done, total: None)
        lefts = [c.segment.actions[~c.segment.absorbing] == 0 for c in found]
        assert any(left.any() for left in lefts) == alone


# ---------------------------------------------------------------------------------------------- pairs


def test_without_a_model_all_pairs_are_drawn_at_random():
    rows = choose_pairs(20, 10, None, 0.5, np.random.default_rng(0))
    assert {r["kind"] for r in rows} == {"uniform"}
    assert sorted(x for r in rows for x in (r["left"], r["right"])) == list(range(20))
    assert all("p_left" not in r for r in rows)


@pytest.mark.parametrize(
    ("candidates", "count", "fraction", "uniform"),
    [(40, 10, 0.5, 5), (40, 10, 0.0, 10), (40, 10, 1.0, 0), (20, 10, 1.0, 0), (20, 10, 0.5, 5), (2, 1, 1.0, 0)],
)
def test_the_uniform_share_is_kept_and_no_clip_is_used_twice(candidates, count, fraction, uniform):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rewards = rng.normal(size=(3, candidates))
        rows = choose_pairs(candidates, count, rewards, fraction, rng)
        assert len(rows) == count
        assert sum(r["kind"] == "uniform" for r in rows) == uniform
        used = [x for r in rows for x in (r["left"], r["right"])]
        assert len(set(used)) == 2 * count
        for r in rows:
            p = 1 / (1 + np.exp(rewards[:, r["right"]] - rewards[:, r["left"]]))
            assert r["p_left"] == pytest.approx(p.mean())
            assert r["disagreement"] == pytest.approx(p.std())


def test_disagreement_finds_what_the_members_disagree_about():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(1, 200)).repeat(3, 0)  # they agree
    torn = rng.choice(200, 40, replace=False)
    rewards[0, torn], rewards[1, torn] = 5.0, -5.0
    rows = choose_pairs(200, 40, rewards, 0.5, rng)
    share = {
        kind: np.mean([r["left"] in torn or r["right"] in torn for r in rows if r["kind"] == kind])
        for kind in ("uniform", "disagreement")
    }
    assert share["disagreement"] == 1.0
    assert 0.1 < share["uniform"] < 0.65  # 36 % by chance
    assert [r["kind"] for r in rows] != sorted(r["kind"] for r in rows)  # mixed, not one after the other


def test_rewards_that_overflow_are_no_trouble():
    rewards = np.array([[1e30, -1e30, 0, 1e4]])
    rows = choose_pairs(4, 2, rewards, 1.0, np.random.default_rng(0))
    assert all(0 <= r["p_left"] <= 1 for r in rows)


@pytest.mark.parametrize("env_id", ["collect/Film-v0", "Pendulum-v1"])
def test_what_is_said_before_a_label_is_what_the_loss_would_say(env_id):
    kwargs = {"life": 14} if env_id == "collect/Film-v0" else {}
    snapshot, _, _ = made(env_id, reward=True, env_kwargs=kwargs)
    candidates = gathered(snapshot, 10, 10)
    judged = collect.judge(snapshot.reward, snapshot.agent, [c.segment for c in candidates])
    segments = {i: c.segment for i, c in enumerate(candidates)}
    pairs = [store.Pair(i + 1, 0, 0, i, i, 9 - i, "uniform", None, None, None, "left") for i in range(5)]
    labels = Labels(pairs, segments, snapshot.agent.from_env, 1, 2)
    with torch.no_grad():
        logits = pair_logits(snapshot.reward, labels, torch.arange(5), CPU)
    assert torch.allclose(judged[:, :5] - judged[:, 5:].flip(1), logits, atol=1e-4)
    assert logits.abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------- the phase


@pytest.fixture
def film_session(tmp_path):
    """A session of Film with two rounds collected, the first labeled; ends fall into some clips."""
    snapshot, config, info = made(
        env_kwargs={"life": 14, "fps": 60}, pairs_per_round=10, clip_seconds=0.2, repeat_fraction=0.3, reward=True
    )
    session = catalog.create_session(tmp_path, "film-1", config)
    untrained = Snapshot(snapshot.agent, None, config, info, -1)
    collect.collect(session, untrained, config, info, 0, 0, lambda *_: None)
    for n, (pair, choice) in enumerate(zip(session.pairs(), itertools.cycle(["left", "right", "equal", "skip"]))):
        session.add_label(str(n), pair.id, choice)
    collect.collect(session, snapshot, config, info, 1, 0, lambda *_: None)
    yield session
    session.close()


def test_a_round_is_collected_whole(film_session):
    session = film_session
    first, second = session.pairs(0), session.pairs(1)
    assert [p.position for p in first] == list(range(10))
    assert [p.position for p in second] == list(range(10))
    assert {p.kind for p in first} == {"uniform"}
    assert sorted(p.kind for p in second) == ["disagreement"] * 4 + ["repeat"] * 3 + ["uniform"] * 3
    clips = session.clips()
    used = [c for p in first + second if p.kind != "repeat" for c in (p.left_clip, p.right_clip)]
    assert sorted(used) == sorted(clips)  # each clip in one pair, and none that nobody sees
    files = {p.relative_to(session.path).as_posix() for p in (session.path / "clips").rglob("*.*")}
    assert files == {f for c in clips.values() for f in (c.path, c.sheet)}
    for p in second:
        assert p.p_left is not None or p.kind == "repeat"


def test_repeats_are_earlier_decided_pairs_with_sides_swapped(film_session):
    by_id = {p.id: p for p in film_session.pairs()}
    repeats = [p for p in by_id.values() if p.kind == "repeat"]
    assert len(repeats) == 3
    assert len({p.repeat_of for p in repeats}) == 3
    for p in repeats:
        old = by_id[p.repeat_of]
        assert (p.left_clip, p.right_clip) == (old.right_clip, old.left_clip)
        assert old.choice in ("left", "right")
        assert old.round < p.round
        assert p.choice is None  # to be judged anew


def test_the_table_says_when_the_end_is_seen(film_session):
    session, ended = film_session, 0
    for clip in session.clips().values():
        segment = load_segment(session.path / clip.path)
        assert clip.steps == len(segment.rewards) == 12
        assert clip.fps == 30  # 60 a second, every second one shown
        assert clip.true_return == pytest.approx(segment.rewards.sum())
        sheet = Image.open(session.path / clip.sheet).convert("RGB")
        x, y = (
            (clip.frames - 1) % clip.columns * clip.frame_width,
            (clip.frames - 1) // clip.columns * clip.frame_height,
        )
        if segment.absorbing.any():
            ended += 1
            assert clip.ended_frame == clip.frames - 1  # the last frame drawn is the end; the page holds it
            assert sheet.getpixel((x, y))[0] == 14  # Film's red is the step
            assert clip.frames == -(-int((~segment.absorbing).sum()) // 2) + 1
        else:
            assert clip.ended_frame is None
            assert clip.frames == 6
            assert sheet.getpixel((x, y))[0] == clip.start + 10
    assert ended > 3


def test_a_batch_collected_again_after_a_kill_is_the_same(tmp_path):
    snapshot, config, info = made(pairs_per_round=3, clip_seconds=1.0)

    def collected(name: str, leftover: bool) -> dict[str, bytes]:
        session = catalog.create_session(tmp_path, name, config)
        if leftover:
            directory = session.clip_directory(0, 0)
            directory.mkdir(parents=True)
            (directory / "0099.npz").write_bytes(b"torn")
        collect.collect(session, snapshot, config, info, 0, 0, lambda *_: None)
        files = sorted((session.path / "clips").rglob("*.*"))
        table = [(p.kind, p.left_clip, p.right_clip) for p in session.pairs()]
        session.close()
        return {p.name: p.read_bytes() for p in files} | {"pairs": table}

    whole = collected("whole", leftover=False)
    assert collected("killed", leftover=True) == whole
    assert len(whole) == 6 * 2 + 1


def test_clips_that_are_too_long_by_wish_get_shorter_again(tmp_path):
    """Episodes are cut off after 12 steps and the registration does not say so: 10 steps fit, 15 do not."""
    _, config, info = made("collect/Endless-v0", env_kwargs={"cut": 12}, pairs_per_round=2, clip_seconds=1.0)
    session = catalog.create_session(tmp_path, "film-1", config)
    snapshot = Snapshot(checkpoints.new_agent(info, config, CPU), None, config, info, -1)
    snapshot.save(session.checkpoint(-1))
    session.add_event("clips", 0, attempt=0, longer=True, differ=False)
    text = io.StringIO()
    monitor = Monitor(session, Console(file=text, width=200))
    monitor.control = Control(session)
    began = time.monotonic()
    whole = Loop(session, config, info, CPU, monitor, monitor.control, None)
    collect_pairs(whole, session.where())
    assert time.monotonic() - began < 20
    assert "Trying clips that are 1 times as long as at first" in text.getvalue()
    assert {c.steps for c in session.clips().values()} == {10}
    assert session.where().phase == "label"
    session.close()


def test_a_further_batch_of_longer_clips(tmp_path):
    snapshot, config, info = made(pairs_per_round=2, clip_seconds=1.0, labeler="synthetic")
    session = catalog.create_session(tmp_path, "film-1", config)
    for attempt, longer in ((0, 1.0), (1, 2.0)):
        collect.collect(session, snapshot, config, info, 0, attempt, lambda *_: None, longer=longer)
    assert [c.steps for c in session.clips().values()] == [10] * 4 + [20] * 4
    assert {Path(c.path).parent.name for c in session.clips().values()} == {"r000", "r000-1"}
    assert all(c.sheet is None for c in session.clips().values())
    session.close()


@pytest.mark.parametrize("game", ["Pong", "Breakout", "Qbert"])
def test_the_quick_player_draws_what_the_exact_one_draws(game):
    """Terminations, no-ops, several clips of one episode, frames of steps that end early: all of it is in here."""
    snapshot, config, _ = made(f"ALE/{game}-v5", clip_seconds=1.7, num_envs=4, score="a:score")
    candidates = gathered(snapshot, 40 if game == "Breakout" else 8, 26)
    pictures = []
    for make in (replay.QuickPlayer, replay.Player):
        assert replay.play(candidates, make(config, True), 1, True, lambda *_: None)
        pictures.append([(c.sheet.png, c.segment.infos["ram"].tolist()) for c in candidates])
    assert pictures[0] == pictures[1]
    if game == "Breakout":
        assert any(c.segment.absorbing.any() for c in candidates)


def test_the_quick_player_notices_another_episode():
    snapshot, config, _ = made("ALE/Pong-v5", clip_seconds=1.7, num_envs=4)
    candidates = gathered(snapshot, 4, 26)
    candidates[2].seed += 1
    assert not replay.play(candidates, replay.QuickPlayer(config, False), 1, False, lambda *_: None)
    assert not replay.play_again(candidates, config, 1, False, lambda *_: None)
