"""How good an agent gets from how few labels: the real loop with the synthetic labeler, over several seeds.

    python scripts/bench/learning.py cartpole fall --jobs 2
    python scripts/bench/learning.py pendulum --seeds 1 2 3 --rounds 10 --pairs-per-round 10

Tasks are those of scripts/bench/tasks.py; any setting of `rlhf-gym run` can be given. Each task whose taste is the true
return is also trained by PPO on it, for as many agent steps: the ceiling (`--no-ceiling` leaves it out). Prints a
Markdown table for docs/benchmarks.md and a chart. With `--out FILE` each run is added to a file of JSON lines as it
ends, and what stands there already is not run again.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)  # Python has a module `profile`, too
from rich.console import Console

from rlhf_gym import arguments, catalog, checkpoints, envs, evaluate, labelers, loop, retrain, train
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.monitor import Monitor
from rlhf_gym.seeds import PHASE_SEED
from scripts.bench.tasks import TASKS, Task

EPISODES = 20
NAMES = {"return": "mean", "length": "mean_length"}  # of measures, in what `evaluate` gives


@dataclass(frozen=True)
class Learning:
    """How good an agent gets from how few labels."""

    tasks: tyro.conf.Positional[tuple[str, ...]]
    """Of scripts/bench/tasks.py; "all" for each of them."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """One session for each."""
    jobs: int = 1
    """Sessions at a time, each in a process of its own."""
    ceiling: bool = True
    """Also train on the true reward."""
    out: Path | None = None
    """File of JSON lines to add each run to."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    kind: str  # labels, or true: plain PPO on the true reward
    seed: int
    given: dict[str, Any]  # settings that differ from the presets

    def key(self) -> str:
        return json.dumps([self.task, self.kind, self.seed, self.given], sort_keys=True)


def measured(task: Task, agent: train.Agent, config: Config, info: envs.EnvInfo, number: int) -> dict[str, float]:
    """The agent over EPISODES whole episodes, by the task's measure."""
    if task.measured_in:
        config = replace(config, env_kwargs=config.env_kwargs | task.measured_in)
        info = envs.describe(config)
    score = labelers.load_score(f"scripts.bench.tasks:{task.measure}") if task.measure not in NAMES else None
    found = evaluate.evaluate(agent, config, info, number, EPISODES, score=score)
    value = found[NAMES.get(task.measure, "score_mean")]
    return {"value": value, "return": found["mean"], "length": found["mean_length"]}


def run(job: Job) -> dict[str, Any]:
    """One session from the first pair to the last, or one plain training. Runs in a process of its own."""
    task = TASKS[job.task]
    info = envs.describe(Config(**job.given))
    config = resolve({**job.given, "seed": job.seed}, info.kind)
    return {"key": job.key(), "task": job.task, "kind": job.kind, "seed": job.seed} | (
        run_session(task, config, info) if job.kind == "labels" else run_plain(task, config, info)
    )


def run_session(task: Task, config: Config, info: envs.EnvInfo) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "bench", config, info=info.as_json())
        began = time.monotonic()
        loop.run(session, config, info, Monitor(session, Console(file=io.StringIO())))
        seconds = time.monotonic() - began
        rounds, pairs = [], session.pairs()
        for number in session.trained_rounds():
            agent = checkpoints.Snapshot.load(session.checkpoint(number)).agent
            labels = sum(p.round <= number and p.choice is not None for p in pairs)
            rounds.append({"labels": labels, **measured(task, agent, config, info, number)})
        metrics: dict[str, list[float]] = {}
        for m in session.metrics():
            if m["name"].startswith("reward/") or m["name"] == "labels/consistency":
                metrics.setdefault(m["name"], []).append(m["value"])
        session.close()
    return {"seconds": seconds, "rounds": rounds, "metrics": metrics}


def run_plain(task: Task, config: Config, info: envs.EnvInfo) -> dict[str, Any]:
    """PPO on the true reward for as many steps as the session trains in all."""
    device = checkpoints.pick_device(config, info)
    agent = checkpoints.new_agent(info, config, device)
    began = time.monotonic()
    train.train_agent(
        agent, retrain.TrueReward(config), config, device, steps=config.rounds * config.agent_steps_per_round,
        seed_path=(config.seed, 0, PHASE_SEED["train_agent"]),
    )  # fmt: skip
    seconds = time.monotonic() - began
    return {"seconds": seconds, "rounds": [measured(task, agent, config, info, 0)]}


def run_all(jobs: list[Job], at_once: int, out: Path | None) -> list[dict[str, Any]]:
    known = {}
    if out is not None and out.exists():
        known = {r["key"]: r for r in map(json.loads, out.read_text().splitlines())}
    results = [known[job.key()] for job in jobs if job.key() in known]
    missing = [job for job in jobs if job.key() not in known]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    with concurrent.futures.ProcessPoolExecutor(
        at_once, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run, job) for job in missing]):
            result = done.result()
            results.append(result)
            values = [round(r["value"], 3) for r in result["rounds"]]
            name = f"{result['task']} {result['kind']} seed {result['seed']}"
            print(f"{name}: {values} in {result['seconds']:.0f} s", file=sys.stderr, flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return results


# ---------------------------------------------------------------------------------------------- what is printed


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def reached(task: Task, values: list[float]) -> str:
    middle = statistics.median(values)
    if task.at_least is not None:
        return f"{'yes' if middle >= task.at_least else 'no'}: {task.at_least:g} or more"
    if task.at_most is not None:
        return f"{'yes' if middle <= task.at_most else 'no'}: {task.at_most:g} or less"
    return ""


def report(name: str, results: list[dict[str, Any]]) -> Iterator[str]:
    """A task's table and chart."""
    task = TASKS[name]
    runs = sorted((r for r in results if r["task"] == name and r["kind"] == "labels"), key=lambda r: r["seed"])
    plain = [r["rounds"][-1]["value"] for r in results if r["task"] == name and r["kind"] == "true"]
    taste = task.taste.replace("_", " ") or "the true return"
    yield f"\n**{name}** ({task.env_id}; taste: {taste}; measured: {task.measure}), {len(runs)} seeds\n"
    yield "| labels | median (quartiles) | each seed | aim |\n|---:|---:|---|---|"
    medians = []
    for i, first in enumerate(runs[0]["rounds"]):
        values = [r["rounds"][i]["value"] for r in runs]
        medians.append(statistics.median(values))
        each = ", ".join(f"{v:.4g}" for v in values)
        yield f"| {first['labels']} | {spread(values)} | {each} | {reached(task, values)} |"
    if plain:
        yield f"| true reward | {spread(plain)} | {', '.join(f'{v:.4g}' for v in plain)} | {reached(task, plain)} |"
    yield f"\nMachine time of a session: {spread([r['seconds'] for r in runs])} s."
    labels = ", ".join(f'"{r["labels"]}"' for r in runs[0]["rounds"])
    yield f'\n```mermaid\nxychart-beta\n  title "{name}: {task.measure} against labels"\n  x-axis [{labels}]'
    yield f"  line [{', '.join(f'{m:.4g}' for m in medians)}]"
    if plain:
        yield f"  line [{', '.join([f'{statistics.median(plain):.4g}'] * len(medians))}]"
    yield "```"


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Learning, "scripts/bench/learning.py", "Return against labels.")
    names = list(TASKS) if command.tasks == ("all",) else list(command.tasks)
    for name in names:
        if name not in TASKS:
            raise UserError(f"There is no task {name!r}: give some of {', '.join(TASKS)}, or all.")
    explicit = arguments.explicit(command.settings, args)
    jobs = []
    for name in names:
        given = {"labeler": "synthetic", "mistake_rate": 0.1, **TASKS[name].given(), **explicit}
        if not given["rounds"]:
            raise UserError("--rounds 0 has no end: give the number of rounds, or leave it out.")
        kinds = ["labels", "true"] if command.ceiling and not TASKS[name].taste else ["labels"]
        jobs += [Job(name, kind, seed, given) for kind in kinds for seed in command.seeds]
    results = run_all(jobs, command.jobs, command.out)
    for name in names:
        print("\n".join(report(name, results)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"learning.py: {error}")
