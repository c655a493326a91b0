"""How fast the pages and the store answer on a session that a person has filled for years.

Run it from the checkout:

    python scripts/bench/store.py --pairs 100000 --labels 300000

A session of rounds of 250 pairs, the last of them half labeled, is made in a temporary directory: rows by bulk inserts,
clips, checkpoints and videos as empty files, events, metrics, and opinions of the reward model on every labeled pair.
It is served as `rlhf-gym serve` would and asked by httpx, one request after the other:

* pages and API: from the request to the whole answer, over one connection that stays open;
* writes: likewise; each is fsynced before it is answered (`synchronous=FULL`). The control is a transaction of one row
  into a database of its own on the same disk: what the disk alone takes;
* the event stream's poll, resume and list: calls of the store, each beginning with a session that nobody has open,
  but for the poll. `rlhf-gym list` is the whole command, Python's start included.

Prints a Markdown table with median, p95, p99 and maximum beside the limit, which is for p99.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlhf_gym import catalog, collect, store, tables
from rlhf_gym.config import Config
from webui.server import Server
from webui.state import Open

ROOT = Path(__file__).resolve().parents[2]
SESSION = "bench-1"
PAIRS_PER_ROUND = 250
REPEATS = 0.1  # of the pairs
EVENTS_PER_ROUND = 3
METRICS = ("charts/true_return", "charts/predicted_return", "charts/SPS", "charts/live_share", "losses/policy")
METRIC_STEPS = 50  # of each metric a round
ROWS_AT_ONCE = 20_000
TIMES_SLOW = 5  # resume and list, which take long, are measured as often

Measured = tuple[str, list[float], float | None]  # what, milliseconds, limit


# ---------------------------------------------------------------------------------------------- the session


def make_session(data_dir: Path, pairs: int, labels: int, files: bool) -> store.Session:
    config = Config(env_id="CartPole-v1", goal="Bench", pairs_per_round=PAIRS_PER_ROUND, rounds=0)
    session = catalog.create_session(data_dir, SESSION, config)
    rounds = math.ceil(pairs / PAIRS_PER_ROUND)
    rng = random.Random(1)
    with session.write() as db:
        insert(db, tables.clip_table, clip_rows(pairs))
        insert(db, tables.pair_table, pair_rows(pairs, rng))
        insert(db, tables.label_table, label_rows(pairs, labels, rng))
        insert(db, tables.opinion_table, opinion_rows((rounds - 1) * PAIRS_PER_ROUND, rounds - 2, rng))
        insert(db, tables.event_table, event_rows(rounds))
        insert(db, tables.metric_table, metric_rows(rounds - 1, rng))
    for number in range(store.START, rounds - 1):
        session.checkpoint(number).touch()
        session.video(number).touch()
    if files:
        make_clip_files(session, pairs)
    return session


def insert(db: Any, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == ROWS_AT_ONCE:
            db.execute(table.insert(), some)
            some = []
    if some:
        db.execute(table.insert(), some)


def clip_path(session_round: int, clip: int) -> str:
    return f"clips/{store.round_name(session_round)}/{clip:06d}"


def clip_rows(pairs: int) -> Iterator[dict[str, Any]]:
    for i in range(2 * pairs):
        number = i // 2 // PAIRS_PER_ROUND
        path = clip_path(number, i)
        yield dict(
            id=i + 1, round=number, attempt=0, path=f"{path}.npz", sheet=f"{path}.png", frame_width=600,
            frame_height=400, columns=8, frames=50, fps=30.0, steps=50, seed=i, start=0, true_return=50.0,
        )  # fmt: skip


def pair_rows(pairs: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for i in range(pairs):
        number, position = divmod(i, PAIRS_PER_ROUND)
        again = rng.randrange(number * PAIRS_PER_ROUND) if number and rng.random() < REPEATS else None
        shows = i if again is None else again
        sides = (2 * shows + 1, 2 * shows + 2) if again is None else (2 * shows + 2, 2 * shows + 1)
        yield dict(
            id=i + 1, round=number, attempt=0, position=position, left_clip=sides[0], right_clip=sides[1],
            kind=rng.choice(("uniform", "disagreement")) if again is None else "repeat",
            repeat_of=None if again is None else again + 1, p_left=rng.random(), disagreement=rng.random(),
        )  # fmt: skip


def label_rows(pairs: int, labels: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Every pair but half of the last batch is labeled; the rest of the rows are changes of mind, and some undone."""
    rounds = math.ceil(pairs / PAIRS_PER_ROUND)
    row = 0
    for number in range(rounds):
        first, last = number * PAIRS_PER_ROUND, min((number + 1) * PAIRS_PER_ROUND, pairs)
        batch = range(first, last if number + 1 < rounds else first + (last - first) // 2)
        upto = labels * (number + 1) // rounds
        changes = [rng.choice(batch) for _ in range(upto - row - len(batch))] if batch else []
        for n, pair in enumerate((*batch, *changes)):
            undone = n >= len(batch) and number + 1 < rounds and rng.random() < 0.05
            choice = None if undone else rng.choice(("left", "left", "right", "right", "equal", "skip"))
            row += 1
            yield dict(
                uid=f"bench-{row}", pair=pair + 1, choice=choice, strength="normal", labeler="human",
                response_ms=900, replays=0, pauses=0, hidden_ms=0, created=1.7e9 + row,
            )  # fmt: skip


def opinion_rows(pairs: int, judge: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for i in range(pairs):
        yield dict(pair=i + 1, round=judge, p_left=rng.random(), members=rng.randrange(4))


def event_rows(rounds: int) -> Iterator[dict[str, Any]]:
    for number in range(rounds):
        for n in range(EVENTS_PER_ROUND):
            kind, payload = (("goal", {"text": f"Goal {number}"}), ("pause", {}), ("continue", {}))[n % 3]
            yield dict(kind=kind, round=number, payload=payload, created=1.7e9 + number)


def metric_rows(rounds: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(store.START, rounds):
        for name in ("eval/mean", "eval/std", "eval/mean_length"):
            yield dict(round=number, phase="record", step=0, name=name, value=rng.random())
        if number != store.START:
            yield dict(round=number, phase="collect", step=0, name=store.CLIP_BYTES, value=1e6)
        for step in range(METRIC_STEPS):
            for name in METRICS:
                yield dict(round=number, phase="train_agent", step=step, name=name, value=rng.random())


def make_clip_files(session: store.Session, pairs: int) -> None:
    for number in range(math.ceil(pairs / PAIRS_PER_ROUND)):
        session.clip_directory(number, 0).mkdir()
    for i in range(2 * pairs):
        for suffix in (".npz", ".png"):
            path = f"{session.path}/{clip_path(i // 2 // PAIRS_PER_ROUND, i)}{suffix}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


# ---------------------------------------------------------------------------------------------- measuring


def repeat(call: Callable[[int], Any], times: int, before: Callable[[], Any] | None = None) -> list[float]:
    """Milliseconds of each call; what `before` takes does not count."""
    took = []
    for n in range(times):
        if before is not None:
            before()
        start = time.perf_counter()
        call(n)
        took.append((time.perf_counter() - start) * 1000)
    return took


def measure_pages(client: httpx.Client, times: int) -> list[Measured]:
    def get(path: str) -> Callable[[int], None]:
        def call(_: int) -> None:
            client.get(path).raise_for_status().read()

        call(0)  # imports, templates
        return call

    api = f"/api/s/{SESSION}"
    found: list[Measured] = [
        ("session page", repeat(get(f"/s/{SESSION}"), times), 20),
        ("state", repeat(get(api), times), 20),
        ("next pairs (20)", repeat(get(f"{api}/pairs"), times), 20),
        ("last 10 labels", repeat(get(f"{api}/labels?limit=10"), times), 50),
    ]
    few = max(TIMES_SLOW, times // 10)
    found += [
        ("history, newest 24", repeat(get(f"{api}/history"), few), 50),
        ("history, likely slips first", repeat(get(f"{api}/history?order=slips"), few), None),
        ("metrics of the curves", repeat(get(f"{api}/metrics?names=charts/true_return&names=eval/mean"), few), None),
        ("list page", repeat(get("/"), TIMES_SLOW), 1000),
    ]
    return found


def measure_writes(client: httpx.Client, session: store.Session, times: int) -> list[Measured]:
    api = f"/api/s/{SESSION}"
    where = session.where()
    batch = [p.id for p in session.pairs(where.round, where.attempt) if p.choice is not None]

    def label(n: int) -> None:
        body = {"id": f"http-{n}", "pair": batch[n % len(batch)], "choice": "left"}
        client.post(f"{api}/labels", json=body).raise_for_status()

    def undo(n: int) -> None:
        client.post(f"{api}/undo", json={"id": f"undo-{n}"}).raise_for_status()

    database = session.path.parent / "control.db"
    control = sqlite3.connect(database, isolation_level=None)
    control.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (x)")
    fsynced = repeat(lambda n: control.execute("INSERT INTO t VALUES (?)", (n,)), times)
    control.close()
    labels = repeat(label, times)
    undone = min(times, len(batch))
    return [("label, on disk", labels, 25), ("undo, on disk", repeat(undo, undone), 25), ("control", fsynced, None)]


def measure_store(data_dir: Path, session: store.Session, times: int) -> list[Measured]:
    opened = Open(session, "")
    opened.state()

    def resume(_: int) -> None:
        again = catalog.open_session(data_dir, SESSION)
        where = again.where()
        collect.choose_repeats(again, where.round, round(PAIRS_PER_ROUND * REPEATS), np.random.default_rng(1))
        again.close()

    def summary(_: int) -> None:
        again = catalog.open_session(data_dir, SESSION)
        again.summary()
        again.close()

    def list_command(_: int) -> None:
        command = [sys.executable, "-m", "rlhf_gym", "list", "--data-dir", str(data_dir)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)

    def changed() -> None:
        session.add_event("pause", 0)

    return [
        ("event stream, nothing new", repeat(lambda _: opened.state(fresh=False), times), 20),
        ("event stream, something new", repeat(lambda _: opened.state(fresh=False), times, before=changed), 20),
        ("resume", repeat(resume, TIMES_SLOW), 2000),
        ("summary of a session", repeat(summary, TIMES_SLOW), 1000),
        ("disk use of a session", repeat(lambda _: session.disk_bytes(), TIMES_SLOW), None),
        ("`rlhf-gym list`", repeat(list_command, TIMES_SLOW), None),
    ]


def row(name: str, values: Sequence[float], limit: float | None) -> str:
    ordered = sorted(values)
    p95, p99 = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.95, 0.99))
    shown = "" if limit is None else f"{'' if p99 <= limit else 'missed: '}{limit:g}"
    figures = " | ".join(
        f"{v:.1f}" if v >= 1 else f"{v:.3f}" for v in (statistics.median(ordered), p95, p99, ordered[-1])
    )
    return f"| {name} | {len(ordered)} | {figures} | {shown} |"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000, help="of all rounds")
    parser.add_argument("--labels", type=int, help="rows of the label table (default: three for each pair)")
    parser.add_argument("--times", type=int, default=300, help="each request is made")
    parser.add_argument("--no-files", action="store_true", help="make no clip files (two for each clip)")
    parser.add_argument("--data-dir", type=Path, help="where to make the temporary directory")
    args = parser.parse_args(argv)
    args.labels = 3 * args.pairs if args.labels is None else args.labels
    if args.pairs < 2 * PAIRS_PER_ROUND or args.labels < args.pairs:
        parser.error(f"--pairs takes at least {2 * PAIRS_PER_ROUND}, --labels at least as many as there are pairs.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-bench-", dir=args.data_dir) as directory:
        data_dir = Path(directory)
        start = time.perf_counter()
        session = make_session(data_dir, args.pairs, args.labels, not args.no_files)
        print(f"The session was made in {time.perf_counter() - start:.0f} s.", file=sys.stderr)
        server = Server(data_dir, port=0, token="bench-" + "x" * 20)
        server.start()
        try:
            headers = {"Authorization": f"Bearer {server.token}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=120) as client:
                measured = measure_pages(client, args.times)
                measured += measure_writes(client, session, args.times)
            measured += measure_store(data_dir, session, args.times)
        finally:
            server.stop()
            session.close()
    busy = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{args.pairs:,} pairs, {args.labels:,} label rows{busy}\n")
    print("| what | times | median ms | p95 ms | p99 ms | max ms | limit ms |\n|---|---:|---:|---:|---:|---:|---:|")
    for measurement in measured:
        print(row(*measurement))
    return 0


if __name__ == "__main__":
    sys.exit(main())
