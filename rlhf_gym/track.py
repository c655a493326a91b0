"""Weights & Biases, for --track alone: nothing else imports it, and rlhf-gym does not need it.

A session is one run there, in the project rlhf-gym, under the session's name. The run's id stands in config.json, so a
resumed session goes on with the same run. `WANDB_MODE=offline` keeps all of it in the session's wandb/ directory.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.config import Config, UserError, to_json
from rlhf_gym.store import Session

PROJECT = "rlhf-gym"
RUN_ID = "wandb"  # in the header of config.json
USABLE_ID = re.compile(r"[0-9a-z]{8,64}")
AXES = {  # metrics by what they are drawn over
    "steps": ("charts/*", "losses/*", "eval/*", "time/*"),
    "round": ("reward/*", "labels/*", "clips/*", "agent/*"),
}


def require() -> None:
    """Raises UserError where Weights & Biases is not installed."""
    try:
        spec = importlib.util.find_spec("wandb")
        found = spec is not None and spec.origin is not None  # wandb itself leaves a folder of that name
    except ValueError:  # sys.modules says that there is none
        found = False
    if not found:
        raise UserError(
            "--track needs Weights & Biases, which is not installed: pip install wandb, with the pip of the Python "
            "that runs rlhf-gym, or leave --track out."
        )


def run_id(session: Session) -> str:
    """The id of the session's run, made and stored when it is asked for first."""
    found = session.header().get(RUN_ID)
    if isinstance(found, str) and USABLE_ID.fullmatch(found):
        return found
    made = secrets.token_hex(8)
    session.write_config(session.config, **{RUN_ID: made})
    return made


class Tracker:
    """The session's run, open until `close`.

    Raises:
        UserError: Weights & Biases is not installed, or does not let us in.
    """

    def __init__(self, session: Session, config: Config) -> None:
        require()
        import wandb

        self.wandb: Any = wandb
        values = json.loads(to_json(config))
        try:
            self.run: Any = wandb.init(
                project=PROJECT, name=session.name, id=run_id(session), resume="allow", dir=str(session.path),
                # No links in a session (within.py), and the terminal is ours.
                settings=wandb.Settings(symlink=False, console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"Weights & Biases did not start ({said}): log in with `wandb login`, or keep everything on this "
                "machine with WANDB_MODE=offline, or go on with --no-track."
            ) from None
        self.run.config.update(values, allow_val_change=True)  # some may have changed since the run began
        for axis, names in AXES.items():
            self.run.define_metric(axis)
            for name in names:
                self.run.define_metric(name, step_metric=axis)

    def numbers(self, values: Mapping[str, float], number: int, steps: int | None) -> None:
        """steps: of the agent in all, where the values are drawn over them."""
        self.run.log({**values, "round": number, **({} if steps is None else {"steps": steps})})

    def histogram(self, name: str, values: np.ndarray, number: int, steps: int | None) -> None:
        self.run.log(
            {name: self.wandb.Histogram(values), "round": number, **({} if steps is None else {"steps": steps})}
        )

    def picture(self, name: str, gif: bytes, number: int) -> None:
        self.run.log({name: self.wandb.Video(io.BytesIO(gif), format="gif"), "round": number})

    def video(self, name: str, path: Path, number: int) -> None:
        self.run.log({name: self.wandb.Video(str(path), format="mp4"), "round": number})

    def close(self) -> None:
        """Returns once everything has been sent, or is on disk."""
        self.run.finish()
