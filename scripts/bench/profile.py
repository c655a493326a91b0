"""Where the time goes, for any environment and settings, or for those of a session.

    python scripts/bench/profile.py CartPole-v1 --rounds 2
    python scripts/bench/profile.py data/cartpole-1 --rounds 1

Runs whole rounds with the synthetic labeler in a temporary session, clips and videos drawn as for a person, and prints
a Markdown table: seconds of each phase, of the training of the agent what takes them (environment, inference, reward,
update), and from the last label to the first pair of the next round. Also how wrong the time left was that was shown
during that training, from its first tenth on.
"""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.remove(str(Path(__file__).resolve().parent))  # Python has a module `profile`, too

from rich.console import Console

from rlhf_gym import arguments, catalog, config, envs, loop
from rlhf_gym.config import Config, Settings, UserError, resolve
from rlhf_gym.episodes import PARTS
from rlhf_gym.monitor import Monitor
from rlhf_gym.store import Session


@dataclass(frozen=True)
class Profile:
    """Where the time goes."""

    what: tyro.conf.Positional[str]
    """Gymnasium id, or the directory of a session whose settings to take."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


class Clocked(Monitor):
    """Keeps how long each phase took, and what it said of the time left."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, Console(file=io.StringIO()))
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.shares: list[dict[str, float]] = []
        self.wrong: list[float] = []  # |said - true| / true
        self.labeled, self.waits = 0.0, []  # when the last label was given; seconds to the next pair
        self.said: list[tuple[float, float]] = []  # when, time left

    @contextmanager
    def phase(self, round: int, name: str, unit: str) -> Iterator[Monitor]:
        began = time.monotonic()
        self.said = []
        with super().phase(round, name, unit) as report:
            yield report
        now = time.monotonic()
        self.seconds[name].append(now - began)
        if name == "collect" and self.labeled:
            self.waits.append(now - self.labeled)
        if name == "label":
            self.labeled = now
        if name == "train_agent":
            self.wrong += [abs(left - (now - when)) / (now - when) for when, left in self.said if now - when > 0.5]

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None, step: int = 0) -> None:
        super().__call__(done, total, metrics, step)
        if self.name == "train_agent" and metrics:
            self.shares.append({part: metrics[f"time/{part}"] for part in PARTS})
            if total / 10 <= done < total and (left := self.eta()) is not None:
                self.said.append((time.monotonic(), left))


def settings_of(command: Profile, given: dict[str, object]) -> Config:
    given = {"labeler": "synthetic", "render": True, "rounds": 2, **given}
    file = Path(command.what) / "config.json"
    if file.is_file():
        saved = config.from_json(json.dumps(json.loads(file.read_text())["config"]))
        return config.validate(dataclasses.replace(saved, **given))
    given = {"env_id": command.what, **given}
    return resolve(given, envs.describe(Config(**given)).kind)


def main() -> None:
    args = sys.argv[1:]
    command = arguments.parse(args, Profile, "scripts/bench/profile.py", "Where the time goes.")
    settings = settings_of(command, arguments.explicit(command.settings, args))
    info = envs.describe(settings)
    with tempfile.TemporaryDirectory() as directory:
        session = catalog.create_session(Path(directory), "profile", settings, info=info.as_json())
        monitor = Clocked(session)
        loop.run(session, settings, info, monitor)
        device = loop.checkpoints.pick_device(settings, info)
        session.close()
    print(f"{settings.env_id} on {device}, {settings.rounds} rounds, {settings.pairs_per_round} pairs and "
          f"{settings.agent_steps_per_round:,} agent steps each\n")  # fmt: skip
    print("| phase | seconds, each round |\n|---|---|")
    for name, seconds in monitor.seconds.items():
        print(f"| {name} | {', '.join(f'{s:.1f}' for s in seconds)} |")
    waits = ", ".join(f"{s:.1f}" for s in monitor.waits)
    print(f"| from the last label to the next pair | {waits or 'one round alone has none'} |")
    print("\n| of the agent's training | share |\n|---|---:|")
    for part in PARTS:
        print(f"| {part} | {statistics.mean(s[part] for s in monitor.shares):.0%} |")
    if monitor.wrong:
        wrong = f"{statistics.median(monitor.wrong):.0%} in the median, {max(monitor.wrong):.0%} at most"
        print(f"\nTime left, as shown from the first tenth on, was wrong by {wrong}.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"profile.py: {error}")
