"""How good an agent gets from how few labels: the real loop with the synthetic labeler, over several seeds.

    python scripts/bench/learning.py --env-id CartPole-v1 --rounds 3 --mistake-rate 0.1
    python scripts/bench/learning.py --env-id Pendulum-v1 --rounds 5 --seeds 1 2 3 4 5

Prints a Markdown table for docs/benchmarks.md: true return after each round (median and every seed), labels given,
and machine time in all. Any setting of `rlhf-gym run` can be given.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too
from rich.console import Console

from rlhf_gym import arguments, catalog, cli, envs, loop
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.monitor import Monitor


@dataclass(frozen=True)
class Benchmark:
    """True return against labels, over several seeds."""

    env_id: str
    """Gymnasium id."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """One session for each."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def run_one(config: Config, info: envs.EnvInfo) -> tuple[list[int], list[float], float]:
    """One session from the first pair to the last. Returns labels, true returns by round, and seconds."""
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "bench", config, info=cli.as_json(info))
        began = time.monotonic()
        loop.run(session, config, info, Monitor(session, Console(file=io.StringIO())))
        seconds = time.monotonic() - began
        returns = session.true_returns()
        labels = [sum(p.round <= r and p.choice is not None for p in session.pairs()) for r in sorted(returns)]
        session.close()
    return labels, [returns[r] for r in sorted(returns)], seconds


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Benchmark, "scripts/bench/learning.py", "True return against labels.")
    given = {"env_id": command.env_id, "labeler": "synthetic", **arguments.explicit(command.settings, args)}
    if not given.get("rounds"):
        raise UserError("Give --rounds: a benchmark ends.")
    info = envs.describe(Config(**given))
    results = []
    for seed in command.seeds:
        results.append(run_one(resolve({**given, "seed": seed}, info.kind), info))
        print(f"seed {seed}: {[round(x, 1) for x in results[-1][1]]} in {results[-1][2]:.0f} s", file=sys.stderr)
    print("| labels | median true return | each seed |\n|---|---|---|")
    for labels, *returns in zip(results[0][0], *(r[1] for r in results), strict=True):
        each = ", ".join(f"{x:.4g}" for x in returns)
        print(f"| {labels} | {statistics.median(returns):.4g} | {each} |")
    seconds = [r[2] for r in results]
    print(f"\nMachine time: median {statistics.median(seconds):.0f} s ({min(seconds):.0f} to {max(seconds):.0f}).")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"learning.py: {error}")
