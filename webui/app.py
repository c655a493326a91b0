"""The pages and their HTTP API: `create_app(data_dir)`. Each route parses, asks the store once, and renders."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy.exc
from fastapi import Depends, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request

from rlhf_gym import catalog, faults
from rlhf_gym.config import UserError
from webui import charts, dashboard, history, labeling, metrics, shelf, steering
from webui.found import Found, readable
from webui.security import HEADERS, Guard
from webui.state import Listing, Open, Sessions, State

HERE = Path(__file__).parent
POLL_SECONDS = 0.25
RECONNECT_MS = 1000


class Problem(BaseModel):
    detail: str = Field(description="one sentence: what, the value, what to do")


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

    for part in (labeling, dashboard, history, shelf, steering):
        app.include_router(part.router)
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
