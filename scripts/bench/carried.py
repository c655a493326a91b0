"""How wrong the value that a round begins with is, and how soon that is mended.

    python scripts/bench/carried.py walker --seed 5 --rounds 4 --soften-policy 0.3

Plays a session of that task (scripts/bench/tasks.py) with the synthetic labeler. Then each round after the first begins
anew: the agent of before, softened if the session softens it, and the new reward model. Its value is fitted alone for
some rollouts, once as it was and once rescaled (rlhf_gym/values.py), and held against what the rewards came to in other
rollouts of the same agent. Prints a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import copy
import io
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)  # Python has a module `profile`, too
from rich.console import Console

from rlhf_gym import arguments, catalog, envs, fast, loop, succession, train, values
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.monitor import Monitor
from rlhf_gym.store import Session
from rlhf_gym.team import Team
from scripts.bench.tasks import TASKS

CPU = torch.device("cpu")
AFTER = (2, 5, 8)  # rollouts
COUNTED, BEYOND = 1000, 500  # steps whose value is looked at, and steps after these


@dataclass(frozen=True)
class Carried:
    """How wrong the value that a round begins with is."""

    task: tyro.conf.Positional[str]
    """Of scripts/bench/tasks.py, of vectors."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def error(agent: train.Agent, model: train.RewardModel, config: Config) -> tuple[str, str]:
    """What the agent's value has too much, and what its steps are worth: mean ± standard deviation over steps."""
    vec = envs.Envs(config, 8, (config.seed, 999))
    some = replace(config, num_steps=COUNTED + BEYOND, gae_lambda=1.0)
    roll, _, _ = train.rollout(agent, vec, vec.reset(), some, torch.Generator().manual_seed(5), CPU)
    vec.close()
    model.score(roll)
    known = torch.stack([~roll.truncated[t : t + BEYOND].any(0) for t in range(COUNTED)])  # not by the value itself
    worth = train.gae(roll, some)[1][:COUNTED][known]
    over = roll.values[:COUNTED][known] - worth
    return f"{over.mean():.1f} ± {over.std():.1f}", f"{worth.mean():.1f} ± {worth.std():.1f}"


def fitted(before: train.Agent, model: train.RewardModel, config: Config, rescales: bool) -> list[str]:
    """The error after so many rollouts of AFTER on which the value alone was fitted."""
    agent = copy.deepcopy(before)
    learner, found = fast.prepare(agent, config, CPU), list[str]()
    generator, vec = torch.Generator().manual_seed(1), envs.Envs(config, config.num_envs, (config.seed, 998))
    optimizer = learner or torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5)
    obs = vec.reset()
    for done in range(1, AFTER[-1] + 1):
        roll, obs, _ = train.rollout(agent, vec, obs, config, generator, CPU, None, learner)
        model.score(roll)
        if rescales and done <= min(config.value_warmup_iterations, values.TIMES):
            values.rescale(agent, roll, config, Team())
        train.update(agent, optimizer, roll, *train.gae(roll, config), config, generator, value_only=True)
        if agent.normalizer is not None:
            agent.normalizer.update(roll.obs.flatten(0, 1))
        found += [error(agent, model, config)[0]] if done in AFTER else []
    vec.close()
    return found


def rows(session: Session, config: Config) -> list[list[str]]:
    table = []
    for number in [n for n in session.trained_rounds() if n > 0]:
        before, model = Snapshot.load(session.checkpoint(number - 1)), Snapshot.load(session.checkpoint(number)).reward
        if model is None:
            continue
        succession.soften(before.agent, *succession.softness(config, number))
        was, worth = error(before.agent, model, config)
        ways = [fitted(before.agent, model, config, rescales) for rescales in (False, True)]
        table.append([str(number), worth, was, *ways[0], *ways[1]])
    return table


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Carried, "scripts/bench/carried.py", "What a round's value begins with.")
    if command.task not in TASKS:
        raise UserError(f"There is no task {command.task!r}: give one of {', '.join(TASKS)}.")
    given = {"labeler": "synthetic", "mistake_rate": 0.1, **TASKS[command.task].given()}
    given |= arguments.explicit(command.settings, args)
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    if info.image:
        raise UserError(f"{command.task} is of images: give a task of vectors.")
    if config.rounds < 2:
        raise UserError(f"--rounds {config.rounds}: give 2 or more, since the first round begins with no value.")
    if config.value_warmup_iterations == 0:
        raise UserError("With --value-warmup-iterations 0 nothing is rescaled: give 1 or more.")
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "bench", config, info=info.as_json())
        loop.run(session, config, info, Monitor(session, Console(file=io.StringIO())))
        table = rows(session, config)
        session.close()
    ways = [f"{way}, after {n}" for way in ("as it was", "rescaled") for n in AFTER]
    print(f"| {' | '.join(['round', 'worth of a step', 'too much in its value at first', *ways])} |")
    print("|---:|" + "---|" * (2 + len(ways)))
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error_:
        sys.exit(f"carried.py: {error_}")
