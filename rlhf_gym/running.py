"""Runs a session: opens it, says what cannot go on, shows its page, and loops in this thread until it is done."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_gym import faults
from rlhf_gym.arguments import Access, Replay, Resume, Run, explicit
from rlhf_gym.config import Config, Settings, UserError, changed, flag, printable, program, resolve, validate_each

if TYPE_CHECKING:
    from rlhf_gym.envs import EnvInfo
    from rlhf_gym.store import Session
    from rlhf_gym.team import Team
    from webui.server import Server


def run_session(command: Run, args: list[str], team: Team | None) -> int:
    from rlhf_gym import adopt, catalog, envs, provenance, trust

    data_dir, given = command.where.data_dir, explicit(command.settings, args)
    if command.session is not None and (data_dir / catalog.check_name(command.session) / "config.json").exists():
        if command.labels_from is not None:
            raise adopt.too_late(command.session)
        return go_on(command.session, {"env_id": command.env_id, **given}, command, team)
    check_labeler(given, command.settings)
    info = envs.describe(validate_each(Config(**{"env_id": command.env_id, **given})))
    config = resolve({"env_id": command.env_id, **given}, info.kind)
    check(config, info, team)
    labels = adopt.read(command.labels_from, config, info.as_json()) if command.labels_from is not None else None
    server = start_server(data_dir, command.access) if config.labeler == "human" else None
    name = command.session or catalog.new_name(data_dir, command.env_id)
    header = {"info": info.as_json(), **provenance.now(config), **trust.signed(config)}
    make = catalog.create_session if labels is None else labels.start
    session = make(data_dir, name, config, **header)
    say(f"Session {name} in {session.path}")
    return run_loop(session, session.config, info, server, command.access, team)


def check_labeler(given: dict[str, Any], settings: Settings) -> None:
    """Settings of the synthetic labeler mean nothing to a human one; whoever gives them expects something else."""
    meant = sorted({"score", "mistake_rate", "tie_threshold", "skip_threshold"} & set(given))
    if meant and settings.labeler == "human":
        raise UserError(f"{flag(meant[0])} is for the synthetic labeler: add --labeler synthetic, or leave it out.")


def resume_session(command: Resume, args: list[str], team: Team | None) -> int:
    return go_on(command.session, explicit(command.settings, args), command, team)


def go_on(name: str, given: dict[str, Any], command: Run | Resume, team: Team | None) -> int:
    """Opens a session and runs it on, with changed settings saved and told."""
    from rlhf_gym import envs, provenance, trust

    data_dir, access = command.where.data_dir, command.access
    session = open_session(data_dir, name)
    trust.require(session, command.trust)
    config, changes = changed(session.config, given)
    info = envs.describe(config)
    check(config, info, team)
    check_change(session, config, info, changes)
    if session.running():
        with session.lock():  # says who runs it
            pass
    server = start_server(data_dir, access) if config.labeler == "human" else None
    if note := provenance.update(session, config):
        say(note)
    if "goal" in given and session.goal() != config.goal:  # the page may have set another since
        changes["goal"] = (session.goal(), config.goal)
        session.add_event("goal", session.where().round, text=config.goal)
    if "rounds" in given:
        session.add_event("rounds", session.where().round, rounds=config.rounds)
    if changes:
        session.write_config(config, **trust.signed(config))
        for setting, (before, after) in changes.items():
            say(f"{setting}: {before!r} -> {after!r}")
    where = session.where()
    if where.phase == "finished":
        more = f"{program()} resume {name}{data_dir_flag(session)} --rounds {2 * (where.round + 1)}"
        say(f"Session {name} has done its {where.round + 1} rounds. To teach it further: {more}")
    else:
        labels = f", {where.labeled} of {where.pairs} pairs labeled" if where.phase == "label" else ""
        say(f"Session {name} goes on in round {where.round} with {where.phase}{labels}.")
    return run_loop(session, config, info, server, access, team)


def replay(command: Replay, args: list[str], team: Team | None) -> int:
    from rlhf_gym import envs, trust, whatif

    data_dir, given = command.where.data_dir, explicit(command.settings, args)
    source = open_session(data_dir, command.session)
    trust.require(source, command.trust)
    config, original = whatif.plan(source, given, command.without)
    info = envs.describe(config)
    check_environment(source, config, info)
    check(config, info, team)
    name = command.name or whatif.free_name(data_dir, source.name)
    there = open_session(data_dir, name) if (data_dir / name / "config.json").is_file() else None
    session = whatif.begin(source, name, config, original, info.as_json(), given, there)
    trust.require(session, command.trust)  # one that was there may have come from anywhere
    for note in whatif.notes(source, session, given):
        say(note)
    if not whatif.done(session):
        say(f"Session {name} replays the labels of {source.name}, round by round.")
        if status := run_loop(session, session.config, info, None, Access(), team):
            return status
    whatif.show(source, session, command.json)
    return 0


def check_environment(session: Session, config: Config, info: EnvInfo) -> None:
    before, now = session.header().get("info", {}), info.as_json()
    if before and before | {"kind": ""} != now | {"kind": ""}:  # which presets it had does not matter
        raise UserError(
            f"{config.env_id} is no longer what session {session.name!r} was made with (observations, actions or "
            "speed differ): start a new session, or bring the old version of the environment back."
        )


def check_change(session: Session, config: Config, info: EnvInfo, changes: dict[str, tuple[Any, Any]]) -> None:
    """What cannot go on as it was: another environment under the same name, or settings that a phase counts by."""
    from rlhf_gym.store import TRAINING

    check_environment(session, config, info)
    where = session.where()
    counted = sorted({"num_envs", "num_steps", "agent_steps_per_round"} & set(changes))
    if where.phase in TRAINING and "fast" in changes:
        raise UserError("--fast cannot change in the middle of training: resume, and change it after the round.")
    if where.phase == "train_agent" and counted:
        raise UserError(
            f"{flag(counted[0])} cannot change in the middle of training the agent: resume, and change it after."
        )
    pairs = session.pairs(where.round, where.attempt)
    clips = session.clips([p.left_clip for p in pairs])
    unseen = [p for p in pairs if not clips[p.left_clip].sheet]
    if where.phase == "label" and config.labeler == "human" and unseen:
        raise UserError(
            f"The pairs of round {where.round} were collected without pictures, for the synthetic labeler: let it "
            f"finish the round (--labeler synthetic --rounds {where.round + 1}), then go on yourself."
        )


def open_session(data_dir: Path, name: str) -> Session:
    """As the store's; here a database that cannot be read is one sentence, too."""
    from sqlalchemy.exc import DatabaseError

    from rlhf_gym import catalog

    try:
        session = catalog.open_session(data_dir, name)
        session.last_label_id()
        if session.migrated is not None:
            say(
                f"Session {name!r} was of an older format and has been brought up to date; a copy of what it was is in "
                f"{session.migrated}."
            )
    except DatabaseError as error:
        if (told := faults.sentence(error, data_dir / name)) is None:
            raise
        raise UserError(told) from None
    return session


def check(config: Config, info: EnvInfo, team: Team | None) -> None:
    """What can go wrong before a round's work: the score function, devices, processes, tracking, rendering."""
    from rlhf_gym import envs, labelers, spec, track

    spec.require_few_numbers(config, info)
    if config.device in ("cuda", "mps") or team is not None:
        from rlhf_gym.checkpoints import pick_device  # torch

        device = pick_device(config, info)
        if team is not None:
            team.check(config, device)
    labelers.load_score(config.score)
    if config.track:
        track.require()
    if config.labeler == "human" or config.render:
        envs.require_render(config)


def run_loop(
    session: Session, config: Config, info: EnvInfo, server: Server | None, access: Access, team: Team | None
) -> int:
    """Shows the page (for a human) and runs the loop in this thread until it is done or interrupted."""
    from rich.console import Console

    from rlhf_gym.control import Stopped
    from rlhf_gym.envs import EnvironmentFault
    from rlhf_gym.store import Busy

    console = Console(stderr=True, width=None if sys.stderr.isatty() else 200)  # logs are not wrapped
    try:
        done_before = session.where().phase == "finished"
        with session.lock():  # at once, so that the page does not say that nothing runs
            since = session.wishes().last
            if server is not None:
                show(server, access, session.name)
            from rlhf_gym import loop  # torch, after the page is up
            from rlhf_gym.monitor import Monitor
            from rlhf_gym.watchdog import Watchdog

            monitor = Monitor(session, console)
            with Watchdog(monitor.warn):
                loop.run(session, config, info, monitor, since, team)
        if server is None and not done_before:
            say(f"All rounds are done. See the agent: {program()} watch {session.name}{data_dir_flag(session)}")
        while server is not None:
            say("All rounds are done. The pages stay up until Ctrl-C, and more rounds can be asked for there.")
            wait_for_more(session)
            monitor = Monitor(session, console)
            with contextlib.suppress(Busy), Watchdog(monitor.warn):  # another process may have been faster
                loop.run(session, session.config, info, monitor, team=team)
    except (KeyboardInterrupt, Stopped) as end:
        say(f"\nStopped; nothing is lost. Go on with: {program()} resume {session.name}{data_dir_flag(session)}")
        if server is None and isinstance(end, KeyboardInterrupt):
            return 130
    except EnvironmentFault as fault:
        kept = "Nothing of the session is lost: mend the environment, then resume."
        raise UserError(f"{str(fault).rstrip('.')}. {kept}") from fault
    finally:
        if server is not None:
            server.stop()
        session.close()  # the last one to close it folds the write-ahead log into session.db
    return 0


def data_dir_flag(session: Session) -> str:
    data_dir = str(session.path.parent)
    shown = f'"{data_dir}"' if " " in data_dir else data_dir
    return "" if data_dir == "data" else f" --data-dir {shown}"


def start_server(data_dir: Path, access: Access) -> Server:
    """Serves the pages from a thread; before anything is written, as an address may be taken."""
    from webui.server import Server

    if not 0 <= access.port <= 65535:  # Linux takes the rest modulo 65536
        raise UserError(f"--port {access.port} is out of range: give a value from 1 to 65535, or none.")
    server = Server(data_dir, host=access.host, port=access.port or None)
    server.start()
    return server


def show(server: Server, access: Access, session: str | None) -> None:
    """Says where the page is, and opens the browser."""
    from webui.server import open_browser

    if server.warning:
        say(server.warning)
    say(f"Open {server.page(session)}")
    if access.browser:
        open_browser(server.page(session))


def wait_for_more(session: Session) -> None:
    """Sleeps until the person has asked for more on the page, and nobody else does it."""
    from sqlalchemy.exc import DatabaseError

    while True:
        time.sleep(0.5)
        try:
            if session.where().phase != "finished" and not session.running():
                return
        except (UserError, DatabaseError, OSError):
            if (session.path / "config.json").is_file():
                raise
            wait_for_interrupt()  # the person has deleted it; the pages of the others stay


def wait_for_interrupt() -> None:
    while True:
        time.sleep(3600)


def say(text: str) -> None:
    """Messages go to stderr: stdout belongs to results."""
    print(printable(text), file=sys.stderr, flush=True)
