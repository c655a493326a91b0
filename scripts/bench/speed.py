"""How fast rlhf-gym is, beside CleanRL and Stable-Baselines3.

    python scripts/bench/speed.py --only atari stepping --cleanrl CHECKOUT --peers-python PYTHON
    python scripts/bench/speed.py --only mujoco --steps 100000 --cleanrl CHECKOUT --peers-python PYTHON
    python scripts/bench/speed.py --only reward collect cli

* atari: PPO on Pong with CleanRL's settings, the reward ensemble scored. CleanRL calls its reward model at each step;
  Stable-Baselines3 has none. Steps/s without the first iteration.
* stepping: random actions in Pong, agent steps/s; CleanRL's make_env (gymnasium and the wrappers of Stable-Baselines3).
* cartpole: CartPole-v1 on the true reward until the mean of the last 100 episodes is 475.
* mujoco: Hopper-v5 and HalfCheetah-v5 on the true reward, and the true return after so many steps.
* returns: PPO on the true reward of five environments: the true return after so many steps, of 20 episodes on the
  likeliest actions and of the last 100 episodes of training. Stable-Baselines3 has the settings of its zoo.
* reward: an epoch of the reward ensemble on 500 pairs of Pong, in memory.
* collect: a batch of 50 pairs, clips drawn: of Pong out of 250, of Hopper.
* cli: whole commands.

Everything is measured in a fresh process. The sides of a comparison run in turn (A B C A B C), the n-th time with seed
n, and each ratio is of two runs that stood beside one another. A peer that is missing or fails is told and left out.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDES = Path(__file__).resolve().parent / "sides"
OURS, CLEANRL, SB3 = "rlhf-gym", "CleanRL", "Stable-Baselines3"
SOLVED = 475.0
DISCRETE = ("CartPole-v1", "LunarLander-v3")
RETURNS = {  # steps, and a module that the environment needs
    "CartPole-v1": (100_000, "gymnasium"), "Pendulum-v1": (200_000, "gymnasium"),
    "LunarLander-v3": (1_000_000, "Box2D"), "HalfCheetah-v5": (1_000_000, "mujoco"), "Hopper-v5": (1_000_000, "mujoco"),
}  # fmt: skip
MUJOCO_BATCH = 2048  # of CleanRL, Stable-Baselines3 and rlhf-gym: all train for whole batches
MORE_IS_FASTER = {
    "steps/s": True, "pairs/s": True, "steps": None, "true return": None, "last 100 episodes": None,
}  # fmt: skip  # else seconds; None: no speed

Run = dict[str, Any]  # what was measured: number; perhaps a note
Results = dict[str, dict[int, Run]]  # side -> seed -> run


@dataclass(frozen=True)
class Side:
    """Who takes part, and the name of its function under sides/ with the settings."""

    who: str
    function: str
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()  # modules of the peers' interpreter
    file: str = ""  # of CleanRL


@dataclass(frozen=True)
class Race:
    """One comparison."""

    what: str
    measures: tuple[str, ...]
    sides: list[Side]


class Failed(Exception):
    """A side ended with an error: its last words."""


# ---------------------------------------------------------------------------------------------- what is compared


def atari(args: argparse.Namespace) -> list[Race]:
    size = {"iterations": args.iterations, "num_steps": 8 if args.quick else 128, "device": args.device}
    sides = [
        Side(OURS, "atari", size),
        Side(CLEANRL, "cleanrl_atari", size, ("ale_py", "cv2"), "ppo_atari.py"),
        Side(SB3, "sb3_atari", size, ("ale_py", "cv2")),
    ]
    return [Race("Pong, PPO with reward model", ("steps/s",), sides)]


def stepping(args: argparse.Namespace) -> list[Race]:
    races = []
    for n in (8, 16):
        size = {"num_envs": n, "seconds": args.seconds}
        peer = Side(CLEANRL, "cleanrl_stepping", size, ("ale_py", "cv2"), "ppo_atari.py")
        races.append(Race(f"Pong, {n} environments", ("steps/s",), [Side(OURS, "stepping", size), peer]))
    return races


def cartpole(args: argparse.Namespace) -> list[Race]:
    ours = Side(OURS, "cartpole", {"steps": 2000 if args.quick else 300_000, "stop_at": SOLVED})
    peer = Side(CLEANRL, "cleanrl_cartpole", {"stop_at": SOLVED}, file="ppo.py")
    return [Race(f"CartPole-v1 to {SOLVED:g}", ("training, s", "whole process, s", "steps"), [ours, peer])]


def mujoco(args: argparse.Namespace) -> list[Race]:
    races = []
    for env_id in ("Hopper-v5", "HalfCheetah-v5"):
        size = {"env_id": env_id, "steps": math.ceil(args.steps / MUJOCO_BATCH) * MUJOCO_BATCH}
        sides = plain(size, "mujoco", zoo=False)
        races.append(Race(f"{env_id}, {size['steps']:,} steps", ("training, s", "steps/s", "true return"), sides))
    return races


def plain(size: dict[str, Any], needs: str, zoo: bool) -> list[Side]:
    """PPO on the true reward, each with its own settings; or, with `zoo`, those of Stable-Baselines3's zoo."""
    file = "ppo.py" if size["env_id"] in DISCRETE else "ppo_continuous_action.py"
    more = {**size, "episodes": 20}
    return [
        Side(OURS, "plain", size),
        Side(CLEANRL, "cleanrl_plain", more, (needs,), file),
        Side(SB3, "sb3_plain", {**more, "zoo": zoo}, (needs,)),
    ]


def returns(args: argparse.Namespace) -> list[Race]:
    races = []
    for env_id, (steps, needs) in RETURNS.items():
        if env_id not in (args.env_ids or RETURNS):
            continue
        size = {"env_id": env_id, "steps": min(steps, args.steps)}
        measures = ("true return", "last 100 episodes", "training, s")
        races.append(Race(f"{env_id}, {size['steps']:,} steps", measures, plain(size, needs, zoo=True)))
    return races


def reward(args: argparse.Namespace) -> list[Race]:
    pairs = 8 if args.quick else 500
    side = Side(OURS, "reward", {"pairs": pairs, "device": args.device})
    return [Race(f"reward model, {pairs} pairs", ("pairs/s", "epoch, s", "epoch and statistics, s"), [side])]


def collect(args: argparse.Namespace) -> list[Race]:
    pairs = 2 if args.quick else 50
    return [
        Race(
            f"{pairs} pairs of {env_id} out of {pairs * pool_factor:g}", ("seconds",),
            [Side(OURS, "collect", {"env_id": env_id, "pairs": pairs, "pool_factor": pool_factor})],
        )
        for env_id, pool_factor in (("ALE/Pong-v5", 5.0), ("Hopper-v5", 2.0))
    ]  # fmt: skip


def cli(args: argparse.Namespace) -> list[Race]:
    return [
        Race(f"`rlhf-gym {word}`", ("seconds",), [Side(OURS, "cli", {"words": [word]})]) for word in ("--help", "list")
    ]


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Race]]] = {
    made.__name__: made for made in (atari, stepping, cartpole, mujoco, returns, reward, collect, cli)
}

# ---------------------------------------------------------------------------------------------- who is there


@dataclass(frozen=True)
class Peers:
    """Where the peers are, and what their interpreter has."""

    cleanrl: Path | None
    python: str
    versions: dict[str, str]  # of the modules that are there; a module may have none


def find_peers(cleanrl: Path | None, python: Path | None) -> Peers:
    """Asks the interpreter what it has."""
    modules = ("torch", "gymnasium", "stable_baselines3", "tyro", "tensorboard", "ale_py", "cv2", "mujoco", "Box2D")
    code = (
        "import importlib.metadata as m, importlib.util as u, json, sys\n"
        "def version(name):\n"
        "    try: return m.version(name)\n"
        "    except m.PackageNotFoundError: return ''\n"
        "print(json.dumps({n: version(n) for n in sys.argv[1:] if u.find_spec(n)}))"
    )
    # not resolved: a virtual environment's interpreter is a link
    name = os.path.abspath(python) if python else sys.executable
    try:
        asked = subprocess.run([name, "-c", code, *modules], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"speed.py: {python} is no Python that runs ({error}): give --peers-python one that does.")
    return Peers(cleanrl.resolve() if cleanrl else None, name, json.loads(asked.stdout))


def missing(side: Side, peers: Peers) -> str:
    """Why a side cannot take part, and what to do; empty if it can."""
    if side.who == OURS:
        return ""
    needs = ("torch", "gymnasium", *side.needs)
    if side.who == CLEANRL:
        if peers.cleanrl is None:
            return f"{CLEANRL} is left out: give --cleanrl a checkout of vwxyzjn/cleanrl."
        if not (file := peers.cleanrl / "cleanrl" / side.file).is_file():
            return f"{CLEANRL} is left out: there is no {file}; give --cleanrl a checkout of vwxyzjn/cleanrl."
        needs += ("tyro", "tensorboard")
    else:
        needs += ("stable_baselines3",)
    if lacking := [name for name in needs if name not in peers.versions]:
        found = f"{peers.python} has no {' and no '.join(lacking)}"
        return f"{side.who} is left out: {found}; give --peers-python an interpreter that has."
    return ""


def provenance(peers: Peers) -> str:
    """Versions of what the peers ran with."""
    named = [f"{m} {v}" for m, v in peers.versions.items() if m in ("torch", "gymnasium", "stable_baselines3")]
    if peers.cleanrl is not None:
        command = ["git", f"--git-dir={peers.cleanrl / '.git'}", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True)
        named += [f"CleanRL {done.stdout.strip()}"] if done.returncode == 0 else []
    return ", ".join(named)


# ---------------------------------------------------------------------------------------------- the runs


def run_side(side: Side, seed: int, peers: Peers, threads: int, directory: Path) -> Run:
    """One run in a process of its own.

    Raises:
        Failed: it ended with an error.
    """
    ours = side.who == OURS
    python, script = (sys.executable, "ours.py") if ours else (peers.python, "peers.py")
    settings = {**side.settings, "seed": seed} | ({"cleanrl": str(peers.cleanrl)} if side.who == CLEANRL else {})
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if side.who == CLEANRL:
        environment["PYTHONPATH"] = str(peers.cleanrl)  # where its cleanrl_utils are
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [python, str(SIDES / script), side.function, json.dumps(settings)]
    began = time.perf_counter()
    status, out, errors = alone(command, environment, directory)
    seconds = time.perf_counter() - began
    if status:
        raise Failed((errors.strip().splitlines() or [f"exit status {status}"])[-1])
    return {"whole process, s": seconds, **json.loads(out.strip().splitlines()[-1])}


def alone(command: list[str], environment: dict[str, str], directory: Path) -> tuple[int, str, str]:
    """Exit status, output and errors. Where we are ended meanwhile, it is, with all that it started."""
    pipe = subprocess.PIPE
    running = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=directory, start_new_session=True
    )
    try:
        out, errors = running.communicate()
    except BaseException:
        if hasattr(os, "killpg"):
            os.killpg(running.pid, signal.SIGKILL)
        running.kill()
        running.wait()
        raise
    return running.returncode, out, errors


def run_race(race: Race, times: int, run: Callable[[Side, int], Run]) -> Results:
    """All sides in turn, again and again. A peer that fails is told and left out from there on."""
    results: Results = {side.who: {} for side in race.sides}
    racing = list(race.sides)
    for seed in range(1, times + 1):
        for side in list(racing):
            try:
                found = results[side.who][seed] = run(side, seed)
            except Failed as error:
                if side.who == OURS:
                    raise
                say(f"{side.who} is left out of {race.what}: it failed ({error}).")
                racing.remove(side)
                continue
            told = ", ".join(f"{m} {figure(found[m])}" for m in race.measures)
            say(f"{race.what} | {side.who} | {seed} of {times} | {told}")
    return results


def load() -> str:
    """Of the last minute; a peer with several threads suffers more from a busy machine than one with a single one."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------- the table


def figure(value: float) -> str:
    """Three digits or more: 1,234, 12.3, 1.23, 0.123."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def spread(values: Sequence[float]) -> str:
    return f"{figure(min(values))} to {figure(max(values))}"


def ratios(measure: str, ours: dict[int, Run], peer: dict[int, Run]) -> list[float]:
    """How many times as fast ours was, run beside run; none where the measure is not of speed."""
    more = MORE_IS_FASTER.get(measure, False)
    if more is None:
        return []
    pairs = [(ours[seed][measure], peer[seed][measure]) for seed in peer]
    return [a / b if more else b / a for a, b in pairs]


def rows(race: Race, results: Results) -> list[str]:
    lines = []
    for measure in race.measures:
        for who, runs in results.items():
            if values := [run[measure] for run in runs.values()]:
                faster = ratios(measure, results[OURS], runs) if who != OURS else []
                beside = f"{figure(statistics.median(faster))} ({spread(faster)})" if faster else ""
                middle = f"{len(values)} | {figure(statistics.median(values))} | {spread(values)}"
                lines.append(f"| {race.what}: {measure} | {who} | {middle} | {beside} |")
    return lines


def notes(race: Race, results: Results) -> list[str]:
    return [
        f"{race.what}, {who}, seed {seed}: {run['note']}."
        for who, runs in results.items()
        for seed, run in runs.items()
        if "note" in run
    ]


# ---------------------------------------------------------------------------------------------- the command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="default: all of them")
    parser.add_argument("--times", type=int, default=3, help="each side runs (default 3)")
    parser.add_argument("--cleanrl", type=Path, help="a checkout of vwxyzjn/cleanrl")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with stable-baselines3 and CleanRL's needs")
    parser.add_argument("--threads", type=int, default=0, help="of all sides alike (default: what each takes itself)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="of all sides, for atari and reward")
    parser.add_argument("--iterations", type=int, default=6, help="of atari; the first does not count (default 6)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of stepping (default 5)")
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="of mujoco, and the most of returns (default 1,000,000)"
    )
    parser.add_argument("--env-ids", nargs="+", choices=RETURNS, help="of returns (default: all of them)")
    parser.add_argument("--quick", action="store_true", help="rlhf-gym alone, everything as short as can be")
    args = parser.parse_args(argv)
    if args.quick:
        args.times, args.iterations, args.seconds, args.steps = 1, 2, 0.2, MUJOCO_BATCH
    for name, least in (("times", 1), ("threads", 0), ("iterations", 2), ("seconds", 0.01), ("steps", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)} is too few: give {least} or more.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    races = [race for name in args.only for race in BENCHMARKS[name](args)]
    if args.quick:
        races = [Race(r.what, r.measures, [s for s in r.sides if s.who == OURS]) for r in races]
    peers = Peers(None, "", {}) if args.quick else find_peers(args.cleanrl, args.peers_python)
    why = {(race.what, side.who): missing(side, peers) for race in races for side in race.sides}
    for sentence in dict.fromkeys(filter(None, why.values())):
        say(sentence)
    races = [Race(r.what, r.measures, [s for s in r.sides if not why[r.what, s.who]]) for r in races]
    lines, told, before = [], [], load()
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-speed-") as directory:
        run = partial(run_side, peers=peers, threads=args.threads, directory=Path(directory))
        for race in races:
            try:
                results = run_race(race, args.times, run)
            except Failed as error:
                sys.exit(f"speed.py: {race.what} failed: {error}")
            lines += rows(race, results)
            told += notes(race, results)
    busy = f"load {before} before, {load()} after, on {os.cpu_count()} cores"
    beside = f"beside {provenance(peers)}" if any(len(r.sides) > 1 for r in races) else ""
    print(", ".join(filter(None, [busy, beside])), end="\n\n")
    print("| what | who | times | median | min to max | ours is so many times as fast |\n|---|---|---:|---:|---:|---:|")
    print("\n".join(lines))
    if told:
        print("\n" + "\n".join(f"- {note}" for note in told))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run at hand is ended, too
    sys.exit(main())
