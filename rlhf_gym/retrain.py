"""Training alone, with no page: `python -m rlhf_gym.train`.

    python -m rlhf_gym.train cartpole-1                             retrain a session from its saved labels
    python -m rlhf_gym.train --env-id CartPole-v1 --reward env      plain PPO on the true reward

Plain PPO is how the engine is proved right; retraining shows what other settings make of the same labels.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from rlhf_gym import arguments, checkpoints, cli, envs, running, spec, trust, whatif
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, Settings, UserError, resolve, validate, validate_each
from rlhf_gym.evaluate import evaluate
from rlhf_gym.labels import load_labels
from rlhf_gym.normalizer import Normalizer
from rlhf_gym.seeds import PHASE_SEED
from rlhf_gym.team import Team
from rlhf_gym.train import Rollout, train_agent, train_reward


@dataclass(frozen=True)
class Train:
    """Train with no page: a session's labels anew, or plain PPO on the true reward."""

    session: tyro.conf.Positional[str] = ""
    """A session to retrain from its saved labels; nothing in it is changed."""
    env_id: str = ""
    """Environment of plain PPO (with --reward env)."""
    reward: Literal["labels", "env"] = "labels"
    """labels: a session's reward model, trained anew; env: the true reward."""
    steps: int = 0
    """Steps to train the agent; 0 means as many as the session has trained, or one round."""
    stop_at: float = float("inf")
    """With --reward env: stop once the mean of the last 100 episodes reaches this."""
    out: Path | None = None
    """Checkpoint to write."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    data_dir: Path = Path("data")
    """Directory that holds the sessions."""


def main() -> None:
    """Entry point; a user's mistake is one line on stderr."""
    args = sys.argv[1:]
    command = arguments.parse(args, Train, "python -m rlhf_gym.train", "The engine alone.")
    status = 0
    try:
        if command.steps < 0:
            raise UserError(f"--steps {command.steps} is out of range: give the number of steps to train the agent.")
        status = cli.together(lambda team: train(command, args, team))
    except UserError as error:
        print(f"rlhf-gym: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    if "RANK" in os.environ:
        cli.leave(status)  # what torch runs between processes does not always come down well
    if status:
        sys.exit(status)


def train(command: Train, args: list[str], team: Team | None) -> int:
    if command.out is not None:
        make_room(command.out)
    if command.reward == "env":
        plain_ppo(command, args, team)
    else:
        retrain(command, args, team)
    return 0


def make_room(out: Path) -> None:
    """Raises UserError now for what could not be written after hours of training."""
    try:
        if out.is_dir():
            raise UserError(f"--out {out} is a directory: name the file to write.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}-"):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {out.parent} ({error.strerror}): give another --out.") from None


class TrueReward:
    """Scores a rollout by the environment's own reward over the spread of the return, so that values are of order one.

    The spread is that of the running discounted return, as in CleanRL's continuous PPO (NormalizeReward). Unscaled,
    the dot's values are near 90, and one of two seeds did not solve it in 100k steps (docs/benchmarks.md). Of several
    processes each takes the spread of its own episodes.
    """

    def __init__(self, config: Config) -> None:
        self.gamma = config.gamma
        self.spread, self.running = Normalizer(()), torch.zeros(())

    def __call__(self, roll: Rollout, true_rewards: np.ndarray) -> None:
        if not np.isfinite(true_rewards).all():  # from which neither the spread nor the agent would ever recover
            raise UserError(
                "The environment gave a true reward that is NaN or infinite: mend it, or learn from labels instead."
            )
        rewards, ends = torch.as_tensor(true_rewards), (roll.terminated | roll.truncated).cpu()
        returns = torch.empty_like(rewards)
        for t, reward in enumerate(rewards):
            torch.add(reward, self.running, alpha=self.gamma, out=returns[t])
            self.running = torch.where(ends[t], 0.0, returns[t])
        self.spread.update(returns.flatten())
        roll.rewards = (rewards / (self.spread.var.float() + 1e-8).sqrt()).to(roll.values.device)


class Progress:
    """Prints a line every two seconds, and says when the agent is good enough."""

    def __init__(self, stop_at: float) -> None:
        self.began, self.lined, self.stop_at = time.monotonic(), 0.0, stop_at

    def __call__(self, done: int, total: int, metrics: dict[str, float]) -> bool:
        now = time.monotonic()
        good = metrics.get("charts/episodes", 0) >= 100 and metrics["charts/true_return"] >= self.stop_at
        if now - self.lined >= 2 or done >= total or good:
            self.lined = now
            names = {"charts/true_return": "true", "charts/predicted_reward": "reward", "charts/SPS": "steps/s"}
            numbers = " | ".join(f"{short} {metrics[n]:,.4g}" for n, short in names.items() if n in metrics)
            print(f"train_agent {done:,}/{total:,} | {numbers} | {now - self.began:.1f} s", flush=True)
        return good


def plain_ppo(command: Train, args: list[str], team: Team | None = None) -> None:
    """PPO on the true reward: an ended episode is worth nothing more."""
    team = team or Team()
    if not command.env_id:
        raise UserError("--reward env needs an environment: give --env-id, e.g. --env-id CartPole-v1.")
    given = {"env_id": command.env_id, **arguments.explicit(command.settings, args)}
    info = envs.describe(validate_each(Config(**given)))
    config = resolve(given, info.kind)
    device = checkpoints.pick_device(config, info)
    team.check(config, device)
    agent = checkpoints.new_agent(info, config, device)
    score = TrueReward(config)
    began = time.monotonic()
    steps = team.run(
        train_agent, agent, score, config, device, steps=command.steps or config.agent_steps_per_round,
        seed_path=(config.seed, 0, PHASE_SEED["train_agent"]), report=Progress(command.stop_at),
    )  # fmt: skip
    print(f"trained {steps:,} steps in {time.monotonic() - began:.1f} s")
    finish(Snapshot(agent, None, config, info, 0, 0, steps), command)


def retrain(command: Train, args: list[str], team: Team | None = None) -> None:
    """A new reward model from all labels of a session, and a new agent trained on it alone."""
    team = team or Team()
    if not command.session:
        raise UserError("Nothing to train: name a session, or give --reward env --env-id CartPole-v1.")
    session = running.open_session(command.data_dir, command.session)
    trust.require(session, command.trust)
    if command.env_id not in ("", session.config.env_id):
        raise UserError(
            f"--env-id {command.env_id} is for --reward env: the labels of {session.name!r} are of "
            f"{session.config.env_id}, so leave it out."
        )
    given = arguments.explicit(command.settings, args)
    whatif.refuse_other_clips(session.config, given, "when labels are learned from anew")
    config = validate(dataclasses.replace(session.config, **given))
    info = envs.describe(config)
    running.check_environment(session, config, info)
    spec.require_few_numbers(config, info)
    device = checkpoints.pick_device(config, info)
    team.check(config, device)
    agent = checkpoints.new_agent(info, config, device)
    labels = load_labels(session, agent.from_env, config.seed, config.ensemble_size, after=session.wishes().forgotten)
    if labels is None:
        raise UserError(f"Session {session.name!r} has no label that says better or worse: label some pairs first.")
    for sentence in labels.damaged:
        print(f"{sentence} Its pairs are left out.")
    model = checkpoints.new_reward_model(info, config, device, 0)
    metrics = train_reward(model, labels, config, device)
    if not model.scale.any():  # advantages of no reward are noise
        raise UserError(f"The labels of session {session.name!r} tell no clip from another: label more pairs first.")
    print(f"train_reward {len(labels.pairs)} labels | " + " | ".join(f"{k} {v:.3g}" for k, v in metrics.items()))
    rounds = [r for r in session.trained_rounds() if r >= 0]
    steps = command.steps or config.agent_steps_per_round * max(1, len(rounds))
    seed_path = (config.seed, 0, PHASE_SEED["train_agent"])
    done = team.run(
        train_agent, agent, model.score, config, device, steps=steps, seed_path=seed_path,
        report=Progress(float("inf")),
    )  # fmt: skip
    finish(Snapshot(agent, model, config, info, max(rounds, default=0), session.last_label_id(), done), command)


def finish(snapshot: Snapshot, command: Train) -> None:
    """Writes the agent, if asked, and evaluates it."""
    if command.out is not None:
        try:
            snapshot.save(command.out)
        except OSError as error:
            raise UserError(f"Cannot write {command.out} ({error.strerror}): the agent is lost.") from None
        print(command.out)
    result: dict[str, Any] = evaluate(snapshot.agent, snapshot.config, snapshot.info, 0, 20, max_seconds=60)
    cut = f", {result['capped']} of them cut" if result["capped"] else ""
    print(f"true return {result['mean']} ± {result['std']} over {result['episodes']} episodes{cut}")
