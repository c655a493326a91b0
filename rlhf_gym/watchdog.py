"""Beside the loop: says so when an environment does not answer, and lets Ctrl-C end the program even then.

Python cannot interrupt a call into foreign code. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0  # with an environment; a game that starts may take half of it
PATIENCE_AFTER_INTERRUPT = 8.0  # with ourselves, once somebody has pressed Ctrl-C
POLL_SECONDS = 0.5


class Call:
    """What foreign code is running now, if any: `with CALL.into("CartPole-v1"):` around a call into an environment.

    Cheap, as it stands around every step: no lock, nothing new.
    """

    what = ""
    since = 0.0  # monotonic; 0: none is

    def into(self, what: str) -> Call:
        self.what = what
        return self

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self.since = 0.0


CALL = Call()


class Watchdog(contextlib.AbstractContextManager["Watchdog"]):
    """Watches the main thread's calls into environments while the with block runs.

    Args:
        warn: called once for each call that takes too long, with a sentence, from another thread.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._hears, self._tells = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._before = -1
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Watchdog:
        self._tells.setblocking(False)
        if self._in_main:  # the number of each signal is written there at once, whatever Python is doing
            self._before = signal.set_wakeup_fd(self._tells.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._in_main:
            signal.set_wakeup_fd(self._before)
        self._tells.close()  # ends the thread
        self._thread.join()
        self._hears.close()

    def _watch(self) -> None:
        told, interrupted = 0.0, 0.0
        while True:
            heard = select.select([self._hears], [], [], POLL_SECONDS)[0]
            if heard:
                signals = self._hears.recv(64)
                if not signals:
                    return
                if {signal.SIGINT, signal.SIGTERM} & set(signals) and not interrupted:
                    interrupted = time.monotonic()
            now, since = time.monotonic(), CALL.since
            if interrupted and since and now - interrupted > PATIENCE_AFTER_INTERRUPT and since < interrupted:
                try:
                    self.warn("Stopped: the environment did not answer. What was saved is kept.")
                finally:
                    os._exit(130)
            if since and since != told and now - since > PATIENCE_SECONDS:
                told = since
                with contextlib.suppress(OSError):  # a terminal that is closed, a disk that is full
                    self.warn(
                        f"{CALL.what} has not answered for {now - since:.0f} s: it may hang. Ctrl-C ends the program "
                        "and nothing that was saved is lost; mend the environment, then resume."
                    )
