"""The session that an address names, as the routes get it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException
from starlette.requests import Request

from rlhf_gym import catalog
from rlhf_gym.config import UserError
from webui.state import Open, Sessions


def find(request: Request, session: str) -> Open:
    sessions: Sessions = request.app.state.sessions
    try:
        return sessions.open(session)
    except UserError as error:
        there = catalog.NAME.fullmatch(session) and (sessions.data_dir / session / "config.json").is_file()
        raise HTTPException(409 if there else 404, str(error)) from None


Found = Annotated[Open, Depends(find)]


def readable(found: Found) -> Open:
    """As `Found`, once its state could be read: before a stream begins, a failure can still be told."""
    found.state()
    return found
