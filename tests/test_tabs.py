"""Nothing is lost in the browser: several tabs of one server, a label sent twice, a server or a database that is away."""

from __future__ import annotations

import time
from typing import Any

import pytest
from test_webui import press, serve, shown, wait_for

from webui.state import Open

__all__ = ["serve"]  # a fixture


def open_tabs(context: Any, server: Any, *names: str) -> list[Any]:
    """A tab of each of these sessions; in a headless Chromium all of them count as visible."""
    tabs = [context.new_page() for _ in names]
    for tab, name in zip(tabs, names, strict=True):
        tab.goto(server.page(name))
    return tabs


def follow(tab: Any, pair: int, seconds: float = 5.0) -> None:
    """Waits until the tab shows this pair."""
    tab.wait_for_selector(f"#stage[data-ready=true][data-pair='{pair}']", timeout=1000 * seconds)


# ---------------------------------------------------------------------------------------------- more tabs than six


def test_eight_tabs_of_a_session_all_work(context: Any, serve: Any, make_session: Any) -> None:
    """A browser keeps six connections to a server, and an event stream takes one for good."""
    loop, server = make_session(pairs=4), serve()
    first, second, third, _ = (p.id for p in loop.session.pairs(0, 0))
    tabs = open_tabs(context, server, *["cartpole-1"] * 8)
    assert [shown(tab) for tab in tabs] == [first] * 8
    tabs[-1].click("#views [data-to=dashboard]")
    tabs[-1].wait_for_selector("#watch-view:visible")
    press(tabs[6], "ArrowLeft")
    wait_for(lambda: loop.labels(0)[0] == "left")
    for tab in tabs[:7]:
        follow(tab, second)
    for tab in tabs[:3]:
        tab.close()  # the one that came first, too
    press(tabs[5], "ArrowRight")
    wait_for(lambda: loop.labels(0)[1] == "right")
    for tab in tabs[3:7]:
        follow(tab, third)
    tabs[7].wait_for_selector("#labels-count:has-text('2 pairs')", timeout=3000)
    tabs[6].goto(server.url)
    assert tabs[6].inner_text(".card h2") == "cartpole-1"


def test_tabs_of_many_sessions_leave_connections_free(
    context: Any, serve: Any, make_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"cartpole-{i}" for i in range(1, 7)]
    loops, server = [make_session(name, pairs=2) for name in names], serve()
    read, asked = Open.state, []

    def state(self: Open, fresh: bool = True) -> Any:
        asked.append((self.session.name, fresh))
        return read(self, fresh)

    monkeypatch.setattr(Open, "state", state)

    def streamed() -> list[str]:
        """Sessions whose event stream is open: it looks four times a second for something new."""
        asked.clear()
        time.sleep(0.6)
        return sorted({name for name, fresh in asked if not fresh})

    tabs = open_tabs(context, server, *names)
    for tab, loop in zip(tabs, loops, strict=True):
        first, second = (p.id for p in loop.session.pairs(0, 0))
        assert shown(tab) == first
        loop.session.add_label("elsewhere", first, "left")
        follow(tab, second, 3)
    assert streamed() == names[:3]
    for tab in tabs[:2]:
        tab.close()
    wait_for(lambda: streamed() == names[2:5])
    press(tabs[5], "ArrowUp")  # asked about every second
    wait_for(lambda: loops[5].labels(0) == ["left", "equal"])
    tabs[5].wait_for_selector("#watch-view", timeout=3000)


@pytest.mark.parametrize("worker", ["none", "broken"])
def test_a_browser_without_shared_workers(page: Any, serve: Any, make_session: Any, console: Any, worker: str) -> None:
    console.allow("status of 404")
    loop, server = make_session(pairs=2), serve()
    page.add_init_script(
        "delete window.SharedWorker;"
        if worker == "none"
        else "const Real = SharedWorker; SharedWorker = class extends Real { constructor() { super('/static/none.js'); } };"
    )
    page.goto(server.page("cartpole-1"))
    first, second = (p.id for p in loop.session.pairs(0, 0))
    assert shown(page) == first
    loop.session.add_label("elsewhere", first, "left")
    follow(page, second)
