"""Kills the program again and again while somebody labels, and looks whether anything was lost.

    python scripts/bench/crash.py --kills 100

A session of CartPole with tiny networks is labeled over HTTP by a client that remembers what the server acknowledged.
The process gets SIGKILL at a random instant of a phase, each phase in turn, and is resumed, until the kills are spent;
then it runs to its end. After every kill, and at the end:

* labels lost: acknowledged, but not in the database with that choice;
* not resumed: the process did not get as far as serving its pages again, or the loop did not go on;
* rows: damaged databases, labels that stand twice, pairs without clips, clips without files, a round with two batches;
* files: what lies in the session and belongs to nothing (once it is resumed: it clears up then);
* lost: seconds of work done over, from the newest checkpoint or the phase's beginning to the kill;
* weights: the same session is run once more without a kill, labeled the same; each round's checkpoint is compared,
  tensor by tensor, bit for bit.

Prints a Markdown table; the exit status is 1 if anything but seconds was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlhf_gym import store  # noqa: E402

SESSION = "crash-1"
PHASES = ("collect", "label", "train_reward", "train_agent", "record")
LONGEST = {"collect": 1.5, "label": 1.0, "train_reward": 1.5, "train_agent": 3.0, "record": 1.0}  # seconds into a phase
SETTINGS = (
    "--pairs-per-round", "8", "--clip-seconds", "0.4", "--num-envs", "2", "--num-steps", "32", "--num-minibatches", "2",
    "--update-epochs", "2", "--reward-hidden", "16", "--hidden-size", "16", "--reward-epochs", "1000",
    "--reward-steps", "800", "--agent-steps-per-round", "8192", "--checkpoint-iterations", "8", "--eval-episodes", "4",
    "--repeat-fraction", "0.25", "--no-browser", "--seed", "7",
)  # fmt: skip


class Client(threading.Thread):
    """Labels whatever is to be labeled, the same way in every run, and remembers what was acknowledged."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, tuple[int, str]] = {}  # label id -> pair, choice
        self.address: str | None = None
        self.token = ""
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            address = self.address
            if address is not None:
                try:
                    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {self.token}"}) as http:
                        self.label(http)
                except (httpx.HTTPError, ValueError, KeyError):
                    pass  # it was killed: the same labels again, under the same ids
            time.sleep(0.02)

    def label(self, http: httpx.Client) -> None:
        for pair in http.get(f"/api/s/{SESSION}/pairs", params={"limit": 2}).json()["pairs"]:
            final = ("left", "right")[hashlib.sha256(f"{pair['id']}".encode()).digest()[0] % 2]
            thoughts = ["equal", final] if pair["id"] % 5 == 0 else [final]  # now and then a change of mind
            for n, choice in enumerate(thoughts):
                body = {"id": f"crash-{pair['id']}-{n}", "pair": pair["id"], "choice": choice}
                answer = http.post(f"/api/s/{SESSION}/labels", json=body)
                if answer.status_code in (200, 201):
                    self.acknowledged[body["id"]] = (pair["id"], choice)
            time.sleep(0.01)


class Program:
    """The program under test, with its pages."""

    def __init__(self, data_dir: Path, words: Sequence[str]) -> None:
        self.log = data_dir.parent / f"log-{time.monotonic_ns()}.txt"
        command = [sys.executable, "-m", "rlhf_gym", *words, "--data-dir", str(data_dir), "--no-browser"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=data_dir.parent, env=environment, stdout=log, stderr=log)

    def address(self, seconds: float = 90.0) -> tuple[str, str] | None:
        """Where the pages are, and the token; None if it ended or never said."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"Open (http://[^/]+)\S*token=(\S+)", self.log.read_text()):
                return found.group(1), found.group(2)
            time.sleep(0.02)
        return None

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Tally:
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    labels_lost: int = 0
    not_resumed: int = 0
    bad_rows: list[str] = field(default_factory=list)
    strange_files: list[str] = field(default_factory=list)
    lost_seconds: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- what was lost


def lost_labels(database: Path, acknowledged: dict[str, tuple[int, str]]) -> int:
    with sqlite3.connect(database) as db:
        rows = {uid: (pair, choice) for uid, pair, choice in db.execute("SELECT uid, pair, choice FROM label")}
    db.close()
    return sum(rows.get(uid) != said for uid, said in acknowledged.items())


def bad_rows(path: Path) -> list[str]:
    """What is wrong with the rows; nothing, hopefully."""
    checks = {
        "labels twice": "SELECT count(*) FROM (SELECT uid FROM label GROUP BY uid HAVING count(*) > 1)",
        "labels of no pair": "SELECT count(*) FROM label WHERE pair NOT IN (SELECT id FROM pair)",
        "pairs without clips": "SELECT count(*) FROM pair WHERE left_clip NOT IN (SELECT id FROM clip)"
        " OR right_clip NOT IN (SELECT id FROM clip)",
        "clips of no pair": "SELECT count(*) FROM clip WHERE id NOT IN (SELECT left_clip FROM pair)"
        " AND id NOT IN (SELECT right_clip FROM pair)",
        "rounds with two batches": "SELECT count(*) FROM (SELECT round FROM pair GROUP BY round"
        " HAVING count(DISTINCT attempt) > 1)",
        "places taken twice": "SELECT count(*) FROM (SELECT 1 FROM pair GROUP BY round, attempt, position"
        " HAVING count(*) > 1)",
    }
    with sqlite3.connect(path / "session.db") as db:
        found = [name for name, query in checks.items() if db.execute(query).fetchone()[0]]
        if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            found.append("a damaged database")
        files = [name for row in db.execute("SELECT path, sheet FROM clip") for name in row if name]
    db.close()
    missing = [name for name in files if not (path / name).is_file()]
    coming = [n for n in missing if n.endswith(".png") and (path / n).with_name("undrawn.npz").exists()]
    return found + [f"no file {name}" for name in missing if name not in coming]


def strange_files(path: Path) -> list[str]:
    """Files of a session that belong to nothing."""
    with sqlite3.connect(path / "session.db") as db:
        known = {name for row in db.execute("SELECT path, sheet FROM clip") for name in row if name}
    db.close()
    known |= {f"{directory}/undrawn.npz" for directory in {str(Path(name).parent) for name in known}}
    known |= {"config.json", "session.db", "session.db-wal", "session.db-shm", "loop.lock", "progress.json"}
    session = store.Session(path)
    trained = session.trained_rounds()
    coming = max(trained, default=store.START) + 1
    files = [session.checkpoint(n) for n in trained] + [
        session.partial(coming, p) for p in ("train_reward", "train_agent")
    ]
    for number in trained:
        files += [session.video(number), session.episode(number), session.verdict(number)]
    files.append(session.live_video())
    being_collected = {session.clip_directory(coming, attempt) for attempt in range(4)}
    session.close()
    known |= {str(f.relative_to(path)) for f in files}
    return sorted(
        str(f.relative_to(path))
        for f in path.rglob("*")
        if f.is_file()
        and str(f.relative_to(path)) not in known
        and f.relative_to(path).parts[0] != "tb"
        and f.parent not in being_collected
        and not re.match(r"\..*-", f.name)  # being written this moment
        and not f.name.startswith(".")
    )


def seconds_lost(path: Path, phase: str, began: float, killed: float) -> float:
    """From the newest checkpoint, or the phase's beginning, to the kill."""
    if phase == "label":
        return 0.0
    partials = [f.stat().st_mtime for f in (path / "checkpoints").glob("*.pt")]
    return max(0.0, killed - max([began, *(t for t in partials if t <= killed)]))


def progress(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads((path / "progress.json").read_text()))
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------------------------------------- the runs


def wait_for_phase(program: Program, path: Path, phase: str, seconds: float = 60.0) -> bool:
    """Until the loop is in that phase; False if it ended before."""
    pid, deadline = program.process.pid, time.monotonic() + seconds
    while time.monotonic() < deadline and program.process.poll() is None:
        now = progress(path)
        if now.get("pid") == pid and now.get("phase") == phase:
            return True
        time.sleep(0.002)
    return False


def killed_again_and_again(data_dir: Path, kills: int, rounds: int, rng: random.Random) -> Tally:
    tally, client, path = Tally(), Client(), data_dir / SESSION
    client.start()
    words = ["run", "CartPole-v1", "--session", SESSION, "--rounds", str(rounds), *SETTINGS]
    for n in range(kills + 1):
        program = Program(data_dir, words)
        found = program.address()
        if found is None:
            tally.not_resumed += 1
            print(program.log.read_text()[-2000:], file=sys.stderr)
            program.kill()
            break
        client.token, client.address = found[1], found[0]
        words = ["resume", SESSION]
        if n == kills:
            break
        phase = PHASES[n % len(PHASES)]
        if not wait_for_phase(program, path, phase):
            if "All rounds are done" in program.log.read_text():
                print(f"The {rounds} rounds were done after {n} kills: give more --rounds.", file=sys.stderr)
            else:
                tally.not_resumed += 1
            program.kill()
            break
        began = time.time()
        if n:
            tally.strange_files += strange_files(path)
        time.sleep(rng.uniform(0, LONGEST[phase]))
        killed, now = time.time(), str(progress(path).get("phase"))
        client.address = None
        program.kill()
        tally.kills[now if now in PHASES else phase] += 1
        tally.lost_seconds.append(seconds_lost(path, phase, began, killed))
        tally.labels_lost += lost_labels(path / "session.db", dict(client.acknowledged))
        tally.bad_rows += bad_rows(path)
        print(f"kill {n + 1} of {kills} in {now}, round {progress(path).get('round')}", file=sys.stderr)
    finish(program, client, path)
    tally.labels_lost += lost_labels(path / "session.db", client.acknowledged)
    tally.bad_rows += bad_rows(path)
    tally.strange_files += strange_files(path)
    if store.Session(path).where().phase != "finished":
        tally.not_resumed += 1
    return tally


def finish(program: Program, client: Client, path: Path, seconds: float = 1200.0) -> None:
    """Lets it run to its end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and program.process.poll() is None:
        if "All rounds are done" in program.log.read_text():
            break
        time.sleep(0.1)
    client.done.set()
    client.join()
    program.kill()


def undisturbed(data_dir: Path, rounds: int) -> None:
    client = Client()
    client.start()
    words = ["run", "CartPole-v1", "--session", SESSION, "--rounds", str(rounds), *SETTINGS]
    program = Program(data_dir, words)
    found = program.address()
    if found is None:
        raise SystemExit(f"It did not start:\n{program.log.read_text()}")
    client.token, client.address = found[1], found[0]
    finish(program, client, data_dir / SESSION)


def different_tensors(one: Path, two: Path, rounds: int) -> tuple[int, int]:
    """(tensors compared, those that differ in a bit) over all rounds' checkpoints."""
    import torch

    compared = different = 0
    for number in range(-1, rounds):
        names = [store.Session(p).checkpoint(number) for p in (one, two)]
        a, b = (torch.load(name, weights_only=True) for name in names)
        for part in ("agent", "reward"):
            for key in a[part] | b[part]:
                compared += 1
                same = key in a[part] and key in b[part] and torch.equal(a[part][key], b[part][key])
                different += not same
    return compared, different


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, help="of the session; by default one for every two kills")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--no-weights", action="store_true", help="do not run it once more to compare the weights")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if os.name != "posix":
        print("There is no SIGKILL on this system.", file=sys.stderr)
        return 2
    rounds = args.rounds or max(2, args.kills // 2)
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-crash-") as directory:
        killed, whole = Path(directory) / "killed" / "data", Path(directory) / "whole" / "data"
        for data_dir in (killed, whole):
            data_dir.mkdir(parents=True)
        began = time.monotonic()
        tally = killed_again_and_again(killed, args.kills, rounds, random.Random(args.seed))
        compared = different = 0
        if not args.no_weights and not tally.not_resumed:
            undisturbed(whole, rounds)
            compared, different = different_tensors(killed / SESSION, whole / SESSION, rounds)
        seconds = time.monotonic() - began
    done = sum(tally.kills.values())
    print(
        f"{done} kills ({', '.join(f'{n} in {p}' for p, n in tally.kills.items())}), {rounds} rounds, {seconds:.0f} s\n"
    )
    print("| after a kill | |\n|---|---:|")
    print(f"| acknowledged labels lost | {tally.labels_lost} |")
    print(f"| sessions that could not go on | {tally.not_resumed} |")
    print(f"| duplicated, orphaned or damaged rows | {len(tally.bad_rows)} |")
    print(f"| files that belong to nothing, once resumed | {len(tally.strange_files)} |")
    if lost := tally.lost_seconds:
        print(f"| seconds of work done over, median (most) | {statistics.median(lost):.1f} ({max(lost):.1f}) |")
    if compared:
        print(
            f"| tensors of {rounds + 1} checkpoints that differ from an undisturbed run | {different} of {compared} |"
        )
    for name in sorted({*tally.bad_rows, *tally.strange_files}):
        print(f"* {name}", file=sys.stderr)
    bad = tally.labels_lost + tally.not_resumed + len(tally.bad_rows) + len(tally.strange_files) + different
    return 1 if bad or done < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
