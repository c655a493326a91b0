"""rlhf-gym's side of scripts/bench/speed.py, run in a process of its own.

    python scripts/bench/sides/ours.py NAME '{"seed": 1, ...}'

The last line printed is a JSON object: what was measured, and perhaps a `note`. Where a command is measured, it is run
in one more process, and torch is not even loaded here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

CLIP_STEPS = 25  # of the reward model's clips
LONG = {"LunarLander-v3": ("--gamma", "0.999", "--gae-lambda", "0.98")}  # the true reward pays for a landing far ahead

# ---------------------------------------------------------------------------------------------- commands


def run_program(module: str, *words: str) -> tuple[str, float]:
    """What `python -m MODULE WORDS` printed, and the seconds that the whole process took."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"python -m {module} {' '.join(words)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout, seconds


def number(text: str) -> float:
    return float(text.replace(",", ""))


def read_training(printed: str) -> dict[str, float]:
    """What `python -m rlhf_gym.train --reward env` says at its end, and on the last line of its progress."""
    trained = re.search(r"^trained ([\d,]+) steps in ([\d.,]+) s", printed, re.M)
    returned = re.search(r"^true return (\S+) ±", printed, re.M)
    wanted = re.findall(r"^train_agent [\d,]+/([\d,]+)", printed, re.M)
    lately = re.findall(r"^train_agent .*\| true (\S+)", printed, re.M)
    if not (trained and returned and wanted):
        sys.exit(f"python -m rlhf_gym.train no longer says what this script reads: {printed[-2000:]}")
    values = {"steps": trained[1], "training, s": trained[2], "true return": returned[1], "wanted": wanted[-1]}
    return {k: number(v) for k, v in values.items()} | {"lately": number(lately[-1]) if lately else float("nan")}


def cartpole(seed: int, steps: int, stop_at: float) -> dict[str, Any]:
    """Plain PPO until the agent is good enough. The whole process evaluates it over 20 episodes, too."""
    words = ["--env-id", "CartPole-v1", "--reward", "env", "--steps", str(steps), "--stop-at", str(stop_at)]
    printed, seconds = run_program("rlhf_gym.train", *words, "--seed", str(seed))
    said = read_training(printed)
    result: dict[str, Any] = {k: said[k] for k in ("training, s", "steps")} | {"whole process, s": seconds}
    if said["steps"] >= said["wanted"] and not said["lately"] >= stop_at:
        result["note"] = f"not reached, {said['lately']:.0f} at the end"
    return result


def plain(seed: int, env_id: str, steps: int) -> dict[str, Any]:
    """Plain PPO; the program evaluates the agent over 20 episodes."""
    words = ["--env-id", env_id, "--reward", "env", "--steps", str(steps), "--seed", str(seed), *LONG.get(env_id, ())]
    said = read_training(run_program("rlhf_gym.train", *words)[0])
    return {**said, "steps/s": said["steps"] / said["training, s"], "last 100 episodes": said["lately"]}


def cli(seed: int, words: list[str]) -> dict[str, Any]:
    """One command of rlhf-gym, where there are three sessions."""
    from rlhf_gym import catalog
    from rlhf_gym.config import Config

    with tempfile.TemporaryDirectory() as directory:
        for n in range(3):
            catalog.create_session(Path(directory), f"speed-{n}", Config(env_id="CartPole-v1")).close()
        where = ["--data-dir", directory] if words == ["list"] else []
        return {"seconds": run_program("rlhf_gym", *words, *where)[1]}


# ---------------------------------------------------------------------------------------------- parts


def atari(seed: int, iterations: int, num_steps: int, device: str) -> dict[str, Any]:
    """PPO on Pong with the reward ensemble scored; the first iteration does not count."""
    from rlhf_gym import checkpoints, envs
    from rlhf_gym.config import Config, resolve
    from rlhf_gym.train import train_agent

    cleanrl: dict[str, Any] = dict(num_envs=8, num_steps=num_steps, num_minibatches=4, update_epochs=4, ensemble_size=3)
    cleanrl |= dict(learning_rate=2.5e-4, anneal_lr=True, clip_coef=0.1, target_kl=0, reward_sees_action=True)  # theirs
    given: dict[str, Any] = {"env_id": "ALE/Pong-v5", "seed": seed, "device": device, **cleanrl}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    where = checkpoints.pick_device(config, info)
    agent = checkpoints.new_agent(info, config, where)
    model = checkpoints.new_reward_model(info, config, where, 0)
    times: list[float] = []

    def report(done: int, total: int, metrics: dict[str, float]) -> None:
        times.append(time.perf_counter())

    per_iteration = config.num_envs * config.num_steps
    train_agent(
        agent, model.score, config, where, steps=iterations * per_iteration, seed_path=(seed, 0),
        report=report,
    )  # fmt: skip
    return {"steps/s": (len(times) - 1) * per_iteration / (times[-1] - times[0])}


def stepping(seed: int, num_envs: int, seconds: float) -> dict[str, Any]:
    """Random actions in Pong."""
    from rlhf_gym.config import resolve
    from rlhf_gym.envs import Envs

    vec = Envs(resolve({"env_id": "ALE/Pong-v5", "num_envs": num_envs}, "atari"), num_envs, (seed, 0))
    vec.reset()
    rng, count = np.random.default_rng(seed), int(vec.info.num_actions or 0)
    for _ in range(20):
        vec.step(rng.integers(0, count, num_envs))
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        vec.step(rng.integers(0, count, num_envs))
        steps += num_envs
    vec.close()
    return {"steps/s": steps / passed}


def random_clips(config: Any, count: int) -> dict[int, Any]:
    """Segments of CLIP_STEPS steps of random play, by a number; episodes that end in one are left out."""
    from rlhf_gym.envs import Envs
    from rlhf_gym.segments import Segment, stack

    vec, rng = Envs(config, config.num_envs, (config.seed, 0)), np.random.default_rng(config.seed)
    obs, found = vec.reset(), list[Segment]()
    while len(found) < count:
        seen, acted, ended = [], [], np.zeros(config.num_envs, bool)
        for _ in range(CLIP_STEPS):
            actions = rng.integers(0, int(vec.info.num_actions or 0), config.num_envs)
            seen.append(obs)
            acted.append(actions)
            step = vec.step(actions)
            obs, ended = step.obs, ended | step.terminated | step.truncated
        empty = np.zeros(CLIP_STEPS, np.float32), np.zeros(CLIP_STEPS, bool)
        for i in np.flatnonzero(~ended):
            found.append(Segment(stack([o[i] for o in seen]), np.array([a[i] for a in acted]), *empty, {}))
    vec.close()
    return dict(enumerate(found[:count]))


def reward(seed: int, pairs: int, device: str) -> dict[str, Any]:
    """One epoch of the reward ensemble's gradient steps, the labels being in memory."""
    from rlhf_gym import checkpoints, envs
    from rlhf_gym.config import Config, resolve
    from rlhf_gym.labels import Labels
    from rlhf_gym.store import Pair
    from rlhf_gym.train import train_reward

    given: dict[str, Any] = {
        "env_id": "ALE/Pong-v5",
        "seed": seed,
        "device": device,
        "ensemble_size": 3,
        "reward_batch_pairs": 32,
    }
    info = envs.describe(Config(**given))
    one_epoch: dict[str, Any] = {"reward_epochs": 1, "reward_steps": 10**6, "reward_clip_steps": 0}
    config = resolve({**given, **one_epoch}, info.kind)
    where = checkpoints.pick_device(config, info)
    same: dict[str, Any] = dict(round=0, attempt=0, kind="uniform", repeat_of=None, p_left=None, disagreement=None)
    rows = [
        Pair(id=n, position=n, left_clip=2 * n, right_clip=2 * n + 1, choice=("left", "right")[n % 2], **same)
        for n in range(pairs)
    ]
    segments = random_clips(config, 2 * pairs)
    labels = Labels(rows, segments, lambda actions: actions, seed, config.ensemble_size)
    del segments
    model = checkpoints.new_reward_model(info, config, where, 0)
    last = 0.0

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal last
        last = time.perf_counter()

    began = time.perf_counter()
    train_reward(model, labels, config, where, report=report)
    whole = time.perf_counter() - began
    return {"pairs/s": pairs / (last - began), "epoch, s": last - began, "epoch and statistics, s": whole}


def collect(seed: int, env_id: str, pairs: int, pool_factor: float) -> dict[str, Any]:
    """Collects a batch of pairs and draws its clips."""
    from rlhf_gym import catalog, checkpoints, envs
    from rlhf_gym.checkpoints import Snapshot
    from rlhf_gym.collect import collect as collect_pairs
    from rlhf_gym.config import Config, resolve

    given: dict[str, Any] = {"env_id": env_id, "seed": seed, "pairs_per_round": pairs, "pool_factor": pool_factor}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    where = checkpoints.pick_device(config, info)
    model = checkpoints.new_reward_model(info, config, where, 0)
    snapshot = Snapshot(checkpoints.new_agent(info, config, where), model, config, info, 0)
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "speed", config)
        began = time.perf_counter()
        collect_pairs(session, snapshot, config, info, 1, 0, lambda done, total: None)
        seconds = time.perf_counter() - began
        made = len(session.pairs(1))
        session.close()
    assert made == pairs, (made, pairs)
    return {"seconds": seconds}


SIDES = {side.__name__: side for side in (cartpole, plain, cli, atari, stepping, reward, collect)}

if __name__ == "__main__":
    print(json.dumps(SIDES[sys.argv[1]](**json.loads(sys.argv[2]))))
