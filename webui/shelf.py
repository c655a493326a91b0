"""Order among the sessions: titles, the archive, the trash, a thumbnail of each."""

from __future__ import annotations

import io
import re
from typing import Annotated

from fastapi import APIRouter, HTTPException, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.requests import Request

from rlhf_gym import catalog
from rlhf_gym.store import Clip, Session
from webui.bodies import Body
from webui.found import Found
from webui.state import Sessions, picture_version, sheet_path

MAX_TITLE_CHARS = 80
THUMBNAIL_WIDTH = 320  # pixels: twice what the list shows, for dense screens
THUMBNAIL_HEIGHT = 320
THUMBNAIL_AT = 0.6  # of the clip: by then something has happened

router = APIRouter()


class TitleBody(Body):
    text: str = Field(max_length=MAX_TITLE_CHARS, description="what to call the session; empty: by its name")


class ArchiveBody(Body):
    archived: bool = Field(description="true puts it into the archive, false takes it back")


class Place(BaseModel):
    """How the list shows a session."""

    name: str
    title: str = Field(description="empty: the name")
    archived: bool


class Trashed(BaseModel):
    moved_to: str = Field(description="the directory on the server's machine; moved back, the session is back")


@router.get("/api/s/{session}/thumbnail.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
def thumbnail(found: Found, v: str = "") -> Response:
    """One frame of the newest clips; the address that the list gives out may be kept for ever."""
    clip = found.session.newest_picture()
    png = cut_out(found.session, clip) if clip else None
    if clip is None or png is None:
        raise HTTPException(404, f"Session {found.session.name!r} has no picture of its clips.")
    current = v == picture_version(found.session, clip)
    caching = "private, max-age=31536000, immutable" if current else "private, no-cache"
    return Response(png, media_type="image/png", headers={"Cache-Control": caching})


@router.post("/api/s/{session}/title")
def set_title(found: Found, body: TitleBody) -> Place:
    """Gives the session a title; its name stays, and so do its directory and its addresses."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", body.text).split())
    session = found.session
    if text != session.wishes().title:
        session.add_event("title", session.where().round, text=text)
    return place(session)


@router.post("/api/s/{session}/archive")
def archive(found: Found, body: ArchiveBody) -> Place:
    """Puts the session into the archive, or takes it back: the list keeps it apart, all else stays as it is."""
    session = found.session
    if body.archived != session.wishes().archived:
        session.add_event("archived", session.where().round, archived=body.archived)
    return place(session)


@router.post("/api/s/{session}/delete")
def delete(request: Request, session: Annotated[str, PathParameter()]) -> Trashed:
    """Moves the session's directory to the trash of the data directory; nothing is erased.

    409 while a loop runs it. A session that cannot be read can be deleted, too.
    """
    sessions: Sessions = request.app.state.sessions
    if session not in catalog.session_names(sessions.data_dir):
        raise HTTPException(404, f"There is no session {session[:80]!r} to delete: the list of sessions is at /.")
    return Trashed(moved_to=str(sessions.trash(session).resolve()))


def place(session: Session) -> Place:
    wishes = session.wishes()
    return Place(name=session.name, title=wishes.title, archived=wishes.archived)


def cut_out(session: Session, clip: Clip) -> bytes | None:
    """A frame of a clip's sheet as a small PNG; None where the sheet is gone, damaged, or another than the row says."""
    from rlhf_gym.sheets import open_sheet  # numpy, which no other answer needs

    sheet = open_sheet(sheet_path(session, clip), clip)
    if sheet is None:
        return None
    picture = sheet.frame(int(THUMBNAIL_AT * sheet.frames))
    picture.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
