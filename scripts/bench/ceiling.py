"""What can be reached: plain PPO on the true reward, for `rlhf-gym evaluate` to hold agents against.

    python scripts/bench/ceiling.py CartPole-v1 --steps 100000
    python scripts/bench/ceiling.py Hopper-v5 --steps 1000000 --seeds 1 2 3

Adds a line for each seed to ceilings.jsonl in the data directory (rlhf_gym/baselines.py has the format). Settings are
those of the environment's preset, and any can be given: LunarLander-v3 wants `--gamma 0.999 --gae-lambda 0.98`. The
steps are told with it, since it depends on them how high it gets.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)  # Python has a module `profile`, too

from rlhf_gym import arguments, baselines, checkpoints, envs, evaluate, retrain, train
from rlhf_gym.config import Config, Settings, UserError, resolve, validate_each
from rlhf_gym.files import write_atomic
from rlhf_gym.seeds import PHASE_SEED


@dataclass(frozen=True)
class Ceiling:
    """Plain PPO on the true reward, for rlhf-gym evaluate to hold agents against."""

    env_id: tyro.conf.Positional[str]
    """The environment, as `rlhf-gym run` takes it."""
    steps: int = 0
    """Steps of training; 0 means ten rounds of the preset."""
    seeds: tuple[int, ...] = (1,)
    """One training for each."""
    episodes: int = 100
    """Episodes to play after it."""
    data_dir: Path = Path("data")
    """Directory that holds the sessions."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def run(config: Config, info: envs.EnvInfo, steps: int, episodes: int) -> dict[str, Any]:
    """One training, and how good it got."""
    device = checkpoints.pick_device(config, info)
    agent = checkpoints.new_agent(info, config, device)
    taken = train.train_agent(
        agent, retrain.TrueReward(config), config, device, steps=steps,
        seed_path=(config.seed, 0, PHASE_SEED["train_agent"]), report=retrain.Progress(float("inf")),
    )  # fmt: skip
    played = evaluate.play_episodes(agent, config, info, episodes)
    return {"kind": "true", "env_id": config.env_id, "env_kwargs": config.env_kwargs, "steps": taken,
            "seed": config.seed, "returns": played.returns.tolist(), "greedy": played.greedy}  # fmt: skip


def add_line(path: Path, row: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    before += "\n" if before and not before.endswith("\n") else ""
    write_atomic(path, (before + json.dumps(row, allow_nan=False) + "\n").encode())


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Ceiling, "scripts/bench/ceiling.py", "PPO on the true reward.")
    if command.steps < 0 or command.episodes < 1:
        raise UserError("--steps must be 0 or more, and --episodes 1 or more.")
    given = {"env_id": command.env_id, **arguments.explicit(command.settings, args)}
    info = envs.describe(validate_each(Config(**given)))
    path = command.data_dir / baselines.CEILINGS
    if "seed" in given:
        raise UserError(f"--seed {given['seed']} is for one session: give --seeds.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {path.parent} ({error.strerror}): give another --data-dir.") from None
    if path.exists():
        baselines.read_ceilings(path)  # so that one that is damaged is told before, and not after
    for seed in command.seeds:
        began, config = time.monotonic(), resolve({**given, "seed": seed}, info.kind)
        row = run(config, info, command.steps or 10 * config.agent_steps_per_round, command.episodes)
        try:
            add_line(path, row)
        except OSError as error:
            raise UserError(f"Cannot write to {path} ({error.strerror}); the returns were {row['returns']}.") from None
        except ValueError:
            raise UserError(f"{command.env_id} has no true reward (NaN), so it has no ceiling.") from None
        mean = sum(row["returns"]) / len(row["returns"])
        print(f"seed {seed}: {mean:.4g} after {row['steps']:,} steps, {time.monotonic() - began:.0f} s; in {path}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ceiling.py: {error}")
