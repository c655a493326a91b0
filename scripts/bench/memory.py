"""How much memory collecting takes, and whether a session that runs for long keeps within its bounds.

    python scripts/bench/memory.py collect --pairs 500     # pairs of Pong, chosen from twice as many clips
    python scripts/bench/memory.py soak --rounds 50        # many rounds of a tiny CartPole session

`collect` samples the process's resident memory 20 times a second while one batch is collected and drawn, after a first
batch of two pairs, which loads what is needed. `soak` runs the whole loop with the synthetic labeler and looks at
resident memory and open files after every round: the slope of a line through the second half says what a round adds.
Both print a Markdown table. Linux only (they read /proc).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too

from rich.console import Console

from rlhf_gym import catalog, checkpoints, collect, envs, loop, store
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, resolve
from rlhf_gym.monitor import Monitor

TINY = dict(
    labeler="synthetic", pairs_per_round=6, clip_seconds=0.4, num_envs=2, num_steps=16, agent_steps_per_round=128,
    num_minibatches=2, update_epochs=1, checkpoint_iterations=2, reward_steps=50, reward_epochs=50, reward_hidden=8,
    hidden_size=8, eval_episodes=2, render=True,
)  # fmt: skip


def resident() -> float:
    """MB of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def highest() -> Iterator[list[float]]:
    """Watches the memory meanwhile; afterwards the list holds the most that it was."""
    most, over = [resident()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def measure_collect(pairs: int, env_id: str) -> float:
    """MB above the idle process while so many pairs are collected."""
    config = Config(env_id=env_id)
    info = envs.describe(config)
    with tempfile.TemporaryDirectory() as directory:
        values: dict[int, tuple[float, float, float]] = {}
        for n in (2, pairs):
            config = resolve({"env_id": env_id, "pairs_per_round": n}, info.kind)
            device = checkpoints.pick_device(config, info)
            session = catalog.create_session(Path(directory), f"memory-{n}", config)
            model = checkpoints.new_reward_model(info, config, device, 0)
            snapshot = Snapshot(checkpoints.new_agent(info, config, device), model, config, info, 0)
            idle, began = resident(), time.monotonic()
            with highest() as most:
                collect.collect(session, snapshot, config, info, 1, 0, lambda done, total: None)
            values[n] = idle, most[0], time.monotonic() - began
            session.close()
    idle, most_mb, seconds = values[pairs]
    print(f"| {pairs} pairs of {env_id} | |\n|---|---:|")
    for what, value in (("idle", idle), ("most while collecting", most_mb), ("above idle", most_mb - idle)):
        print(f"| {what} | {value:.0f} MB |")
    print(f"| took | {seconds:.0f} s |")
    return most_mb - idle


def measure_soak(rounds: int) -> tuple[float, float]:
    """What a round adds: KB of memory, and open files."""
    config = resolve({"env_id": "CartPole-v1", "rounds": rounds, **TINY}, "classic")
    info = envs.describe(config)
    rows: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "soak", config)
        real = loop.PHASES["collect"]

        def counted(running: loop.Loop, where: store.Where) -> None:
            rows.append((resident(), open_files()))
            real(running, where)

        loop.PHASES["collect"] = counted
        loop.run(session, config, info, Monitor(session, Console(quiet=True)))
        loop.PHASES["collect"] = real
        rows.append((resident(), open_files()))
        session.close()
    half = rows[len(rows) // 2 :]
    memory, files = (float(np.polyfit(range(len(half)), column, 1)[0]) for column in zip(*half, strict=True))
    print("| after round | memory | open files |\n|---:|---:|---:|")
    for n in sorted({0, len(rows) // 4, len(rows) // 2, 3 * len(rows) // 4, len(rows) - 1}):
        print(f"| {n} | {rows[n][0]:.1f} MB | {rows[n][1]} |")
    print(f"\nIn the second half a round adds {memory * 1e3:.0f} KB and {files:.3f} open files.")
    return memory * 1e3, files


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("collect")
    one.add_argument("--pairs", type=int, default=500)
    one.add_argument("--env-id", default="ALE/Pong-v5")
    two = kinds.add_parser("soak")
    two.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    if args.kind == "collect":
        sys.exit(measure_collect(args.pairs, args.env_id) > 1024 * 1.048576)
    memory, files = measure_soak(args.rounds)
    sys.exit(memory > 100 or files > 0.05)


if __name__ == "__main__":
    main()
