"""The pages and their HTTP API: `create_app(data_dir)`. Each route parses, asks the store once, and renders."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy.exc
from fastapi import Depends, FastAPI, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request

import rlhf_gym.store as store
from rlhf_gym import catalog, faults
from rlhf_gym.config import MAX_GOAL_CHARS, UserError
from webui import charts, dashboard, history, metrics, shelf, steering
from webui.bodies import MAX_COUNT, MAX_ID, Body
from webui.found import Found, readable
from webui.security import HEADERS, Guard
from webui.state import (
    Batch,
    Goal,
    Labeled,
    Listing,
    Open,
    Pair,
    Sessions,
    State,
    counts_from,
    is_coming,
    read_batch,
    read_goals,
    read_recent,
    sheet_path,
    sheet_version,
    show_pairs,
)

HERE = Path(__file__).parent
POLL_SECONDS = 0.25
RECONNECT_MS = 1000
LABEL_ID = rf"^[A-Za-z0-9._-]{{1,{store.MAX_LABEL_ID_CHARS}}}$"
ID_RULE = (
    f"made by the client, so that a retry counts once: up to {store.MAX_LABEL_ID_CHARS} letters, digits, dots, dashes "
    "and underscores, never used before in this session, neither by a label nor by an undo"
)


class Said(Body):
    """What the person said of a pair."""

    id: str = Field(pattern=LABEL_ID, description=ID_RULE)
    created: float | None = Field(None, description="State.created: refused (409) if another session has the name now")


class LabelBody(Said):
    pair: int = Field(ge=1, le=MAX_ID, description="its id")
    choice: Literal["left", "right", "equal", "skip"] = Field(description="the better one; skip: cannot tell")
    strength: Literal["normal", "strong"] = Field("normal", description="strong: much better")
    response_ms: int | None = Field(None, ge=0, lt=2**31, description="from the pair's first frame to the key press")
    replays: int | None = Field(None, ge=0, le=MAX_COUNT, description="how often the clips began anew")
    pauses: int | None = Field(None, ge=0, le=MAX_COUNT, description="how often they were stopped")
    hidden_ms: int | None = Field(None, ge=0, lt=2**31, description="of response_ms: the page was not to be seen")


class UndoBody(Said):
    pass


class GoalBody(Body):
    text: str = Field(max_length=MAX_GOAL_CHARS)


class LabelAnswer(BaseModel):
    label: int = Field(description="row of the label, committed to disk")
    counts_from: int = Field(description="the first round whose training sees it; after the pair's own, it came late")


class UndoAnswer(BaseModel):
    label: int = Field(description="newest label row")
    pair: Pair = Field(description="the pair whose label was taken back")


class ForgetAnswer(BaseModel):
    until_label: int = Field(description="this label and those before it no longer count")


class Problem(BaseModel):
    detail: str = Field(description="one sentence: what, the value, what to do")


def refuse_another(found: Open, body: Said) -> None:
    """Pairs count from 1 in every session: what was said of one session's is nothing to another of the same name."""
    created = float(found.session.header().get("created") or 0.0)
    if body.created is not None and body.created != created:
        name = found.session.name
        raise HTTPException(409, f"Session {name!r} is another one than when this was said: load its page anew.")


def create_app(
    data_dir: Path,
    token: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    stop: threading.Event | None = None,
) -> FastAPI:
    """The application over a data directory.

    Args:
        token: what requests have to show (see `security.Guard`); None asks for nothing.
        host: a name, besides loopback names and addresses, under which the pages may be asked for.
        port: names the cookie.
        stop: event streams end when it is set.
    """
    sessions = Sessions(Path(data_dir))
    stopping = stop or threading.Event()
    templates = Jinja2Templates(HERE / "templates")
    templates.env.filters["sparkline"] = charts.sparkline
    templates.env.filters["ago"] = charts.ago
    templates.env.globals["plotly_url"] = metrics.plotly_url
    app = FastAPI(
        title="rlhf-gym",
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Problem}, 503: {"model": Problem}},
        description=__doc__,
    )
    app.state.sessions = sessions
    app.mount("/static", Static(directory=HERE / "static"), name="static")

    def problem(request: Request, status: int, detail: str) -> Response:
        """A page's problem is a page, the API's is JSON."""
        if request.url.path.startswith(("/api/", "/openapi")) or "html" not in request.headers.get("accept", ""):
            return JSONResponse({"detail": detail}, status)
        return templates.TemplateResponse(request, "error.html", {"status": status, "detail": detail}, status)

    app.add_middleware(Guard, token=token, port=port, host=host, refuse=problem)

    @app.exception_handler(StarletteHTTPException)
    async def http_problem(request: Request, error: StarletteHTTPException) -> Response:
        detail = error.detail
        if error.status_code == 404 and detail == "Not Found":
            detail = f"There is nothing at {request.url.path[:120]!r}: the list of sessions is at /."
        return problem(request, error.status_code, detail)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(request, 422, sentence(error))

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return problem(request, 409, str(error))

    @app.exception_handler(sqlalchemy.exc.DatabaseError)
    @app.exception_handler(sqlalchemy.exc.TimeoutError)  # so many wait for a locked one that no connection is left
    async def database_error(request: Request, error: sqlalchemy.exc.SQLAlchemyError) -> Response:
        reason = getattr(error, "orig", "too many wait for it")
        detail = f"The session's database cannot be used just now ({reason}): nothing was changed, try again."
        return problem(request, 503, detail)

    @app.exception_handler(Exception)
    async def own_mistake(request: Request, error: Exception) -> Response:
        """Answered from outside the middleware, so it puts the headers on itself; the traceback is logged."""
        detail = f"A mistake in rlhf-gym itself ({type(error).__name__}): the terminal says more, the list is at /."
        response = problem(request, 500, detail)
        response.headers.update({**HEADERS, "Cache-Control": "no-store"})
        return response

    @app.exception_handler(OSError)
    async def machine_error(request: Request, error: OSError) -> Response:
        detail = faults.sentence(error, sessions.data_dir)
        return problem(request, 503, detail or f"The server's machine would not do that ({error}): try again.")

    for part in (dashboard, history, shelf, steering):
        app.include_router(part.router)

    # ------------------------------------------------------------------ pages

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def list_page(request: Request) -> Response:
        data_dir = sessions.data_dir
        context = {
            "sessions": sessions.summaries(disk=False),
            "data_dir": data_dir,
            "start": sessions.command("run CartPole-v1"),
            "trash": data_dir.resolve() / catalog.TRASH,
        }
        return templates.TemplateResponse(request, "sessions.html", context)

    @app.get("/s/{session}", response_class=HTMLResponse, include_in_schema=False)
    def session_page(request: Request, found: Found) -> Response:
        return templates.TemplateResponse(request, "session.html", {"state": found.state()})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs_page(request: Request) -> Response:
        return templates.TemplateResponse(request, "docs.html", {"api": app.openapi()})

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> Response:
        return FileResponse(HERE / "static" / "icon.svg", media_type="image/svg+xml")

    # ------------------------------------------------------------------ reading

    @app.get("/api/sessions")
    def list_sessions() -> Listing:
        """All sessions of the data directory, newest first, as `rlhf-gym list --json` prints them."""
        return Listing.model_validate({"sessions": sessions.summaries()})

    @app.get("/api/s/{session}")
    def get_state(found: Found) -> State:
        """What the session is doing, and what it waits for."""
        return found.state()

    @app.get("/api/s/{session}/events", response_class=EventSourceResponse)
    async def stream_states(found: Annotated[Open, Depends(readable)]) -> AsyncIterator[ServerSentEvent]:
        """The state now and again whenever it changes, as server-sent events: the data of each is a State as JSON.

        The stream has no other events and needs no Last-Event-ID: when it ends, ask again. It ends with the server
        and with the session.
        """
        sent = ""
        while not stopping.is_set():
            try:
                state = (await run_in_threadpool(found.state, fresh=not sent)).model_dump_json()
            except (UserError, sqlalchemy.exc.DatabaseError, sqlalchemy.exc.TimeoutError):
                return  # the session is gone, or its database cannot be used: who asks for the state is told
            if state != sent:
                sent = state
                yield ServerSentEvent(raw_data=state, retry=RECONNECT_MS)
            await asyncio.sleep(POLL_SECONDS)

    @app.get("/api/s/{session}/pairs")
    def next_pairs(
        found: Found,
        after: Annotated[int | None, Query(ge=1, le=MAX_ID, description="only pairs shown after this one")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    ) -> Batch:
        """The next unlabeled pairs of the batch, in the order to show them; none while nothing is to be labeled.

        To fetch ahead, ask for those after the last one you have.
        """
        return read_batch(found.session, after, limit)

    @app.get("/api/s/{session}/labels")
    def recent_labels(found: Found, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> list[Labeled]:
        """The pairs that were labeled last, oldest first, each with its label; post another label to change one."""
        return read_recent(found.session, limit)

    @app.get("/api/s/{session}/goals")
    def goal_history(found: Found) -> list[Goal]:
        """Every goal this session has had, oldest first."""
        return read_goals(found.session)

    @app.get(
        "/api/s/{session}/clips/{clip}.png",
        response_class=FileResponse,
        responses={204: {"description": "still to be drawn"}},
    )
    def clip_sheet(found: Found, clip: Annotated[int, PathParameter(ge=1, le=MAX_ID)], v: str = "") -> Response:
        """The sprite sheet of a clip (see Clip); where the answer says so, it may be kept for ever.

        204 while it is still to be drawn, which begins with the first pairs of a batch: ask again.
        """
        row = found.session.clips([clip]).get(clip)
        coming = row is not None and is_coming(found.session, row)
        path = sheet_path(found.session, row) if row else None
        if path is None and coming:
            return Response(status_code=204, headers={"Retry-After": "1", "Cache-Control": "no-store"})
        if row is None or path is None:
            raise HTTPException(404, f"Session {found.session.name!r} has no picture of a clip {clip}.")
        current = v == sheet_version(found.session, row)
        caching = "private, max-age=31536000, immutable" if current else "private, no-cache"
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": caching})

    @app.get(
        "/api/s/{session}/videos/{name}.mp4",
        response_class=FileResponse,
        responses={204: {"description": "none at this moment"}},
    )
    def video(found: Found, name: Annotated[str, PathParameter(pattern=r"^(live|start|r\d{3,9})$")]) -> Response:
        """A video of the agent after a round: start, r000, r001 …, or live; answers byte ranges.

        204 where a live one that the state still told of has made room: the next comes soon.
        """
        number = int(name[1:]) if name[0] == "r" else store.START
        video = found.session.live_video() if name == "live" else found.session.video(number)
        path = found.session.file(f"videos/{name}.mp4")
        if name == "live" and not os.path.lexists(video):
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        if path is None or video.name != path.name:
            raise HTTPException(404, f"Session {found.session.name!r} has no video {name}.mp4.")
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private, no-cache"})

    # ------------------------------------------------------------------ writing

    @app.post("/api/s/{session}/labels", status_code=201, responses={200: {"model": LabelAnswer}})
    def add_label(found: Found, body: LabelBody, response: Response) -> LabelAnswer:
        """Stores a label; answered once it is safe on disk. The same id again changes nothing (200).

        So after a lost answer or one of 5xx, post the same again until it is answered; 4xx is a refusal for good. A
        further label of a pair, of any round, under a new id, replaces its earlier one.
        """
        refuse_another(found, body)
        known = found.session.last_label_id()
        try:
            row = found.session.add_label(
                body.id, body.pair, body.choice, strength=body.strength, response_ms=body.response_ms,
                replays=body.replays, pauses=body.pauses, hidden_ms=body.hidden_ms,
            )  # fmt: skip
        except KeyError:
            detail = f"Session {found.session.name!r} has no pair {body.pair}: ask for the next ones."
            raise HTTPException(404, detail) from None
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        response.status_code = 200 if row <= known else 201
        return LabelAnswer(label=row, counts_from=counts_from(found.session))

    @app.post("/api/s/{session}/undo")
    def undo(found: Found, body: UndoBody) -> UndoAnswer:
        """Takes back the newest label of the batch that is being labeled. The same id again changes nothing.

        409 where there is none, or where the batch has gone into training: then post another label instead.
        """
        refuse_another(found, body)
        try:
            pair = found.session.take_back(body.id)
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        return UndoAnswer(label=found.session.last_label_id(), pair=show_pairs(found.session, [pair])[0])

    @app.post("/api/s/{session}/goal")
    def set_goal(found: Found, body: GoalBody) -> State:
        """Sets the sentence above the clips; earlier ones are kept as events."""
        found.session.add_event("goal", found.session.where().round, text=" ".join(body.text.split()))
        return found.state()

    @app.post("/api/s/{session}/forget")
    def forget(found: Found) -> ForgetAnswer:
        """No label given so far counts any more, as when the goal has changed; they stay on disk."""
        return ForgetAnswer(until_label=found.session.forget(found.session.where().round))

    @app.post("/api/s/{session}/close")
    def close_batch(found: Found) -> State:
        """Ends the batch early: the loop trains on what is labeled so far."""
        where = found.session.where()
        if where.phase != "label":
            detail = f"There is no batch to close: session {found.session.name!r} is in phase {where.phase}."
            raise HTTPException(409, detail)
        found.session.add_event("close", where.round, attempt=where.attempt)
        return found.state()

    return app


class Static(StaticFiles):
    """Static files that the browser asks about each time (304 mostly): no build step, so no names with hashes."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    value = first.get("input")
    shown = "" if first["type"] == "missing" or isinstance(value, dict) else f" {str(value)[:60]!r}"
    return f"{place}{shown}: {first['msg'][0].lower()}{first['msg'][1:]}. See /docs."
