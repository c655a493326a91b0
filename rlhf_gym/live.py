"""A fresh episode of the agent every so often while it is trained, for the page to show."""

from __future__ import annotations

import time

from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo
from rlhf_gym.evaluate import record_video
from rlhf_gym.store import Session
from rlhf_gym.train import Agent

SHARE = 0.02  # of the training time, at most
FIRST_SECONDS = 0.2  # saved up before the first film: less would show hardly anything
SHOWN_SECONDS = 10.0  # of play, at most


class Live:
    """Films the agent that is being trained; takes nothing from its randomness."""

    def __init__(self, session: Session, config: Config, info: EnvInfo) -> None:
        self.session, self.config, self.info = session, config, info
        self.spent, self.due, self.films = 0.0, FIRST_SECONDS, 0

    def maybe(self, agent: Agent, trained_seconds: float) -> None:
        """Films if enough time is saved up.

        Args:
            trained_seconds: how long the training has taken so far, films and all.
        """
        saved = SHARE * trained_seconds - self.spent
        if saved < self.due:
            return
        began = time.monotonic()
        record_video(
            agent, self.config, self.info, self.session.live_video(),
            max_seconds_shown=SHOWN_SECONDS, max_seconds=0.8 * saved, first_seed=self.films,
        )  # fmt: skip
        took = time.monotonic() - began
        self.films += 1
        self.spent += took
        self.due = max(took, FIRST_SECONDS)
