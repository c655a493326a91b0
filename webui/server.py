"""The pages' web server: uvicorn in a daemon thread, beside the loop or alone (`rlhf-gym serve`)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path

import uvicorn

from rlhf_gym.config import UserError
from rlhf_gym.home import load_secret
from webui.app import create_app
from webui.state import Sessions

DEFAULT_PORT = 8000
PORTS_TRIED = 20
START_SECONDS = 20.0
STOP_SECONDS = 0.8  # for open answers to end by themselves; event streams do within 0.25


class Server:
    """Serves a data directory until `stop()`.

    Args:
        host: address or name to listen on.
        port: None tries 8000 and the next ones, 0 takes any that is free, else just this one.
        token: None takes the one kept for this user.
    """

    def __init__(
        self, data_dir: Path, host: str = "127.0.0.1", port: int | None = None, token: str | None = None
    ) -> None:
        self.data_dir = Path(data_dir)
        self.host = host
        self.asked_port = port
        self.port = port or DEFAULT_PORT
        self.token = token or load_token()
        self.open_to_others = False  # whether other machines can reach it, once it has started
        self._stop = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The list of sessions, with the token."""
        return self.page()

    def page(self, session: str | None = None) -> str:
        """The address to open for a session's page, or the list of sessions; carries the token."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        path = f"s/{session}" if session else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{path}?token={self.token}"

    @property
    def warning(self) -> str:
        """What whoever lets other machines in should know; "" where none can reach the pages."""
        if not self.open_to_others:
            return ""
        return (
            f"Other machines can reach these pages (--host {self.host}), and the token, which they need, travels "
            "unencrypted: who overhears it can label, stop and delete. Safer: leave --host out, and there use "
            f"ssh -L {self.port}:127.0.0.1:{self.port} (docs/ssh.md)."
        )

    def start(self) -> None:
        """Returns once the pages answer; raises UserError where the address cannot be listened on."""
        listener = _listen(self.host, self.asked_port)
        address, port = listener.getsockname()[:2]
        self.port, self.open_to_others = int(port), not ipaddress.ip_address(address.split("%")[0]).is_loopback
        self._stop.clear()
        app = create_app(self.data_dir, self.token, host=self.host, port=self.port, stop=self._stop)
        self._sessions: Sessions = app.state.sessions
        config = uvicorn.Config(
            app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, log_level="warning",
            access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=asyncio.run, args=[_serve(self._server, listener)], name="webui", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise UserError(f"The pages did not start on {self.host}:{self.port}: try another --port.")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends within about a second, whatever is still open."""
        self._stop.set()
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(0.3)
        self._server = self._thread = None
        self._sessions.close()


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    for connection in list(server.server_state.connections):  # those that did not end by themselves
        connection.transport.abort()
    await asyncio.sleep(0)  # that long it takes


def _listen(host: str, asked: int | None) -> socket.socket:
    """A listening socket, so that the port is ours before anything is printed or opened."""
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if asked is None else [asked]
    problem: OSError | None = None
    for port in ports:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(f"--host {host!r} --port {port} is no address here ({error}): use 127.0.0.1.") from None
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # a restart may take the port over from its own closing connections
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            problem = error
    which = f"Port {ports[0]}" if len(ports) == 1 else f"Each port from {ports[0]} to {ports[-1]}"
    reason = problem.strerror if problem else ""
    raise UserError(f"{which} on {host} cannot be used ({reason}): stop what uses it, or choose another with --port.")


# ---------------------------------------------------------------------------------------------- token, browser


def load_token(directory: Path | None = None) -> str:
    """This user's token. It outlives restarts, so that an open tab goes on after a resume."""
    return load_secret("token", "the pages' key", directory)


def open_browser(url: str) -> bool:
    """Opens the address where there is a display; returns whether it did."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    return webbrowser.open(url)
