"""The loop's ear: what the person says on the page while it works. Nothing here imports torch."""

from __future__ import annotations

import time

from rlhf_gym.store import Session
from rlhf_gym.wishes import Wishes

POLL_SECONDS = 0.1


class Stopped(Exception):
    """The person stopped the session from the page."""


class Replanned(Exception):
    """The person wants the session to go on in another way than it is going now."""


class Control:
    """Listens for one run of the loop; what was said before it began is no matter of its own.

    Args:
        since: the newest event when it began; None: this moment.
    """

    def __init__(self, session: Session, since: int | None = None) -> None:
        self.session = session
        self.wishes: Wishes = session.wishes()
        self.since = self.turn = self.wishes.last if since is None else since

    def next_turn(self) -> None:
        """The loop looks at the disk now and sees every plan made so far."""
        self.turn = self.session.wishes().last

    def check(self) -> None:
        """Raises Stopped or Replanned where the person has said so."""
        self.wishes = self.session.wishes()
        if self.wishes.stopped(self.since):
            raise Stopped
        if self.wishes.replanned(self.turn):
            raise Replanned

    def paused(self) -> bool:
        return self.wishes.paused(self.since)

    def wait(self) -> float:
        """Sleeps until the person goes on, stops, or makes another plan; returns the seconds slept."""
        began = time.monotonic()
        while self.paused():
            time.sleep(POLL_SECONDS)
            self.check()
        return time.monotonic() - began
