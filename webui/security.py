"""Who may talk to the pages: token, Host, Origin and size checks, and the headers of every answer.

One plain ASGI middleware, so that event streams and videos pass through untouched.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024
TOO_LARGE = f"The request's body is larger than {MAX_BODY_BYTES} bytes: send less."
COOKIE_SECONDS = 365 * 24 * 3600
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Refuse = Callable[[Request, int, str], Response]


class Guard:
    """Refuses requests from strangers; lets the rest through and puts the security headers on every answer.

    Args:
        token: what a request has to show, as cookie, `?token=` of a page, or `Authorization: Bearer`; None: nothing.
        port: part of the cookie's name, since cookies ignore ports, where the Host header has none; else that one is:
            through ssh, several machines may be asked on ports of this one, all of them serving on the same.
        host: a further name, besides loopback names and IP addresses, under which the pages may be asked for.
        refuse: makes the answer from (request, status, sentence).
    """

    def __init__(self, app: ASGIApp, token: str | None, port: int, host: str, refuse: Refuse) -> None:
        self.app = app
        self.token = token
        self.port = port
        self.host = host.lower()
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cookie = self._cookie(Headers(scope=scope))
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        brings_token = not scope["path"].startswith("/api/") and self._is_token(given)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if brings_token:
                    value = f"{self.token}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
                    headers.append("Set-Cookie", f"{cookie}={value}")
            await send(message)

        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        request = Request(scope, receive)
        problem = self._problem(scope, Headers(scope=scope), brings_token)
        if problem is not None:
            await self.refuse(request, *problem)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive_bounded, send_with_headers)

    def _problem(self, scope: Scope, headers: Headers, brings_token: bool) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_host(host):
            return 421, (
                f"This server does not answer to the name {host[:80]!r}: open the address that rlhf-gym printed, "
                "or start it with --host and that name."
            )
        if scope["path"].startswith("/static/") or scope["path"] == "/favicon.ico":
            return None  # the same for everyone, and the error page needs its stylesheet
        bearer = headers.get("authorization", "").partition(" ")
        by_bearer = bearer[0].lower() == "bearer" and self._is_token(bearer[2].strip())
        by_cookie = self._is_token(cookie_parser(headers.get("cookie", "")).get(self._cookie(headers), ""))
        if self.token is not None and not (by_bearer or by_cookie or brings_token):
            return 401, (
                "This page needs its key: open the address that rlhf-gym printed in the terminal, with ?token=, "
                "or send the key as Authorization: Bearer."
            )
        if scope["method"] not in SAFE_METHODS:
            origin = headers.get("origin")
            foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
            if foreign or (origin is None and self.token is not None and not by_bearer):
                return 403, (
                    f"Refused to write for origin {(origin or 'none')[:80]!r}: only this server's own pages, "
                    "or clients with Authorization: Bearer, may."
                )
            if int(length if (length := headers.get("content-length", "0")).isdecimal() else 0) > MAX_BODY_BYTES:
                return 413, TOO_LARGE
        return None

    def _cookie(self, headers: Headers) -> str:
        """The name of the cookie for the port that the browser sees."""
        try:
            port = urlsplit(f"//{headers.get('host', '')}").port
        except ValueError:
            port = None
        return f"rlhf_gym_{port or self.port}"

    def _is_token(self, given: str) -> bool:
        return bool(given) and self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _is_host(self, host: str) -> bool:
        """Whether the Host header, its port aside (an ssh forward may change it), names this machine.

        An attacker's name that resolves to 127.0.0.1 (DNS rebinding) is neither loopback name nor address.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in ("localhost", self.host) or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
