"""How much sooner several processes train the agent than one.

    python scripts/bench/scaling.py --processes 1 2 4
    python scripts/bench/scaling.py --env-ids ALE/Pong-v5 --processes 1 2 --num-envs 16

Trains an agent on a reward model that has learned nothing, with the same environments shared out among so many
processes (started by torchrun) and the cores shared out, too. Prints a Markdown table with the median steps per second
over the iterations after the first. One process takes the fast path; `--no-fast` shows DDP against the same code.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too

from rlhf_gym import arguments, checkpoints, cli, envs
from rlhf_gym.config import Config, Settings, resolve
from rlhf_gym.team import Team
from rlhf_gym.train import train_agent


@dataclass(frozen=True)
class Scaling:
    """How much sooner several processes train the agent than one."""

    env_ids: tuple[str, ...] = ("CartPole-v1", "ALE/Pong-v5")
    """Environments to train in."""
    processes: tuple[int, ...] = (1, 2)
    """How many processes, one run for each."""
    iterations: int = 12
    """Iterations of each run; the first is not counted."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Scaling, "scaling.py", "Steps per second of several processes.")
    if "RANK" in os.environ:  # one of those that torchrun has started
        cli.leave(cli.together(lambda team: measure(command, args, team or Team())))
    print("| environment | processes | environments each | steps/s | times the first |\n|---|---:|---:|---:|---:|")
    for env_id in command.env_ids:
        first = 0.0
        for size in command.processes:
            found = start(env_id, size, args)
            first = first or found["speed"]
            row = f"{found['num_envs'] // size} | {found['speed']:,.0f} | {found['speed'] / first:.2f}"
            print(f"| {env_id} | {size} | {row} |", flush=True)


def start(env_id: str, size: int, args: list[str]) -> dict[str, float]:
    """Runs this script under torchrun, and reads what rank 0 has printed."""
    threads = str(max(1, (os.cpu_count() or 1) // size))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    found = subprocess.run(
        [*torchrun, __file__, *args, "--env-ids", env_id],
        env={**os.environ, "OMP_NUM_THREADS": threads}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(found.stdout.splitlines()[-1]))


def measure(command: Scaling, args: list[str], team: Team) -> int:
    given = {"env_id": command.env_ids[-1], **arguments.explicit(command.settings, args)}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    device = checkpoints.pick_device(config, info)
    team.check(config, device)
    agent = checkpoints.new_agent(info, config, device)
    model = checkpoints.new_reward_model(info, config, device, 0)
    speeds: list[float] = []
    team.run(
        train_agent, agent, model.score, config, device, seed_path=(config.seed, 0),
        steps=command.iterations * config.num_envs * config.num_steps,
        report=lambda done, total, metrics: speeds.append(metrics["charts/SPS"]),
    )  # fmt: skip
    print(json.dumps({"speed": statistics.median(speeds[1:]), "num_envs": config.num_envs}))
    return 0


if __name__ == "__main__":
    main()
