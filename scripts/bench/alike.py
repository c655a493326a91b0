"""Whether the fast path learns as the plain one does: curves of both on the true reward, over several seeds.

    python scripts/bench/alike.py --env-id CartPole-v1 --steps 60000
    python scripts/bench/alike.py --env-id Hopper-v5 --steps 1000000 --seeds 1 2 3 4 5
    python scripts/bench/alike.py --env-id rlhf_gym/Dot-v0 --steps 50000 --bfloat16

Runs of the same seed take turns. Prints a Markdown table for docs/benchmarks.md: the mean true return of the last 100
episodes at ten points of the training, mean and spread over the seeds, and a curve of it. Any setting can be given.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too

from rlhf_gym import arguments, checkpoints, envs, fast
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.retrain import TrueReward
from rlhf_gym.train import train_agent

POINTS = 10


@dataclass(frozen=True)
class Alike:
    """Learning curves with and without the fast path."""

    env_id: str
    """Gymnasium id."""
    steps: int = 100_000
    """Agent steps of each run."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """One run of each kind for each."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def curve(config: Config, info: envs.EnvInfo, steps: int) -> tuple[list[float], float]:
    """The mean true return at POINTS points of a training, and its seconds."""
    device = checkpoints.pick_device(config, info)
    agent = checkpoints.new_agent(info, config, device)
    found: list[float] = []

    def report(done: int, total: int, metrics: dict[str, float]) -> None:
        while len(found) < POINTS and done >= total * (len(found) + 1) / POINTS:
            found.append(metrics.get("charts/true_return", float("nan")))

    began = time.monotonic()
    train_agent(agent, TrueReward(config), config, device, steps=steps, seed_path=(config.seed, 0, 2), report=report)
    return found, time.monotonic() - began


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Alike, "scripts/bench/alike.py", "Learning curves with and without --fast.")
    given = {"env_id": command.env_id, **arguments.explicit(command.settings, args)}
    info = envs.describe(Config(**given))
    curves: dict[bool, list[list[float]]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    native, asked = fast.native_bfloat16, bool(given.get("bfloat16"))
    for seed in command.seeds:
        for quick in (True, False):
            if asked:  # emulated where it must be, and slow
                fast.native_bfloat16 = (lambda device: True) if quick else native
            points, took = curve(resolve({**given, "seed": seed, "fast": quick}, info.kind), info, command.steps)
            curves[quick].append(points)
            seconds[quick].append(took)
            name = "fast" if quick else "plain"
            print(f"seed {seed} {name}: {[round(p, 1) for p in points]} in {took:.0f} s", file=sys.stderr, flush=True)
    config = resolve(given, info.kind)
    device = checkpoints.pick_device(config, info)
    narrow = info.image and config.bfloat16 and (asked or native(device))
    number = f"{'bfloat16' if narrow else 'float32'}, {torch.get_num_threads()} threads"
    print(f"{command.env_id}, {len(command.seeds)} seeds, {command.steps:,} agent steps on {device} ({number})\n")
    print("| steps | fast, mean ± standard deviation | plain, mean ± standard deviation |\n|---:|---:|---:|")
    means: dict[bool, list[float]] = {True: [], False: []}
    for i in range(POINTS):
        cells = []
        for quick in (True, False):
            values = [points[i] for points in curves[quick]]
            means[quick].append(statistics.mean(values))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{means[quick][-1]:.4g} ± {spread:.2g}")
        print(f"| {command.steps * (i + 1) // POINTS:,} | {cells[0]} | {cells[1]} |")
    ratios = [plain / quick for plain, quick in zip(seconds[False], seconds[True], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"\nPlain took {statistics.median(ratios):.2f} times as long as fast in the median of the seeds ({spread}).")
    print(plot(command, means))


def plot(command: Alike, means: dict[bool, list[float]]) -> str:
    """A chart that GitHub draws: the first line is fast, the second plain."""
    steps = ", ".join(f'"{command.steps * (i + 1) // POINTS // 1000}k"' for i in range(POINTS))
    lines = [f"  line [{', '.join(f'{m:.4g}' for m in means[quick])}]" for quick in (True, False)]
    head = ["```mermaid", "xychart-beta", f'  title "{command.env_id}: true return, fast and plain"']
    return "\n".join(["", *head, f"  x-axis [{steps}]", *lines, "```"])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"alike.py: {error}")
