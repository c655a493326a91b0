"""Whether what a session names may be run: its environment's module, its environment's settings, its score function;
and whether it may log to your account elsewhere.

One's own sessions are signed, with a key that stays in the user's configuration directory, so that they go on
without a question, copied and moved ones too. A session that came from elsewhere, or whose settings were changed by
something else, is shown and has to be confirmed before anything of it is imported. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import sys
from typing import Any

from rlhf_gym.config import Config, UserError
from rlhf_gym.home import load_secret
from rlhf_gym.store import Session

KEY = "session-key"
NAMES = {
    "env_id": "environment", "env_kwargs": "settings of the environment", "score": "score function",
    "track": "logging to your account at Weights & Biases",
}  # fmt: skip
MAX_CONFIRMED = 100  # signatures
MAX_SHOWN = 200  # characters of each, in one sentence


def brings(config: Config) -> dict[str, Any]:
    """What runs code, or tells code what to do, by setting; empty for a registered environment as it is."""
    given = {name: value for name in NAMES if (value := getattr(config, name))}
    return {} if set(given) == {"env_id"} and ":" not in config.env_id else given


def sign(config: Config) -> str:
    """The signature over what the session brings; "" where it brings nothing.

    Raises:
        UserError: the key can neither be read nor made.
    """
    given = brings(config)
    if not given:
        return ""
    key = load_secret(KEY, "the key of your sessions").encode()
    text = json.dumps(given, sort_keys=True, allow_nan=False)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def signed(config: Config) -> dict[str, str]:
    """The entry of a session's header that makes it one's own; none where there is no key, and it is asked about."""
    with contextlib.suppress(UserError):
        return {"signature": sign(config)}
    return {}


def require(session: Session, confirmed: bool) -> None:
    """Returns if the session is one's own, or brings nothing, or is confirmed now; a confirmed one becomes one's own.

    Args:
        confirmed: --trust was given.

    Raises:
        UserError: it is not, and nobody is there to confirm it, or they declined.
    """
    config = session.config
    given = brings(config)
    if not given or (not confirmed and is_signed(session, config)):
        return
    if not confirmed:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            shown = ", ".join(f"{NAMES[name]} {quote(value)[:MAX_SHOWN]}" for name, value in given.items())
            raise UserError(
                f"Session {session.name!r} was not made by you on this machine and would run code of its own "
                f"({shown}): look at that, and confirm it with --trust."
            )
        if not ask(session.name, given):
            raise UserError(f"Session {session.name!r} was not confirmed: nothing of it was run.")
    if (mine := signed(config).get("signature")) and mine not in (others := confirmed_by(session)):
        with contextlib.suppress(OSError):  # on a medium that cannot be written it is asked about again
            session.write_config(config, confirmed=[*others, mine])
            print("Confirmed; it is not asked about again, until these settings change.", file=sys.stderr)


def is_signed(session: Session, config: Config) -> bool:
    found, mine = [session.header().get("signature"), *confirmed_by(session)], sign(config).encode()
    return any(isinstance(s, str) and hmac.compare_digest(s.encode("utf-8", "replace"), mine) for s in found)


def confirmed_by(session: Session) -> list[Any]:
    """The signatures of those who did not make the session and confirmed it."""
    found = session.header().get("confirmed")
    return found[:MAX_CONFIRMED] if isinstance(found, list) else []


def ask(name: str, given: dict[str, Any]) -> bool:
    """Shows what a session brings, on the terminal, and asks."""
    print(f"Session {name!r} was not made by you on this machine. It would run:", file=sys.stderr)
    for setting, value in given.items():
        print(f"  {NAMES[setting]}: {quote(value)}", file=sys.stderr)
    print("Code of a stranger may do whatever you may. Run it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def quote(value: Any) -> str:
    """As JSON in ASCII, so that no control character reaches the terminal."""
    return json.dumps(value, allow_nan=False)
