"""What an agent's true return is held against: the untrained agent, a random one, and the ceiling, where one was made.

    rlhf-gym evaluate cartpole-1
    python scripts/bench/ceiling.py CartPole-v1      makes the ceiling: plain PPO on the true reward

All play the same number of episodes, which begin alike. Intervals are a percentile bootstrap's: means of 10,000
resamples of the episodes (fewer of more than 10,000 episodes, at least 1,000), with a fixed seed. They say how far
chance in the episodes played could have moved the mean, not what another training would have given.

Ceilings are JSON lines, one training each: {"kind": "true", "env_id", "env_kwargs", "steps", "seed", "returns"}, with
the true return of every episode played after it. Lines that `scripts/bench/learning.py --out` writes are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from rich.table import Table

from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo
from rlhf_gym.evaluate import Episodes, play_episodes, summary
from rlhf_gym.labelers import Score
from rlhf_gym.seeds import seed_from
from rlhf_gym.store import START, finite
from rlhf_gym.train import Agent

CEILINGS = "ceilings.jsonl"  # in the data directory
RESAMPLES, FEWEST, DRAWS = 10_000, 1_000, 100_000_000
LEVEL = 0.95
RANDOM_SEED = 5  # after those of seeds.PHASE_SEED


class RandomAgent:
    """Draws each action uniformly from the environment's action space; an open side as far as an agent goes there."""

    def __init__(self, info: EnvInfo, seed: int) -> None:
        self.space: spaces.Space[Any]
        if info.num_actions is not None:
            self.space = spaces.Discrete(info.num_actions, seed=seed)
        else:
            low, high = (bound.astype(np.float32) for bound in info.action_bounds())
            self.space = spaces.Box(low, high, seed=seed)

    def act(self, obs: np.ndarray, _generator: Any = None) -> np.ndarray:
        """obs (N, ...) -> (N,) or (N, A)"""
        return np.stack([self.space.sample() for _ in range(len(obs))])


def compare(
    agents: dict[str, tuple[Agent | RandomAgent, Config]],
    info: EnvInfo,
    episodes: int,
    *,
    greedy: bool | None = None,
    score: Score | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, Episodes]:
    """Plays episodes with each of the agents, on its settings; whole ones, which begin alike for all."""
    found = {}
    for i, (name, (agent, config)) in enumerate(agents.items()):

        def heard(done: int, _total: int, before: int = i * episodes) -> None:
            if tell is not None:
                tell(before + done, len(agents) * episodes)

        found[name] = play_episodes(agent, config, info, episodes, greedy=greedy, score=score, report=heard)
    return found


def random_agent(info: EnvInfo, config: Config) -> RandomAgent:
    return RandomAgent(info, seed_from(config.seed, RANDOM_SEED))


# ---------------------------------------------------------------------------------------------- intervals


def resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples, (RESAMPLES,) or fewer."""
    rng, n = np.random.default_rng(seed), len(values)
    count = max(FEWEST, min(RESAMPLES, DRAWS // n))
    return np.array([values[rng.integers(n, size=n)].mean() for _ in range(count)])


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the mean; None of fewer than two values, and where one is NaN."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    low, high = np.quantile(resampled(values, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Of two agents' means, with its 95 % interval: both are resampled, each by itself."""

    mean: float
    low: float
    high: float

    def says(self, other: str, what: str = "true return") -> str:
        """better than the untrained agent (difference in true return 312, 95 % interval 250 to 370)"""
        how = "better than" if self.low > 0 else "worse than" if self.high < 0 else "not clearly different from"
        numbers = f"{self.mean:.4g}, 95 % interval {self.low:.4g} to {self.high:.4g}"
        return f"{how} {other} (difference in {what} {numbers})"


def difference(values: np.ndarray, others: np.ndarray) -> Difference | None:
    """None where either has no interval."""
    if interval(values) is None or interval(others) is None:
        return None
    mine, theirs = resampled(values, 1), resampled(others, 2)
    count = min(len(mine), len(theirs))
    low, high = np.quantile(mine[:count] - theirs[:count], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(values.mean() - others.mean()), float(low), float(high))


def with_interval(played: Episodes, round: int) -> dict[str, Any]:
    """The summary that `evaluate` gives, and the interval of its mean (and of the score's)."""
    found = summary(played, round) | {"interval": interval(played.returns)}
    return found | ({"score_interval": interval(played.scores)} if played.scores is not None else {})


# ---------------------------------------------------------------------------------------------- the ceiling


def read_ceilings(path: Path) -> list[dict[str, Any]]:
    """The trainings on the true reward in a file of JSON lines.

    Raises:
        UserError: it cannot be read, or a line is none of ours.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"The ceilings in {path} cannot be read ({said}): give another --ceiling FILE.") from None
    found = []
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["kind"] == "true":
                found.append(normal(row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            raise UserError(
                f"Line {n} of {path} is no training: scripts/bench/ceiling.py and learning.py write them. Delete it."
            ) from None
    return found


def normal(row: dict[str, Any]) -> dict[str, Any]:
    """A line of either script as a ceiling."""
    if "key" not in row:
        returns = [float(r) for r in row["returns"]]
        if not returns or any(finite(r) is None for r in returns):
            raise ValueError(returns)
        return {"env_id": str(row["env_id"]), "env_kwargs": row.get("env_kwargs") or {}, "steps": int(row["steps"]),
                "seed": int(row["seed"]), "mean": float(np.mean(returns)), "returns": returns}  # fmt: skip
    if finite(row["rounds"][-1]["return"]) is None:
        raise ValueError(row["rounds"][-1])
    given = json.loads(row["key"])[3]
    steps = given.get("rounds", 0) * given.get("agent_steps_per_round", 0)
    return {"env_id": given["env_id"], "env_kwargs": given.get("env_kwargs") or {}, "steps": steps or None,
            "seed": int(row["seed"]), "mean": float(row["rounds"][-1]["return"]), "returns": []}  # fmt: skip


def ceiling(rows: Sequence[dict[str, Any]], config: Config) -> dict[str, Any] | None:
    """Those of this environment that were trained longest, as one number; None where there is none.

    Returns:
        mean, the mean of each seed's mean; interval over all their episodes, where they are known; steps; seeds; means.
    """
    of_it = [r for r in rows if (r["env_id"], r["env_kwargs"]) == (config.env_id, config.env_kwargs)]
    if not of_it:
        return None
    steps = max(r["steps"] or 0 for r in of_it)
    newest = {r["seed"]: r for r in of_it if (r["steps"] or 0) == steps}  # of a seed the last line
    means = [r["mean"] for r in newest.values()]
    returns = np.array([x for r in newest.values() for x in r["returns"]])
    return {"mean": float(np.mean(means)), "interval": interval(returns), "episodes": len(returns) or None,
            "steps": steps or None, "seeds": list(newest), "means": means}  # fmt: skip


def ceiling_of(path: Path | None, data_dir: Path, config: Config) -> dict[str, Any] | None:
    """The ceiling in the file that was named, or in the data directory's, if there is one."""
    usual = data_dir / CEILINGS
    if path is None:
        return ceiling(read_ceilings(usual), config) if usual.is_file() else None
    found = ceiling(read_ceilings(path), config)
    if found is None:
        raise UserError(
            f"{path} has no training of {config.env_id}: make one with scripts/bench/ceiling.py {config.env_id}."
        )
    return found


# ---------------------------------------------------------------------------------------------- what is told


def report(played: dict[str, Episodes], round: int, top: dict[str, Any] | None) -> dict[str, Any]:
    """What `evaluate` tells: the agent's numbers, those of whom it is held against, and sentences on it."""
    agent = played["agent"]
    result = with_interval(agent, round)
    result |= {name: with_interval(found, START) for name, found in played.items() if name != "agent"}
    sentences = []
    for name in ("untrained", "random"):
        if name not in played:
            continue
        for what, mine, theirs in (("true return", agent.returns, played[name].returns),
                                   ("score", agent.scores, played[name].scores)):  # fmt: skip
            if mine is not None and theirs is not None and (found := difference(mine, theirs)) is not None:
                sentences.append(f"It is {found.says(f'the {title(name, round)}', what)}.")
    if top is not None:
        result["ceiling"] = top
        if (of_it := share(result, top)) is not None:
            sentences.append(f"It has come {of_it:.0%} of the way from the random agent to the ceiling.")
    return result | {"verdicts": sentences}


def share(result: dict[str, Any], top: dict[str, Any]) -> float | None:
    """How far it has come from the random agent to the ceiling; None where there is no such way."""
    low = result["random"]["mean"] if "random" in result else None
    if low is None or result["mean"] is None or top["mean"] <= low:
        return None
    return float((result["mean"] - low) / (top["mean"] - low))


def table(result: dict[str, Any]) -> Table:
    """All of them, a line each."""
    scored = "score_mean" in result
    found = Table(box=None, header_style="bold")
    found.add_column("")
    for column in ("true return", "95 % interval", "min", "max", *(["score", "95 % interval"] * scored), "episodes"):
        found.add_column(column, justify="right")
    rows = [("agent", result), *((name, result[name]) for name in ("untrained", "random") if name in result)]
    for name, row in rows:
        scores = [text(row["score_mean"]), spans(row["score_interval"])] if scored else []
        numbers = [text(row["mean"]), spans(row["interval"]), text(row["min"]), text(row["max"]), *scores]
        found.add_row(title(name, result["round"]), *numbers, str(row["episodes"]))
    if (top := result.get("ceiling")) is not None:
        found.add_row(told(top), text(top["mean"]), spans(top["interval"]), "", "", *["", ""] * scored,
                      str(top["episodes"] or ""))  # fmt: skip
    return found


def told(top: dict[str, Any]) -> str:
    """ceiling: PPO on the true reward, 100,000 steps, seeds 1, 2 (480, 500)"""
    steps = f", {top['steps']:,} steps" if top["steps"] else ""
    seeds = f"seed{'s' if len(top['seeds']) > 1 else ''} {', '.join(map(str, top['seeds']))}"
    each = f" ({', '.join(text(m) for m in top['means'])})" if len(top["means"]) > 1 else ""
    return f"ceiling: PPO on the true reward{steps}, {seeds}{each}"


def text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def spans(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"{limits[0]:.2f} to {limits[1]:.2f}"


def title(name: str, round: int) -> str:
    """Of a row in the table."""
    return {"agent": f"round {round}", "untrained": "untrained agent", "random": "random agent"}[name]
