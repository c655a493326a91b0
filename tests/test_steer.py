"""The person at the wheel: what the session does next when they say so, and that a running loop heeds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import TINY, Spawned

from rlhf_gym import catalog, store
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.collect import choose_pairs, looks
from rlhf_gym.config import UserError
from rlhf_gym.control import Control, Replanned, Stopped
from rlhf_gym.segments import Segment
from rlhf_gym.steer import other_clips, star, steer
from rlhf_gym.store import START, Where
from rlhf_gym.wishes import LONGER, LONGEST


def phase(session: store.Session) -> tuple[int, int, str]:
    where = session.where()
    return where.round, where.attempt, where.phase


def label_all(session: store.Session, number: int, attempt: int = 0, choice: str = "left") -> None:
    for pair in session.pairs(number, attempt):
        session.add_label(f"{number}-{pair.id}", pair.id, choice)


# ---------------------------------------------------------------------------------------------- what comes next


def test_going_back_drops_the_batch_and_keeps_its_labels(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    label_all(session, 0)
    loop.record(0, 10.0)
    pairs = loop.collect(1, 4)
    session.add_label("one", pairs[0].id, "right")
    assert phase(session) == (1, 0, "label")
    steer(session, "back", START)
    assert phase(session) == (1, 1, "collect")
    assert session.wishes().plan(1).agent == START
    loop.collect(1, 4, attempt=1)
    assert phase(session) == (1, 1, "label")
    label_all(session, 1, 1)
    assert phase(session) == (1, 1, "train_reward")
    assert sum(p.choice is not None for p in session.pairs()) == 4 + 1 + 4
    with pytest.raises(UserError, match="goes on from the untrained agent already"):
        steer(session, "back", START)
    steer(session, "back", 0)  # a change of mind
    assert phase(session) == (1, 2, "collect")


def test_going_back_while_the_agent_is_trained_or_clips_are_collected(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    label_all(session, 0)
    loop.record(0, 10.0)
    assert phase(session) == (1, 0, "collect")
    steer(session, "back", START)  # this very batch, whether it is finished or not, shows another agent
    assert phase(session) == (1, 1, "collect")
    loop.collect(1, 4)  # it was finished all the same
    assert phase(session) == (1, 1, "collect")
    loop.collect(1, 4, attempt=1)
    label_all(session, 1, 1)
    session.partial(1, "train_agent").write_bytes(b"training")
    assert phase(session) == (1, 1, "train_agent")
    steer(session, "back", 0)
    assert phase(session) == (1, 2, "collect")


def test_training_longer_is_a_round_of_practice_or_another_part(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    for do in ("longer", "anew"):
        with pytest.raises(UserError, match="There is no reward model yet"):
            steer(session, do)
    label_all(session, 0)
    session.partial(0, "train_agent").write_bytes(b"training")
    steer(session, "longer")
    assert phase(session) == (0, 0, "train_agent")
    assert session.wishes().longer(0) == 1
    session.partial(0, "train_agent").unlink()
    loop.record(0, 10.0)
    loop.collect(1, 4)
    steer(session, "longer")
    assert session.where() == Where(1, 0, "train_agent", 4, 0)
    assert (session.wishes().plan(1).agent, session.wishes().plan(1).practice) == (0, True)
    loop.record(1, 20.0)
    assert phase(session) == (2, 0, "collect")
    steer(session, "anew")
    assert phase(session) == (2, 0, "train_agent")
    assert session.wishes().plan(2).agent == START


def test_anew_in_training_keeps_what_the_labels_taught(make_session: Any) -> None:
    session = make_session(pairs=4).session
    label_all(session, 0)
    for training in ("train_reward", "train_agent"):
        session.partial(0, training).write_bytes(b"training")
        steer(session, "anew")
        assert phase(session) == (0, 0, training)
        assert not session.wishes().plan(0).practice


def test_a_finished_session_can_go_on(make_session: Any) -> None:
    loop = make_session(pairs=4, rounds=1)
    session = loop.session
    with pytest.raises(UserError, match="has rounds left to do"):
        steer(session, "more")
    label_all(session, 0)
    loop.record(0, 10.0)
    assert phase(session) == (0, 0, "finished")
    steer(session, "longer")
    assert phase(session) == (1, 0, "train_agent")
    loop.record(1, 20.0)
    assert phase(session) == (1, 0, "finished")
    steer(session, "more")
    assert phase(session) == (2, 0, "collect")
    steer(session, "back", START)
    assert phase(session) == (2, 1, "collect")


def test_a_change_of_mind_in_practice_stays_practice(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    label_all(session, 0)
    loop.record(0, 10.0)
    steer(session, "longer")
    assert phase(session) == (1, 0, "train_agent")
    session.partial(1, "train_agent").write_bytes(b"training")
    steer(session, "longer")
    assert session.wishes().longer(1) == 1
    steer(session, "anew")  # on the reward model there is: nothing is collected, nothing to be labeled
    assert phase(session) == (1, 0, "train_agent")
    assert session.wishes().longer(1) == 0  # that was said of the agent that is gone
    steer(session, "back", 0)
    assert phase(session) == (1, 0, "collect")


def test_longer_after_going_back_trains_that_agent(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    for number in (0, 1):
        label_all(session, number)
        loop.record(number, 10.0)
        loop.collect(number + 1, 4)
    steer(session, "back", 0)
    loop.collect(2, 4, attempt=1)
    steer(session, "longer")
    plan = session.wishes().plan(2)
    assert (plan.agent, plan.practice) == (0, True)


def test_going_on_from_the_newest_agent_of_a_finished_session(make_session: Any) -> None:
    loop = make_session(pairs=4, rounds=1)
    label_all(loop.session, 0)
    loop.record(0, 10.0)
    steer(loop.session, "back", 0)
    assert phase(loop.session) == (1, 0, "collect")


def test_other_clips(make_session: Any) -> None:
    loop = make_session(pairs=4)
    session = loop.session
    with pytest.raises(UserError, match="Say what the clips should be"):
        other_clips(session, False, False)
    session.add_label("one", session.pairs(0)[0].id, "equal")
    other_clips(session, True, False)
    assert phase(session) == (0, 1, "collect")
    assert (session.wishes().clip_factor, session.wishes().differ) == (LONGER, False)
    with pytest.raises(UserError, match="no batch to collect anew"):
        other_clips(session, True, False)
    loop.collect(0, 4, attempt=1)
    other_clips(session, False, True)
    assert (session.wishes().clip_factor, session.wishes().differ) == (LONGER, True)
    loop.collect(0, 4, attempt=2)
    label_all(session, 0, 2, "equal")
    assert phase(session) == (0, 3, "collect")  # nothing to learn from: once more by itself
    loop.collect(0, 4, attempt=3)
    for attempt in range(3, 6):
        other_clips(session, True, False)
        loop.collect(0, 4, attempt=attempt + 1)
    with pytest.raises(UserError, match="4 times as long"):
        other_clips(session, True, False)
    assert session.wishes().clip_factor == LONGEST
    label_all(session, 0, 6, "skip")
    assert phase(session) == (0, 6, "train_reward")  # it has had its one more time


def test_a_star_and_what_cannot_be(make_session: Any) -> None:
    session = make_session(pairs=4).session
    star(session, START)
    assert session.wishes().star == START
    star(session, None)
    assert session.wishes().star is None
    for wrong in (lambda: star(session, 3), lambda: steer(session, "back", 3), lambda: steer(session, "back", None)):
        with pytest.raises(UserError, match="There is no agent of round"):
            wrong()
    for do in ("pause", "continue", "stop"):
        with pytest.raises(UserError, match=f"Nothing runs session 'cartpole-1' that could {do}"):
            steer(session, do)
    with session.lock(), pytest.raises(UserError, match="nothing to pause"):
        steer(session, "pause")


def test_what_was_said_to_an_earlier_loop_is_no_matter_of_the_next(make_session: Any) -> None:
    session = make_session(pairs=0).session
    with session.lock():
        steer(session, "pause")
        steer(session, "stop")
    control = Control(session)
    control.check()
    assert not control.paused()
    with session.lock():
        steer(session, "pause")
        control.check()
        assert control.paused()
        steer(session, "continue")
        control.check()
        assert not control.paused()
        steer(session, "stop")
    with pytest.raises(Stopped):
        control.check()
    control = Control(session, since=0)  # it began to run before any of that was said
    with pytest.raises(Stopped):
        control.check()
    control = Control(session)
    session.add_event("plan", 0, agent=START, practice=False)
    with pytest.raises(Replanned):
        control.check()
    control.next_turn()
    control.check()


# ---------------------------------------------------------------------------------------------- pairs that differ more


def segment(values: np.ndarray, ended: int = 0) -> Segment:
    steps = len(values)
    absorbing = np.arange(steps) >= steps - ended
    return Segment(values, np.zeros(steps, np.int64), np.zeros(steps, np.float32), absorbing, {})


def test_pairs_that_look_different() -> None:
    rng = np.random.default_rng(0)
    clips = [segment(np.tile(rng.normal(10 * (i % 2), 1, 3), (5, 1)).astype(np.float32)) for i in range(40)]
    rows = choose_pairs(40, 8, None, 0.5, rng, looks(clips))
    assert sorted(r["kind"] for r in rows) == ["different"] * 6 + ["uniform"] * 2
    assert all(r["left"] % 2 != r["right"] % 2 for r in rows if r["kind"] == "different")
    used = [i for r in rows for i in (r["left"], r["right"])]
    assert len(set(used)) == 16


@pytest.mark.parametrize("shape", [(4,), (4, 84, 84), (1, 20, 33)])
def test_looks_are_numbers_for_any_observation(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    dtype = np.uint8 if len(shape) == 3 else np.float32
    clips = [segment(rng.uniform(0, 255, (6, *shape)).astype(dtype), ended=i) for i in range(3)]
    clips.append(segment(np.full((6, *shape), 7, dtype)))
    table = looks(clips)
    assert table.shape[0] == 4
    assert np.isfinite(table).all()
    assert np.allclose(table.mean(0), 0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- a loop that runs


def test_a_finished_session_can_be_deleted_and_the_pages_stay(tmp_path: Path) -> None:
    settings = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--rounds": "1"}
    del settings["--labeler"]
    words = [word for pair in settings.items() for word in pair]
    with Spawned("run", "CartPole-v1", "--session", "one", "--no-browser", *words, cwd=tmp_path) as one:
        client = one.client()
        wait_for(lambda: client.get("/api/s/one").json()["view"] == "label")
        for i, pair in enumerate(client.get("/api/s/one/pairs", params={"limit": 100}).json()["pairs"]):
            body = {"id": f"label-{pair['id']}", "pair": pair["id"], "choice": ("left", "right")[i % 2]}
            client.post("/api/s/one/labels", json=body)
        one.wait_for("All rounds are done")
        assert client.post("/api/s/one/delete").status_code == 200
        time.sleep(1.2)
        assert client.get("/api/sessions").json() == {"sessions": []}
        assert one.process.poll() is None
        client.close()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def test_a_running_loop_heeds_the_person(tmp_path: Path) -> None:
    settings = dict(zip(TINY[::2], TINY[1::2], strict=True))
    settings |= {"--agent-steps-per-round": "4096", "--clip-seconds": "0.2", "--eval-episodes": "1"}
    del settings["--labeler"], settings["--rounds"]
    words = [word for pair in settings.items() for word in pair]
    with Spawned("run", "CartPole-v1", "--session", "one", "--no-browser", *words, cwd=tmp_path) as one:
        client = one.client()

        def state() -> dict[str, Any]:
            return client.get("/api/s/one").json()

        def told(path: str, **body: Any) -> dict[str, Any]:
            answer = client.post(f"/api/s/one/{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def label_batch(number: int, attempt: int = 0) -> None:
            wait_for(lambda: (s := state())["view"] == "label" and (s["round"], s["attempt"]) == (number, attempt))
            for i, pair in enumerate(client.get("/api/s/one/pairs", params={"limit": 100}).json()["pairs"]):
                body = {"id": f"label-{pair['id']}", "pair": pair["id"], "choice": ("left", "right")[i % 2]}
                assert client.post("/api/s/one/labels", json=body).status_code == 201

        def training() -> dict[str, Any]:
            found = (p := state()["progress"] or {}).get("phase") == "train_agent" and p["done"] and p
            return found or {}

        label_batch(0)
        wait_for(training)
        told("steer", do="pause")
        paused = wait_for(lambda: (p := training()) and p["paused"] and p)
        time.sleep(0.6)
        assert state()["progress"]["done"] == paused["done"]
        told("steer", do="longer")
        told("steer", do="continue")
        wait_for(lambda: (p := training()) and p["total"] == 2 * 4096 and p["done"] > paused["done"])
        session = catalog.open_session(tmp_path / "data", "one")
        wait_for(lambda: session.trained_rounds() == [-1, 0])

        # longer, with labels wanted: a round of practice
        wait_for(lambda: state()["view"] == "label")
        told("steer", do="longer")
        wait_for(lambda: session.trained_rounds() == [-1, 0, 1])

        # back to round 0: another batch, by its agent, with longer clips
        wait_for(lambda: (s := state())["view"] == "label" and s["round"] == 2)
        assert told("steer", do="back", round=0)["base"] == 0
        wait_for(lambda: (s := state())["view"] == "label" and s["attempt"] == 1)
        told("clips", longer=True)
        label_batch(2, 2)
        steps = {p.attempt: session.clips([p.left_clip])[p.left_clip].steps for p in session.pairs(2)}
        assert steps == {0: 10, 1: 10, 2: 15}

        # an agent anew, while the one is being trained
        wait_for(training)
        told("steer", do="anew")
        wait_for(lambda: 2 in session.trained_rounds())
        assert told("star", round=1)["star"] == 1
        wait_for(lambda: state()["view"] == "label")
        told("steer", do="stop")
        assert one.process.wait(20) == 0
        assert "Stopped; nothing is lost" in one.text()
        client.close()
    done = {n: Snapshot.load(session.checkpoint(n)) for n in session.trained_rounds()}
    assert [done[n].global_step for n in (-1, 0, 1, 2)] == [0, 2 * 4096, 3 * 4096, 4096]
    same = [
        all(a.equal(b) for a, b in zip(done[0].reward.parameters(), done[n].reward.parameters(), strict=True))
        for n in (1, 2)
    ]
    assert same == [True, False]
    opinions = session.opinions()
    assert {o.round for o in opinions.values()} == {2}
    assert set(opinions) == {p.id for p in session.pairs() if p.choice is not None}
    assert all(0 <= o.p_left <= 1 and 0 <= o.members <= 3 for o in opinions.values())
    session.close()
