"""Known traps of learning from comparisons, each with what would happen if we stepped into it.

Tested elsewhere, and not again here:

- a tie's gradient: test_train.py, test_equal_pulls_nothing_at_a_tie_and_two_clips_together_elsewhere,
  test_one_softmax_not_two_sigmoids_so_a_constant_changes_no_logit, test_a_member_that_saw_ties_alone_has_no_say
- batches of ties, of skips: test_loop.py, test_a_batch_of_ties_is_collected_again_once_with_longer_clips,
  test_a_batch_of_skips_is_collected_again_once, test_a_later_batch_of_ties_is_trained_on_with_the_labels_of_before
- a constant on scaled rewards: test_ppo.py, test_a_constant_on_every_reward_changes_no_advantage
- members that find no difference: test_train.py, test_fit_scale_covers_live_and_absorbing_steps_and_…
- forgotten labels are not loaded: test_labels.py, test_forgotten_labels_do_not_count
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

from rlhf_gym import catalog, collect, envs, loop, train
from rlhf_gym.checkpoints import Snapshot, load_state, new_agent, new_reward_model, save_state
from rlhf_gym.config import Config, resolve
from rlhf_gym.control import Control
from rlhf_gym.envs import EnvInfo
from rlhf_gym.episodes import LEAST, EpisodeTracker, Gains
from rlhf_gym.labelers import ScoredClip
from rlhf_gym.labels import Labels, load_labels
from rlhf_gym.monitor import Monitor
from rlhf_gym.segments import Segment, save_segment
from rlhf_gym.store import START, Pair, Session, Where
from rlhf_gym.train import Agent, RewardModel

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
VECTOR = EnvInfo("classic", (4,), False, 2, (), None, None, 50.0, 500)
LEARNS = Config(env_id="CartPole-v1", assumed_mistake_rate=0.0, reward_steps=200)


def pair(number: int, left: int, right: int, choice: str, **more: Any) -> Pair:
    row = dict(round=0, attempt=0, position=number, kind="uniform", repeat_of=None, p_left=None, disagreement=None)
    return Pair(id=number, left_clip=left, right_clip=right, choice=choice, **{**row, **more})


def clip(obs: np.ndarray, ended: int = 0) -> Segment:
    steps = len(obs)
    absorbing = np.arange(steps) >= steps - ended
    return Segment(obs.astype(np.float32), np.zeros(steps, np.int64), np.zeros(steps, np.float32), absorbing, {})


def fitted(labels: Labels, config: Config = LEARNS, seed: int = 0) -> tuple[RewardModel, dict[str, float]]:
    torch.manual_seed(seed)
    model = RewardModel(VECTOR, config)
    return model, train.train_reward(model, labels, config, CPU)


def worth(model: RewardModel, segment: Segment) -> float:
    obs, _, ended, count = (torch.as_tensor(x) for x in segment.rows())
    return float((model.reward(obs, torch.zeros(len(obs)), ended) * count).sum())


def of_session(data_dir: Path, out: io.StringIO | None = None, **settings: Any) -> tuple[Session, Monitor, EnvInfo]:
    given = {"env_id": "CartPole-v1", "labeler": "synthetic", **settings}
    info = envs.describe(Config(**given))
    session = catalog.create_session(data_dir, "one", resolve(given, info.kind))
    return session, Monitor(session, Console(file=out or io.StringIO(), width=1000)), info


TINY = dict(
    rounds=1, pairs_per_round=6, clip_seconds=0.4, repeat_fraction=0.2, agent_steps_per_round=256, num_envs=2,
    num_steps=32, num_minibatches=2, update_epochs=1, ensemble_size=2, reward_steps=30, eval_episodes=1,
    checkpoint_iterations=2,
)  # fmt: skip


def run_whole(data_dir: Path, **settings: Any) -> tuple[Session, str]:
    """A whole session, in this process; what it said on the terminal."""
    out = io.StringIO()
    session, monitor, info = of_session(data_dir, out, **{**TINY, **settings})
    loop.run(session, session.config, info, monitor)
    return session, out.getvalue()


def states(session: Session, *rounds: int) -> list[dict[str, torch.Tensor]]:
    return [Snapshot.load(session.checkpoint(n)).agent.state_dict() for n in rounds]


# ---------------------------------------------------------------------------------------------- 1: ties


def with_ties(ties: int) -> Labels:
    """30 pairs judged by the first number, and ties of two excellent or two awful clips of the very same sum: the steps
    of one are those of the other, backwards."""
    rng, segments, pairs = np.random.default_rng(4), {}, []
    for n in range(30):
        for i in (2 * n, 2 * n + 1):
            segments[i] = clip(rng.normal(size=(8, 4)) * 0.3 + rng.normal(size=4))
        a, b = (segments[i].observations[:, 0].sum() for i in (2 * n, 2 * n + 1))
        pairs.append(pair(n + 1, 2 * n, 2 * n + 1, "left" if a > b else "right"))
    for n in range(ties):
        steps, i = rng.normal(size=(8, 4)) * 0.3 + [2 if n % 2 else -2, 0, 0, 0], 1000 + 2 * n
        segments[i], segments[i + 1] = clip(steps), clip(steps[::-1].copy())
        pairs.append(pair(1000 + n, i, i + 1, "equal"))
    return Labels(pairs, segments, lambda a: a, seed=1, members=3)


def margin(model: RewardModel) -> float:
    """Log-odds that an excellent clip is better than an awful one; the members' mean."""
    steps, action = torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]]), torch.zeros(2)
    with torch.no_grad():
        good, bad = model(steps, action).mean(0) * train.REFERENCE_STEPS
    return float(good - bad)


def test_ties_of_like_clips_leave_a_good_reward_model_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference implementation's loss was two sigmoids, one for each clip, so that a tie of two excellent clips
    pulled both down and one of two awful clips pulled both up. Here twice as many ties as other labels do no harm."""
    without, _ = fitted(with_ties(0))
    labels = with_ties(60)
    model, metrics = fitted(labels)
    assert metrics["reward/accuracy"] > 0.95
    assert margin(model) > 0.8 * margin(without) > 5

    def two_sigmoids(model: RewardModel, labels: Labels, pairs: torch.Tensor, *args: Any, **drawn: Any) -> torch.Tensor:
        sums = train.clip_rewards(model, labels, torch.cat([labels.left[pairs], labels.right[pairs]]), *args, **drawn)
        left, right = sums[:, : len(pairs)], sums[:, len(pairs) :]
        return torch.where(labels.target[pairs] == 0.5, left, left - right)  # against nothing, not against right

    monkeypatch.setattr(train, "pair_logits", two_sigmoids)
    assert margin(fitted(labels)[0]) < 0.5 * margin(without)


# ---------------------------------------------------------------------------------------------- 2: a batch of one answer


@pytest.mark.parametrize("answers", [["left"], ["right"], ["left", "equal"]], ids=["left", "right", "left, then ties"])
def test_batches_of_one_answer_go_on_without_nan(
    answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answers: of rounds 0 and 1."""
    per_batch = TINY["pairs_per_round"]
    given: list[str] = []

    def choice(*_: Any) -> str:
        given.append(answers[min(len(given) // per_batch, len(answers) - 1)])
        return given[-1]

    monkeypatch.setattr("rlhf_gym.labelers.synthetic_choice", choice)
    session, said = run_whole(tmp_path, rounds=2)
    assert session.where().phase == "finished"
    for number in (0, 1):
        snapshot = Snapshot.load(session.checkpoint(number))
        tensors = [*snapshot.agent.state_dict().values(), *snapshot.reward.state_dict().values()]
        assert all(t.isfinite().all() for t in tensors)
        assert snapshot.reward.scale.max() > 0
    assert said.count("Nothing to learn from") == len(answers) - 1
    if answers == ["left"]:  # its own repeat, sides swapped, contradicts it
        values = {m["name"]: m["value"] for m in session.metrics(phase="train_reward") if m["round"] == 1}
        assert values["labels/consistency"] == 0
        assert values["reward/held_out_log_loss"] > 0
    session.close()


@pytest.mark.parametrize("nothing", ["equal", "skip"])
def test_where_nothing_is_learned_the_agent_stays_and_the_person_is_told_what_to_do(
    nothing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_gym.labelers.synthetic_choice", lambda *_: nothing)
    session, said = run_whole(tmp_path)
    before, after = states(session, START, 0)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert "trying once more, longer clips" in said
    assert f"so the agent stays as it is: {loop.REMEDY}." in said
    assert session.metrics(phase="train_agent") == []
    session.close()


# ---------------------------------------------------------------------------------------------- 3: scale and sign


@pytest.mark.parametrize(("c", "trust"), [(-3.0, 1.0), (5.0, 1.0), (5.0, 0.2)])
def test_a_constant_on_what_the_reward_model_says_changes_no_agent(c: float, trust: float) -> None:
    """Whether rewards are positive or negative must not decide whether the agent wants its episodes to end."""
    config = dataclasses.replace(LEARNS, num_envs=4, num_steps=64, update_epochs=4, learning_rate=1e-3, gamma=0.97)
    torch.manual_seed(2)
    model = RewardModel(VECTOR, config)
    with torch.no_grad():
        model.weights[-1] *= 3
        model.absorbing.copy_(torch.tensor([-0.2, 0.1, -0.4]))
        model.trust.fill_(trust)
    steps = torch.randn(400, 4), torch.randint(0, 2, (400,)), torch.arange(400) >= 350

    def trained(live: float, absorbing: float, after: float = 0.0) -> tuple[dict[str, torch.Tensor], float]:
        """live, absorbing: added to the raw outputs before their scale is fitted; after: to the live ones thereafter."""
        mine = copy.deepcopy(model)
        with torch.no_grad():
            mine.biases[-1] += live
            mine.absorbing += (absorbing - live) / train.END_SPEED
            mine.fit_scale(mine(*steps), torch.ones(400), config.gamma)
            mine.biases[-1] += after
            mine.absorbing -= after / train.END_SPEED
        torch.manual_seed(3)
        agent = Agent(VECTOR, config)
        ended: list[float] = []
        train.train_agent(
            agent, mine.score, config, CPU, steps=1024, seed_path=(1, 0, 2),
            report=lambda _done, _total, metrics: ended.append(metrics["charts/episodes"]),
        )  # fmt: skip
        return agent.state_dict(), ended[-1]

    plain, ended = trained(0.0, 0.0)
    assert ended > 20  # there were ends enough for it to matter
    shifted, _ = trained(c, c)
    assert all(torch.allclose(plain[k], shifted[k], atol=2e-4) for k in plain)
    for other in ((c, 0.0, 0.0), (0.0, 0.0, c)):  # and it can tell
        different, _ = trained(*other)
        assert not all(torch.allclose(plain[k], different[k], atol=1e-2) for k in plain)


# ---------------------------------------------------------------------------------------------- 4: clips all alike


class Still(gymnasium.Env[np.ndarray, int]):
    """Nothing ever happens."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 0.0, False, False, {}


gymnasium.register("traps/Still-v0", entry_point=Still, max_episode_steps=40)


def actions_alone(clip: ScoredClip) -> float:
    """Prefers what cannot be seen."""
    return float(np.sum(clip.actions * np.arange(1, len(clip.actions) + 1)))


def test_clips_all_alike_are_labeled_equal_and_the_loop_says_what_to_do(tmp_path: Path) -> None:
    session, said = run_whole(tmp_path, env_id="traps/Still-v0", rounds=2)
    assert session.where().phase == "finished"
    assert {p.choice for p in session.pairs()} == {"equal"}
    assert said.count(loop.REMEDY) == 2
    before, *after = states(session, START, 0, 1)
    assert all(torch.equal(before[k], a[k]) for a in after for k in before)
    session.close()


def test_judgements_of_clips_all_alike_move_no_agent(tmp_path: Path) -> None:
    """Whatever the person says of them: rewards that do not differ give advantages of noise, which PPO would normalise
    to full size."""
    score = dict(score=f"{__name__}:actions_alone", reward_sees_action=False, pairs_per_round=10)
    session, said = run_whole(tmp_path, env_id="traps/Still-v0", rounds=2, disagreement_fraction=0.5, **score)
    assert session.where().phase == "finished"
    assert {"left", "right"} <= {p.choice for p in session.pairs()}
    assert said.count(f"The labels tell no clip from another, so the agent stays as it is: {loop.REMEDY}.") == 2
    before, *after = states(session, START, 0, 1)
    assert all(torch.equal(before[k], a[k]) for a in after for k in before)
    session.close()


def test_pairs_of_clips_all_alike_are_chosen_without_dividing_by_their_spread() -> None:
    alike = [clip(np.zeros((5, 4))) for _ in range(12)]
    features = collect.looks(alike)
    assert np.isfinite(features).all()
    rng = np.random.default_rng(0)
    rows = collect.choose_pairs(12, 5, np.zeros((3, 12)), 0.4, rng, features)
    assert len(rows) == 5
    assert len({i for r in rows for i in (r["left"], r["right"])}) == 10
    assert all((r["p_left"], r["disagreement"]) == (0.5, 0.0) for r in rows)


# ---------------------------------------------------------------------------------------------- 5: the end alone


@pytest.fixture(scope="module")
def clips_of_cartpole() -> list[Segment]:
    """Of 0.4 s, of an untrained agent: most end inside the clip, many do not."""
    info = envs.describe(Config(env_id="CartPole-v1"))
    config = resolve({"env_id": "CartPole-v1", "explore_share": 0.0}, info.kind)
    snapshot = Snapshot(new_agent(info, config, CPU), None, config, info, START)
    found = collect.gather(snapshot, config, info, 900, 20, (5, 7), lambda done, total: None)
    return [c.segment for c in found]


@pytest.mark.parametrize(("column", "allowed"), [(3, 0.06), (0, 0.12)], ids=["pole's speed", "cart's position"])
def test_a_taste_unrelated_to_the_end_is_not_taken_for_one_of_ends(
    column: int, allowed: float, clips_of_cartpole: list[Segment]
) -> None:
    """200 labels by a mean over the live steps, which says nothing of whether the episode ended; 250 fresh pairs.

    What is allowed: two standard errors of an accuracy near 0.9 of a hundred pairs are 0.06. Where the taste is the
    cart's position some accuracy is lost for a reason: the model takes the mean over all steps of a clip, so what lies
    before an early end counts less than in this score.
    """
    segments = clips_of_cartpole
    taste = np.array([s.observations[~s.absorbing][:, column].mean() for s in segments])
    ended = np.array([s.absorbing.any() for s in segments])
    assert 0.5 < ended.mean() < 0.9
    chosen = [pair(n + 1, 2 * n, 2 * n + 1, "left" if taste[2 * n] > taste[2 * n + 1] else "right") for n in range(200)]
    labels = Labels(chosen, dict(enumerate(segments[:400])), lambda a: a, seed=1, members=3)
    model, _ = fitted(labels)
    predicted = np.array([worth(model, s) for s in segments[400:]])
    right = (predicted[::2] > predicted[1::2]) == (taste[400::2] > taste[401::2])
    end = ended[400:].astype(float)
    one = end[::2] != end[1::2]
    assert one.sum() > 80
    assert right[~one].mean() > 0.85
    assert right[one].mean() > right[~one].mean() - allowed
    by_end = train.END_SPEED * float((model.absorbing.detach() * model.scale).mean())
    by_end_alone = (by_end * (end[::2] - end[1::2]) > 0) == (taste[400::2] > taste[401::2])
    assert right[one].mean() > by_end_alone[one].mean() + 0.2
    # of the model's own verdicts, r_abs alone would give about as many as a coin
    agrees = (by_end * (end[::2] - end[1::2]) > 0) == (predicted[::2] > predicted[1::2])
    assert 0.3 < agrees[one].mean() < 0.7


# ---------------------------------------------------------------------------------------------- 6: another mind


@pytest.fixture
def changed_mind(tmp_path: Path) -> Iterator[Session]:
    """60 labels that like a large first number, and then 30 that like a small one."""
    session = catalog.create_session(tmp_path, "one", Config(env_id="CartPole-v1"))
    rng, directory = np.random.default_rng(2), session.clear_batch_files(0, 0)
    levels = rng.normal(size=180)
    rows, pairs = [], []
    for n, level in enumerate(levels):
        save_segment(directory / f"{n:04d}.npz", clip(rng.normal(size=(6, 4)) * 0.3 + [level, 0, 0, 0]))
        rows.append(dict(round=0, attempt=0, path=f"clips/r000/{n:04d}.npz", fps=30.0, steps=6, seed=n, start=0))
    for n in range(90):
        pairs.append(dict(round=0, attempt=0, position=n, kind="uniform", left=2 * n, right=2 * n + 1))
    session.add_batch(rows, pairs)
    for n, p in enumerate(session.pairs()):
        if n == 60:
            session.forget(0)
        larger_left = levels[2 * n] > levels[2 * n + 1]
        session.add_label(f"l{n}", p.id, "left" if larger_left == (n < 60) else "right")
    yield session
    session.close()


def fit_reward_of(session: Session, trained_after: int, model: RewardModel) -> dict[str, Any]:
    """What train_reward leaves to train_agent, where the round before has `model`, trained after so many labels."""
    config, info = dataclasses.replace(session.config, reward_init="previous"), envs.describe(session.config)
    before = Snapshot(new_agent(info, config, CPU), model, config, info, START, 60, forgotten=trained_after)
    before.save(session.checkpoint(START))
    whole = loop.Loop(session, config, info, CPU, Monitor(session, Console(quiet=True)), Control(session, None), None)
    loop.fit_reward(whole, Where(0, 0, "train_reward", 90, 90))
    whole.monitor.close()
    return load_state(session.partial(0, "train_agent"))


@pytest.mark.parametrize("anew", [False, True])
def test_a_reward_model_does_not_go_on_from_what_was_forgotten(
    anew: bool, changed_mind: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But from one that has learned since then it does."""
    begun: list[torch.Tensor] = []

    def begins(model: RewardModel, labels: Labels, *args: Any, **named: Any) -> dict[str, float]:
        begun.append(model.weights[0].detach().clone())
        model.scale.fill_(1.0)
        labels.logits = torch.zeros(model.members, len(labels.pairs))
        return {}

    monkeypatch.setattr(loop, "train_reward", begins)
    forgotten = changed_mind.wishes().forgotten
    model = new_reward_model(envs.describe(changed_mind.config), changed_mind.config, CPU, 5)
    left = fit_reward_of(changed_mind, 0 if anew else forgotten, model)
    assert torch.equal(begun[0], model.weights[0]) != anew
    assert left["forgotten"] == forgotten > 0


@pytest.mark.parametrize("ties", [False, True])
def test_labels_that_tell_nothing_do_not_bring_back_what_was_forgotten(
    ties: bool, changed_mind: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all are ties, or no member has drawn the one that is not: the agent keeps the reward model of before."""
    if ties:
        for n, pair in enumerate(changed_mind.pairs()[60:]):
            changed_mind.add_label(f"tie{n}", pair.id, "equal")

    def teaches_nothing(model: RewardModel, labels: Labels, *args: Any, **named: Any) -> dict[str, float]:
        model.scale.zero_()
        labels.logits = torch.zeros(model.members, len(labels.pairs))
        return {}

    monkeypatch.setattr(loop, "train_reward", teaches_nothing)
    model = new_reward_model(envs.describe(changed_mind.config), changed_mind.config, CPU, 5)
    left = fit_reward_of(changed_mind, 0, model)
    assert (left["reward"], left["forgotten"]) == ({}, 0)


def test_old_labels_outweigh_new_ones_until_they_are_set_aside(changed_mind: Session) -> None:
    """What the page asks after a change of goal: do older labels still count?"""
    rng, found = np.random.default_rng(9), {}
    levels = rng.normal(size=(200, 2))
    for after in (0, changed_mind.wishes().forgotten):
        labels = load_labels(changed_mind, lambda a: a, seed=1, members=3, after=after)
        assert len(labels.pairs) == (30 if after else 90)
        model, _ = fitted(labels)
        each = [[worth(model, clip(np.tile([v, 0, 0, 0], (6, 1)))) for v in row] for row in levels]
        found[after > 0] = np.mean([(a > b) == (x < y) for (a, b), (x, y) in zip(each, levels, strict=True)])
    assert found[True] > 0.9
    assert found[False] < 0.2


# ---------------------------------------------------------------------------------------------- 7: exploitation


def report(true: float, worth: float, std: float = 10.0, episodes: float = 50) -> dict[str, float]:
    return {
        "charts/true_return": true, "charts/true_return_std": std, "charts/episodes": episodes,
        "charts/predicted_worth": worth, "charts/predicted_worth_std": 2.0, "charts/predicted_return": 0.0,
    }  # fmt: skip


def told(*reports: tuple[float, Mapping[str, float]], early: dict[str, float] | None = None) -> tuple[Gains, str]:
    gains = Gains({} if early is None else early)
    for share, metrics in reports:
        gains.update(share, metrics)
    return gains, gains.warning(3)


def test_what_rises_and_falls_is_measured_in_spreads_of_the_first_episodes() -> None:
    gains, said = told((0.05, report(900, 90)), (0.1, report(100, 20)), (0.2, report(0, 0)), (1.0, report(85, 23)))
    assert gains.now == {"charts/predicted_gain": 1.5, "charts/true_gain": -1.5}
    assert said.startswith(
        "While the agent of round 3 was trained, its predicted return rose by 1.5 standard deviations"
    )
    assert "its true return fell by 1.5: no surprise if the environment's own reward is not what you teach" in said
    assert "watch the newest clips and label more" in said
    assert said.count(".") == 3  # two numbers, one sentence


@pytest.mark.parametrize(
    "reports",
    [
        [(0.1, report(100, 20)), (1.0, report(91, 23))],  # true fell by less than one
        [(0.1, report(100, 20)), (1.0, report(50, 21.9))],  # predicted rose by less than one
        [(0.1, report(100, 20)), (1.0, report(50, 10))],  # the model saw it
        [(0.1, report(100, 20)), (1.0, report(150, 30))],  # both rose
        [(0.1, report(100, 20)), (0.6, report(50, 30)), (1.0, report(100, 30))],  # it has recovered
        [(0.1, report(math.nan, 20)), (1.0, report(math.nan, 30))],  # no true reward
        [(0.1, {}), (1.0, {})],  # no episode ended
        [(0.1, report(100, 20, episodes=LEAST - 1)), (0.6, report(50, 30)), (1.0, report(50, 30))],  # too few, too late
        [(0.6, report(100, 20)), (1.0, report(50, 30))],  # resumed late, with nothing kept
        [],
    ],
)
def test_no_false_alarm(reports: list[tuple[float, dict[str, float]]]) -> None:
    assert told(*reports)[1] == ""


def test_without_spread_a_small_change_is_none_and_a_large_one_is() -> None:
    """Early episodes that all reach the time limit."""
    assert told((0.1, report(500, 20, std=0.0)), (1.0, report(490, 40)))[1] == ""
    assert told((0.1, report(500, 20, std=0.0)), (1.0, report(400, 40)))[1]


def test_few_long_episodes_are_waited_for_until_half_of_the_phase() -> None:
    gains, _ = told((0.1, report(100, 20, episodes=8)), (0.4, report(100, 20, episodes=LEAST)), (1.0, report(80, 24)))
    assert gains.now == {"charts/predicted_gain": 2.0, "charts/true_gain": -2.0}


def test_what_the_first_episodes_were_like_goes_on_in_another_process() -> None:
    early: dict[str, float] = {}
    told((0.1, report(100, 20)), early=early)
    assert told((0.7, report(50, 22)), (1.0, report(80, 24)), early=copy.copy(early))[1]
    assert told((0.1, report(50, 30)), (1.0, report(85, 23)), early=copy.copy(early))[0].now["charts/true_gain"] == -1.5


def test_the_predicted_worth_of_episodes_counts_what_they_give_after_their_end() -> None:
    """Episodes of 2, 2, 1 and 3 steps, of at most 4, that give -0.1 a step where an ended one gives -1: the longer is
    the better one, and a constant on all rewards changes no difference."""
    ended = np.array([[False, True], [True, False], [False, False], [False, True]])
    ended[3, 0] = True
    found = []
    for c in (0.0, 5.0):
        tracker = EpisodeTracker(2)
        tracker.begin(4)
        rewards = np.full((4, 2), -0.1 + c)
        tracker.add(np.ones((4, 2)), rewards, ended, np.full((4, 2), -1.0 + c))
        means = tracker.means()
        found.append((means["charts/predicted_worth"] - c, means["charts/predicted_worth_std"]))
    worths = (-0.1 * np.array([2, 2, 1, 3]) - 1.0 * np.array([2, 2, 3, 1])) / 4  # over four steps
    assert found[0] == pytest.approx((worths.mean(), worths.std()))
    assert found[1] == pytest.approx(found[0])
    cut = EpisodeTracker(2)  # one that is cut off goes on as it was
    cut.add(np.ones((4, 2)), np.full((4, 2), -0.1), ended, np.full((4, 2), np.nan))
    assert cut.means()["charts/predicted_worth"] == pytest.approx(-0.1)


def test_a_policy_that_stays_as_it_was_gains_nothing_however_long_one_of_its_episodes_lasts() -> None:
    def worth(lengths: list[int]) -> float:
        tracker = EpisodeTracker(1)
        tracker.begin(500)
        for n in lengths:
            ended = np.arange(n)[:, None] == n - 1
            tracker.add(np.ones((n, 1)), np.full((n, 1), 0.1), ended, np.full((n, 1), -1.0))
        return tracker.means()["charts/predicted_worth"]

    assert worth([10, 30] * 50) == pytest.approx(worth([200] + [10, 30] * 50))


class Broken(Monitor):
    """Breaks off in the middle of the training of the agent."""

    def __call__(self, done: int, total: int, *more: Any, **named: Any) -> None:
        super().__call__(done, total, *more, **named)
        if self.name == "train_agent" and done > 0.6 * total:
            raise KeyboardInterrupt


def balancer(info: EnvInfo, config: Config) -> Agent:
    """An agent that mostly keeps the pole up: it pushes to where the pole leans."""
    agent = new_agent(info, config, CPU)
    first, second, third = (m for m in agent.actor if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        first.weight[0] = torch.tensor([0.05, 0.1, 1.0, 0.4])
        second.weight[0] = torch.eye(config.hidden_size)[0]
        third.weight.zero_()
        third.weight[:, 0] = torch.tensor([-5.0, 5.0])
    return agent


@pytest.fixture
def bad_reward(tmp_path: Path) -> Iterator[tuple[Session, Callable[[type[Monitor]], str]]]:
    """A session at train_agent: an agent that keeps the pole up, and a reward model that likes an end above all."""
    settings = dict(normalize_obs=False, agent_steps_per_round=20_000, checkpoint_iterations=4)  # 20 iterations
    session, _, info = of_session(tmp_path, **settings)
    config = session.config
    model = new_reward_model(info, config, CPU, 0)
    with torch.no_grad():
        model.weights[-1].zero_()
        model.absorbing.fill_(1 / train.END_SPEED)
    model.fit_scale(torch.cat([torch.zeros(3, 90), torch.ones(3, 10)], 1), torch.ones(100), config.gamma)
    Snapshot(balancer(info, config), None, config, info, START).save(session.checkpoint(START))
    save_state(session.partial(0, "train_agent"), {"last_label_id": 0, "reward": model.state_dict()})

    def train_agent(kind: type[Monitor] = Monitor) -> str:
        out = io.StringIO()
        monitor = kind(session, Console(file=out, width=1000))
        whole = loop.Loop(session, config, info, CPU, monitor, Control(session, None), None)
        try:
            loop.fit_agent(whole, Where(0, 0, "train_agent", 0, 0))
        finally:
            monitor.close()
        return out.getvalue()

    yield session, train_agent
    session.close()


def test_an_agent_that_exploits_a_bad_reward_is_told_of_and_a_kill_in_between_changes_no_measure(
    bad_reward: Any,
) -> None:
    session, train_agent = bad_reward
    with pytest.raises(KeyboardInterrupt):
        train_agent(Broken)
    early = load_state(session.partial(0, "train_agent"))["early"]
    assert early["true_return"] > 150
    said = train_agent()
    assert said.count("While the agent of round 0 was trained, its predicted return rose by") == 1
    gains = {name: session.metrics(f"charts/{name}_gain", "train_agent")[-1] for name in ("predicted", "true")}
    assert gains["predicted"]["value"] > 1
    true = gains["true"]["value"]
    assert true < -1
    assert f"fell by {-true:.1f}:" in said
    newest = session.metrics("charts/true_return", "train_agent")[-1]
    assert newest["step"] == gains["true"]["step"] == 20_480
    assert true == pytest.approx((newest["value"] - early["true_return"]) / early["true_return_std"])
