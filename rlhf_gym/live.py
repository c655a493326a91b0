"""A fresh episode of the agent every so often while it is trained, for the page to show."""

from __future__ import annotations

import contextlib
import time

from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo
from rlhf_gym.evaluate import record_video
from rlhf_gym.store import Session
from rlhf_gym.train import Agent

SHARE = 0.02  # of the training time, at most
SHORTEST_SECONDS = 0.1  # that playing and drawing may take: less would show hardly anything
SHOWN_SECONDS = 10.0  # of play, at most
UNKNOWN_OVERHEAD = 1.0  # seconds


class Live:
    """Films the agent that is being trained; takes nothing from its randomness.

    One for a run of the loop, so that short rounds save up for a film together.
    """

    def __init__(self, session: Session, config: Config, info: EnvInfo) -> None:
        self.session, self.config, self.info = session, config, info
        self.trained = self.spent = 0.0  # seconds
        self.overhead: float | None = None  # seconds: making the environment, finishing the file
        self.films = 0
        self.broken = ""  # why there are no more

    def calibrate(self, agent: Agent) -> None:
        """Measures once, while nobody waits, what a film costs that shows nothing."""
        if self.overhead is None:
            self.overhead = self._film(agent, 0.0)
            self.clear()

    def clear(self) -> None:
        """The film of a training that is over goes."""
        with contextlib.suppress(PermissionError):  # on Windows, while a browser reads it
            self.session.live_video().unlink(missing_ok=True)

    def maybe(self, agent: Agent, seconds: float) -> None:
        """Films if enough time is saved up.

        Args:
            seconds: of training since the last call, films included.
        """
        self.trained += seconds
        overhead = 3 * (UNKNOWN_OVERHEAD if self.overhead is None else self.overhead)  # a busy machine takes longer
        allowed = SHARE * self.trained - self.spent - overhead
        if allowed < SHORTEST_SECONDS or self.broken:
            return
        try:
            took = self._film(agent, allowed)
        except UserError as error:  # a page that shows no film is no reason to train no further
            self.broken = str(error)
            return
        self.films += 1
        self.spent += took
        self.overhead = max(took - allowed, self.overhead or 0.0)

    @property
    def share(self) -> float:
        return self.spent / self.trained if self.trained else 0.0

    def _film(self, agent: Agent, seconds: float) -> float:
        """Films for so long; returns how long it took in all."""
        began = time.monotonic()
        record_video(
            agent, self.config, self.info, self.session.live_video(),
            max_seconds_shown=SHOWN_SECONDS, max_seconds=seconds, number=self.films,
        )  # fmt: skip
        return time.monotonic() - began
