"""What an agent is held against: random play, intervals of the mean, ceilings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import made

from rlhf_gym import baselines
from rlhf_gym.config import Config, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "ALE/Pong-v5", "rlhf_gym/Dot-v0"])
def test_a_random_agent_plays_anything_and_the_same_again(env_id):
    _, config, info = made(env_id)
    agent, again = (baselines.random_agent(info, config) for _ in range(2))
    drawn = np.stack([agent.act(np.zeros((50, 1))) for _ in range(20)])
    assert np.array_equal(drawn[0], again.act(np.zeros((50, 1))))
    if info.num_actions is not None:
        shares = np.bincount(drawn.ravel(), minlength=info.num_actions) / drawn.size
        assert shares == pytest.approx(np.full(info.num_actions, 1 / info.num_actions), abs=0.06)
    else:
        assert drawn.shape == (20, 50, 1)
        assert (drawn.min(), drawn.max()) == pytest.approx((-2, 2), abs=0.05)
        assert drawn.std() == pytest.approx(4 / 12**0.5, rel=0.06)  # uniform


def test_all_play_episodes_that_begin_alike():
    agent, config, info = made("CartPole-v1")
    found = baselines.compare({"agent": (agent, config), "same": (agent, config)}, info, 6)
    assert np.array_equal(found["agent"].returns, found["same"].returns)
    seen: list[tuple[int, int]] = []
    agents = {"agent": (agent, config), "random": (baselines.random_agent(info, config), config)}
    found = baselines.compare(agents, info, 20, tell=lambda *a: seen.append(a))
    assert 15 < found["random"].returns.mean() < 35  # what CartPole is known to give
    assert (seen[-1], seen == sorted(seen)) == ((40, 40), True)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(100):
        low, high = baselines.interval(rng.normal(3.0, 2.0, 40), seed) or (0, 0)
        inside += low <= 3.0 <= high
    assert 86 <= inside <= 99
    low, high = baselines.interval(rng.normal(3.0, 2.0, 400)) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert baselines.interval(np.array([1.0])) is None
    assert baselines.interval(np.array([1.0, np.nan])) is None
    assert baselines.interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_a_difference_is_said_where_it_is_one():
    rng = np.random.default_rng(1)
    low, high = rng.normal(0, 1, 50), rng.normal(5, 1, 50)
    better, worse, same = (baselines.difference(*pair) for pair in ((high, low), (low, high), (low, low[::-1])))
    assert better is not None
    assert worse is not None
    assert same is not None
    assert better.low < better.mean < better.high
    assert better.says("the untrained agent").startswith("better than the untrained agent (difference in true return ")
    assert worse.says("x").startswith("worse than x")
    assert same.says("x").startswith("not clearly different from x")
    assert baselines.difference(high, np.array([np.nan] * 3)) is None


def line(**more) -> str:
    row = {"kind": "true", "env_id": "CartPole-v1", "steps": 1000, "seed": 1, "returns": [100.0, 200.0], **more}
    return json.dumps(row) + "\n"


def test_the_ceiling_is_that_of_the_longest_trainings_of_the_environment(tmp_path):
    path = tmp_path / "ceilings.jsonl"
    path.write_text(
        line() + line(steps=5000, returns=[400.0, 420.0]) + line(steps=5000, seed=2, returns=[500.0, 500.0])
        + line(env_id="Pendulum-v1", steps=10**9) + line(steps=10**9, env_kwargs={"sutton_barto_reward": True})
        + json.dumps({"kind": "labels"}) + "\n"
    )  # fmt: skip
    config = Config(env_id="CartPole-v1")
    found = baselines.ceiling_of(None, tmp_path, config)
    assert found is not None
    assert (found["mean"], found["steps"], found["seeds"], found["means"]) == (455, 5000, [1, 2], [410, 500])
    assert found["interval"][0] < 455 < found["interval"][1]
    assert "5,000 steps, seeds 1, 2 (410.00, 500.00)" in baselines.told(found)
    assert baselines.ceiling_of(None, tmp_path / "elsewhere", config) is None
    with pytest.raises(UserError, match=r"has no training of Acrobot-v1"):
        baselines.ceiling_of(path, tmp_path, Config(env_id="Acrobot-v1"))


def test_runs_of_the_learning_benchmark_are_ceilings_too(tmp_path):
    key = json.dumps(["cartpole", "true", 3, {"env_id": "CartPole-v1", "rounds": 2, "agent_steps_per_round": 500}])
    run = {"key": key, "task": "cartpole", "kind": "true", "seed": 3, "rounds": [{"value": 1, "return": 321.0}]}
    (tmp_path / "out.jsonl").write_text(json.dumps(run) + "\n")
    found = baselines.ceiling_of(tmp_path / "out.jsonl", tmp_path, Config(env_id="CartPole-v1"))
    assert found is not None
    assert (found["mean"], found["steps"], found["seeds"], found["interval"]) == (321, 1000, [3], None)


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        "3",
        '{"kind": "true"}',
        line(returns=[]).strip(),
        line(steps="x").strip(),
        '{"kind": "true", "env_id": "CartPole-v1", "steps": Infinity, "seed": 1, "returns": [1]}',
        '{"kind": "true", "seed": 1, "key": "[0, 0, 0, {\\"env_id\\": \\"X\\"}]", "rounds": [{"return": NaN}]}',
    ],
)
def test_a_line_that_is_no_training_is_told(tmp_path, bad):
    (tmp_path / "c.jsonl").write_text(line() + bad + "\n")
    with pytest.raises(UserError, match=r"Line 2 of .*c\.jsonl is no training"):
        baselines.read_ceilings(tmp_path / "c.jsonl")


def test_a_report_tells_how_far_it_is_from_random_to_the_ceiling():
    agent, config, info = made("CartPole-v1")
    played = baselines.compare(
        {"agent": (agent, config), "random": (baselines.random_agent(info, config), config)}, info, 5
    )
    low, mean = played["random"].returns.mean(), played["agent"].returns.mean()
    top = {"mean": low + 2 * (mean - low) if mean > low else low + 9, "interval": None, "episodes": None,
           "steps": 10, "seeds": [1], "means": [1.0]}  # fmt: skip
    found = baselines.report(played, 3, top)
    assert found["ceiling"] is top
    expected = (mean - low) / (top["mean"] - low)
    assert found["verdicts"][-1] == f"It has come {expected:.0%} of the way from the random agent to the ceiling."
    json.dumps(found, allow_nan=False)


def test_the_script_makes_a_ceiling_that_is_found(tmp_path):
    command = [sys.executable, "scripts/bench/ceiling.py", "CartPole-v1", "--steps", "600", "--episodes", "2",
               "--data-dir", str(tmp_path), "--seeds", "1", "2"]  # fmt: skip
    (tmp_path / baselines.CEILINGS).write_text(line(steps=5).rstrip())  # somebody's editor took the end of the line
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = baselines.ceiling_of(None, tmp_path, Config(env_id="CartPole-v1"))
    assert found is not None
    assert (found["seeds"], found["episodes"]) == ([1, 2], 4)
    assert found["steps"] >= 600
