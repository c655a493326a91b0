"""How the cost of each phase grows: with labels, agent steps, environments, and the length of clips.

    python scripts/bench/growth.py --env-id CartPole-v1
    python scripts/bench/growth.py --env-id ALE/Pong-v5 --labels 50 500 5000 --agent-steps 2048 4096

Prints Markdown tables and charts for docs/benchmarks.md. Labels are the true return of real clips; where more clips are
wanted than are collected, the same are used again under other names, which costs the same. Any setting can be given.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too

from rlhf_gym import arguments, catalog, checkpoints, collect, envs
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.labels import Labels
from rlhf_gym.segments import Segment
from rlhf_gym.store import Pair
from rlhf_gym.train import train_agent, train_reward


@dataclass(frozen=True)
class Growth:
    """Seconds of each phase against what makes it longer."""

    env_id: str = "CartPole-v1"
    """Gymnasium id."""
    labels: tuple[int, ...] = (50, 200, 1000, 5000)
    """Numbers of labels the reward model is trained on."""
    gradient_steps: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    """Gradient steps of the reward model, at the largest number of labels but one: what more of them give."""
    agent_steps: tuple[int, ...] = (10_000, 20_000, 40_000)
    """Steps an agent is trained for."""
    environments: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Environments side by side."""
    seconds: tuple[float, ...] = (0.85, 1.7, 3.4, 6.8)
    """Lengths of clips."""
    clips: int = 600
    """Clips collected at most."""
    times: int = 3
    """How often each is measured; the median counts."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


class Bench:
    def __init__(self, command: Growth, given: dict[str, object]) -> None:
        self.command = command
        self.given = {"env_id": command.env_id, **given}
        self.info = envs.describe(Config(**self.given))
        self.config = resolve(self.given, self.info.kind)
        self.device = checkpoints.pick_device(self.config, self.info)

    def snapshot(self, config: Config) -> Snapshot:
        return Snapshot(checkpoints.new_agent(self.info, config, self.device), None, config, self.info, 0)

    def segments(self, config: Config, count: int) -> list[Segment]:
        steps = collect.clip_steps(config, self.info)
        found = collect.gather(self.snapshot(config), config, self.info, count, steps, (1, 2), lambda n, of: None)
        return [c.segment for c in found]

    def made_labels(self, segments: Sequence[Segment], count: int) -> Labels:
        """`count` pairs of clips, labeled by true return."""
        clips = dict(enumerate(itertools.islice(itertools.cycle(segments), 2 * count)))
        clips = {i: dataclasses.replace(s, observations=s.observations.copy()) for i, s in clips.items()}
        rng = np.random.default_rng(0)
        order = rng.permutation(2 * count)
        pairs = []
        for n, (left, right) in enumerate(zip(order[::2], order[1::2], strict=True)):
            a, b = (float(clips[int(i)].rewards.sum()) for i in (left, right))
            choice = "equal" if a == b else "left" if a > b else "right"
            more = dict(attempt=0, position=n, kind="uniform", repeat_of=None, p_left=None, disagreement=None)
            pairs.append(Pair(id=n, round=0, left_clip=int(left), right_clip=int(right), choice=choice, **more))
        agent = self.snapshot(self.config).agent
        return Labels(pairs, clips, agent.from_env, 1, self.config.ensemble_size)

    def fit(self, config: Config, labels: Labels) -> tuple[float, dict[str, float]]:
        model = checkpoints.new_reward_model(self.info, config, self.device, 0)
        began = time.perf_counter()
        metrics = train_reward(model, labels, config, self.device)
        return time.perf_counter() - began, metrics

    def agent_seconds(self, config: Config, steps: int) -> float:
        agent = checkpoints.new_agent(self.info, config, self.device)
        model = checkpoints.new_reward_model(self.info, config, self.device, 0)
        began = time.perf_counter()
        train_agent(agent, model.score, config, self.device, steps=steps, seed_path=(1, 0, 2))
        return time.perf_counter() - began

    def collect_seconds(self, config: Config) -> float:
        with tempfile.TemporaryDirectory() as directory:
            session = catalog.create_session(Path(directory), "growth", config, info=self.info.as_json())
            began = time.perf_counter()
            collect.collect(session, self.snapshot(config), config, self.info, 0, 0, lambda n, of: None)
            seconds = time.perf_counter() - began
            session.close()
        return seconds


def median(measure: Callable[[], float], times: int) -> float:
    return statistics.median(measure() for _ in range(times))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---:|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(f'{x:,.3g}' if isinstance(x, float) else f'{x:,}' for x in row)} |", flush=True)


def chart(title: str, x: Sequence[object], y: Sequence[float], name: str) -> None:
    marks = ", ".join(f'"{v:,}"' for v in x)
    values = ", ".join(f"{v:.4g}" for v in y)
    print(
        f'\n```mermaid\nxychart-beta\n  title "{title}"\n  x-axis [{marks}]\n  y-axis "{name}" 0 --> {1.1 * max(y):.3g}'
    )
    print(f"  bar [{values}]\n```", flush=True)


def run(bench: Bench) -> None:
    command, config, times = bench.command, bench.config, bench.command.times
    print(f"{config.env_id} on {bench.device}, {torch.get_num_threads()} threads, median of {times}", flush=True)

    segments = bench.segments(config, min(command.clips, 2 * max(command.labels)))
    sets = {n: bench.made_labels(segments, n) for n in command.labels}
    fits = {n: [bench.fit(config, labels) for _ in range(times)] for n, labels in sets.items()}
    took = [statistics.median(s for s, _ in f) for f in fits.values()]
    table(("labels", "train_reward, s", "held-out accuracy"),
          [(n, s, fits[n][0][1].get("reward/held_out_accuracy", float("nan")))
           for n, s in zip(command.labels, took, strict=True)])  # fmt: skip
    chart("train_reward against labels", command.labels, took, "seconds")

    count = command.labels[-2] if len(command.labels) > 1 else command.labels[0]
    rows = []
    for steps in command.gradient_steps:
        longer = dataclasses.replace(config, reward_steps=steps, reward_epochs=10**6)
        seconds, m = bench.fit(longer, sets[count])
        rows.append((steps, seconds, m["reward/loss"], m["reward/held_out_loss"], m["reward/held_out_accuracy"]))
    table((f"gradient steps, {count:,} labels", "s", "loss", "held-out loss", "held-out accuracy"), rows)

    took = [median(lambda n=n: bench.agent_seconds(config, n), times) for n in command.agent_steps]
    table(("agent steps", "train_agent, s"), list(zip(command.agent_steps, took, strict=True)))
    chart("train_agent against agent steps", command.agent_steps, took, "seconds")

    rates = []
    for n in command.environments:
        wide = resolve({**bench.given, "num_envs": n, "num_steps": max(2, 1024 // n)}, bench.info.kind)
        rates.append(
            command.agent_steps[0] / median(lambda c=wide: bench.agent_seconds(c, command.agent_steps[0]), times)
        )
    table(("environments, 1,024 steps a rollout", "steps/s"), list(zip(command.environments, rates, strict=True)))
    chart("steps/s against environments", command.environments, rates, "steps/s")

    rows, longest = [], []
    for seconds in command.seconds:
        longer = resolve({**bench.given, "clip_seconds": seconds}, bench.info.kind)
        labels = bench.made_labels(bench.segments(longer, 100), 50)
        collecting = median(lambda c=longer: bench.collect_seconds(c), times)
        longest.append(collecting)
        rows.append((seconds, collecting, median(lambda c=longer, x=labels: bench.fit(c, x)[0], times)))
    table(("seconds of a clip", f"collect, {config.pairs_per_round} pairs, s", "train_reward, 50 labels, s"), rows)
    chart("collect against the length of clips", command.seconds, longest, "seconds")


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Growth, "scripts/bench/growth.py", "How the cost of each phase grows.")
    run(Bench(command, arguments.explicit(command.settings, args)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"growth.py: {error}")
