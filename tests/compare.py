"""Tiny sessions that run by themselves, and what two of them have in common."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import torch
from processes import TINY, Kill, Result, command

from rlhf_gym import catalog
from rlhf_gym.checkpoints import load_state
from rlhf_gym.store import Session

NAMES = ("start.pt", "r000.pt", "r001.pt")


def run(cwd: Path, *more: object, env_id: str = "CartPole-v1", kill: Kill | None = None) -> Result:
    """A new session `one` of two tiny rounds in cwd/data; later settings win over TINY."""
    return command("run", env_id, "--session", "one", *without(more), *more, cwd=cwd, kill=kill)


def without(more: tuple[object, ...]) -> list[str]:
    """TINY, less what `more` sets."""
    pairs = zip(TINY[::2], TINY[1::2], strict=True)
    return [word for name, value in pairs if name not in more for word in (name, value)]


def session_in(cwd: Path, name: str = "one") -> Session:
    return catalog.open_session(cwd / "data", name)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in flat(part, f"{prefix}/{name}").items()}
    return {prefix: state}


def same_tensors(one: Path, two: Path, ignore: tuple[str, ...] = ()) -> int:
    """Asserts that two checkpoints hold the same, bit for bit; returns how many tensors that were."""
    a, b = flat(load_state(one)), flat(load_state(two))
    assert set(a) == set(b)
    tensors = 0
    for name in a:
        if isinstance(a[name], torch.Tensor):
            tensors += 1
            assert a[name].dtype == b[name].dtype, name
            assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), f"{name} of {one} and {two}"
        elif not name.endswith(ignore or ("\0",)):
            assert a[name] == b[name], name
    return tensors


def rows(cwd: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(cwd / "data" / "one" / "session.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def same_session(one: Path, two: Path) -> None:
    """Asserts that nothing tells two sessions apart but clocks and speeds: neither tables, clips nor checkpoints."""
    paths = [cwd / "data" / "one" for cwd in (one, two)]
    for query in (
        "SELECT * FROM clip",
        "SELECT * FROM pair",
        "SELECT id, uid, pair, choice, strength, labeler FROM label",
        "SELECT kind, round, payload FROM event",
        # Some metrics are stored once a second, but for a phase's last; speeds are never the same.
        "SELECT * FROM metric WHERE phase != 'train_agent' AND name NOT LIKE '%SPS' AND (round, phase, step) IN"
        " (SELECT round, phase, max(step) FROM metric GROUP BY round, phase) ORDER BY 1, 2, 3, 4",
        "SELECT round, max(step) FROM metric WHERE phase = 'train_agent' GROUP BY round",
    ):
        expected, found = rows(one, query), rows(two, query)
        assert expected == found, query
    assert rows(one, "SELECT * FROM clip")
    digests = [
        {p.relative_to(path): hashlib.sha256(p.read_bytes()).digest() for p in sorted(path.glob("clips/**/*.*"))}
        for path in paths
    ]
    assert digests[0] == digests[1]
    files = [sorted(p.name for p in (path / "checkpoints").iterdir()) for path in paths]
    assert files[0] == files[1] == sorted(NAMES)
    for name in NAMES:
        assert same_tensors(paths[0] / "checkpoints" / name, paths[1] / "checkpoints" / name) >= 8
