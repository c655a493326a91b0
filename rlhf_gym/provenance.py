"""What a session is made with: versions of packages, the environment's own among them, and of this checkout.

Nothing here imports torch.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_gym import __version__
from rlhf_gym.config import Config
from rlhf_gym.spec import find_spec
from rlhf_gym.store import Session

PACKAGES = ("rlhf-gym", "torch", "gymnasium", "ale-py", "numpy")
OURS = {"rlhf_gym", "gymnasium", "ale_py"}  # modules of environments whose versions are in PACKAGES


def now(config: Config) -> dict[str, Any]:
    """Entries of config.json's header: `versions` by package, and the `git` revision of this checkout, if it is one."""
    return {"versions": versions(config), "git": git_revision()}


def versions(config: Config) -> dict[str, str]:
    """Of Python, of the packages that matter, and of those that the environment's module came with."""
    found = {"python": sys.version.split()[0]}
    for name in (*PACKAGES, *environment_packages(config)):
        try:
            found[name] = importlib.metadata.version(name)
        except ModuleNotFoundError:
            found[name] = __version__ if name == "rlhf-gym" else "missing"
    return found


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages that are there."""
    return {name: importlib.metadata.version(name) for name in packages}


def environment_packages(config: Config) -> list[str]:
    """The distributions that hold the environment's own code; none for a module of the user's."""
    entry = find_spec(config.env_id).entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    top = module.partition(".")[0]
    if module.startswith("gymnasium.envs.mujoco"):
        return ["mujoco"]
    if module.startswith("gymnasium.envs.box2d"):
        return ["Box2D"]
    return [] if top in OURS else sorted(set(importlib.metadata.packages_distributions().get(top, [])))


def update(session: Session, config: Config) -> str:
    """Stores what the session goes on with. Returns a sentence about what has changed since; empty: nothing has."""
    before = session.header().get("versions")
    here = now(config)
    if not isinstance(before, dict) or before == here["versions"]:
        return ""
    names = [n for n, version in here["versions"].items() if before.get(n, version) != version]
    session.write_config(session.config, **here)
    if not names:
        return ""
    changes = ", ".join(f"{n} {before[n]} -> {here['versions'][n]}" for n in names)
    return f"Since this session last ran, versions have changed ({changes}): it goes on, but perhaps not bit for bit."


def git_revision() -> str | None:
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
