"""The commands: `rlhf-gym run CartPole-v1` and its siblings. Each imports what is slow itself."""

from __future__ import annotations

import _thread
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rlhf_gym import __version__, faults
from rlhf_gym.arguments import (
    Branch,
    Clean,
    Command,
    Doctor,
    Evaluate,
    Export,
    List,
    Replay,
    Resume,
    Run,
    Serve,
    Watch,
    explicit,
    parse,
)
from rlhf_gym.config import UserError, printable, program
from rlhf_gym.running import (
    data_dir_flag,
    open_session,
    replay,
    resume_session,
    run_session,
    say,
    show,
    start_server,
    wait_for_interrupt,
)

if TYPE_CHECKING:
    from rlhf_gym.checkpoints import Snapshot
    from rlhf_gym.store import Session
    from rlhf_gym.team import Team

AGAIN_SECONDS = 0.05


def main() -> None:
    """Entry point of `rlhf-gym`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` and a machine that shuts down: like Ctrl-C
    sys.unraisablehook = interrupt_again
    leave(run_command(sys.argv[1:]))


def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that came where Python can only ignore it, in a callback of a weak reference, comes again soon after."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    main = threading.main_thread().ident
    assert main is not None

    def again() -> None:
        time.sleep(AGAIN_SECONDS)  # until the callback is over
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:  # to that thread, whose wait for something it ends; in the background of a script SIGINT is ignored
            signal.pthread_kill(main, signal.SIGTERM)

    _thread.start_new_thread(again, ())  # a threading.Thread would take locks that may be held here


def leave(status: int) -> NoReturn:
    """Ends at once: all is on disk, and taking torch down would cost the person another second and a half."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_command(args: list[str]) -> int:
    """Runs one command. Returns the exit status; a user's mistake is one line on stderr."""
    try:
        return together(lambda team: obey(args, team))
    except UserError as error:
        return refuse(error)


def together(work: Callable[[Team | None], int]) -> int:
    """Calls `work`; of several processes that torchrun has started only the first one does, which the others follow."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if os.environ.get("WORLD_SIZE", "1") == "1" or not all(name in os.environ for name in names):
        return work(None)  # another launcher may set some of them
    from rlhf_gym.team import Team  # torch

    with Team.of_torchrun() as team:
        if team.rank == 0:
            return work(team)
        try:
            return team.work()
        except UserError:
            raise
        except Exception:
            traceback.print_exc()
            leave(1)  # at once, so that torchrun sees it, and rank 0 does not wait for this process


def refuse(error: UserError) -> int:
    print(f"rlhf-gym: {printable(error)}", file=sys.stderr)
    return 1


def obey(args: list[str], team: Team | None) -> int:
    """Parses and runs one command."""
    if args in (["--version"], ["-V"]):
        print(f"rlhf-gym {__version__}")
        return 0
    command = parse(args, Command, "rlhf-gym", "Teach an agent by taste: compare pairs of clips in your browser.")
    try:
        match command:
            case Run():
                return run_session(command, args, team)
            case Resume():
                return resume_session(command, args, team)
            case Branch():
                return branch(command, args)
            case Replay():
                return replay(command, args, team)
            case List():
                return list_sessions(command)
            case Serve():
                return serve(command)
            case Watch():
                return watch(command)
            case Evaluate():
                return evaluate(command)
            case Export():
                return export(command)
            case Clean():
                return clean(command)
            case Doctor():
                return doctor(command)
    except UserError as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        name = getattr(command, "session", None)
        told = faults.sentence(error, command.where.data_dir / name if name else command.where.data_dir)
        if told is None:
            raise
        print(f"rlhf-gym: {told}", file=sys.stderr)
        return 1
    raise AssertionError(command)


def branch(command: Branch, args: list[str]) -> int:
    from rlhf_gym import branch as branching
    from rlhf_gym import catalog

    data_dir, given = command.where.data_dir, explicit(command.settings, args)
    catalog.check_name(command.new)
    session = open_session(data_dir, command.session)
    for sentence in branching.branch(session, command.new, command.round, given, command.trust):
        say(sentence)
    say(f"Go on with: {program()} resume {command.new}{data_dir_flag(session)}")
    print(data_dir / command.new)
    return 0


def list_sessions(command: List) -> int:
    from rlhf_gym import catalog

    data_dir = command.where.data_dir
    sessions: list[dict[str, Any]] = []
    for name in catalog.session_names(data_dir):
        try:
            sessions.append(open_session(data_dir, name).summary())
        except catalog.UNREADABLE as error:  # the others can be listed all the same
            told = faults.sentence(error, data_dir / name) or str(error).partition("\n")[0]
            sessions.append({"name": name, "error": told})
    if command.json:
        print(json.dumps({"sessions": sessions}, allow_nan=False))
        return 0
    if not sessions:
        there = "" if data_dir.is_dir() else ", which does not exist"
        where = "" if data_dir == Path("data") else f" --data-dir {data_dir}"
        print(f"No sessions in {data_dir}/{there}. Start one: {program()} run CartPole-v1{where}")
        return 0
    shown = [s for s in sessions if command.all or not s.get("archived")]
    print_table(shown)
    if left := len(sessions) - len(shown):
        say(f"{left} in the archive: {program()} list --all shows {'it' if left == 1 else 'them'}, too.")
    return 0


def print_table(sessions: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("session", "environment", "round", "phase", "labels", "true return", "last activity", "disk"):
        table.add_column(column)
    for s in sessions:
        if "error" in s:
            say(f"rlhf-gym: {printable(s['error'])}")
            continue
        returns = " → ".join(f"{r['mean']:.4g}" for r in s["true_returns"][-4:])
        phase = s["phase"] if s["running"] or s["phase"] == "finished" else f"{s['phase']} (not running)"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(s["last_activity"]))
        disk = f"{s['disk_bytes'] / 1e6:.0f} MB"
        name = f"{s['name']}  {escape(printable(s['title']))}" if s["title"] else s["name"]
        table.add_row(
            name, escape(printable(s["env_id"])), str(s["round"]), phase, str(s["labels"]), returns, when, disk
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def serve(command: Serve) -> int:
    server = start_server(command.where.data_dir, command.access)
    try:
        show(server, command.access, None)
        wait_for_interrupt()
    finally:
        server.stop()
    return 0


def open_snapshot(command: Watch | Evaluate) -> tuple[Session, Snapshot]:
    from rlhf_gym import trust
    from rlhf_gym.checkpoints import Damaged, Snapshot

    session = open_session(command.where.data_dir, command.session)
    trust.require(session, command.trust)
    try:
        snapshot = Snapshot.load(session.checkpoint(session.resolve_round(command.round)), of=session.config)
    except Damaged as error:
        remedy = f"{program()} resume {session.name}{data_dir_flag(session)} trains again what it held."
        raise UserError(f"{error} If it is the newest, {remedy}") from None
    return session, snapshot


def watch(command: Watch) -> int:
    from rich.progress import Progress

    from rlhf_gym.store import round_name

    check_watch(command)
    session, snapshot = open_snapshot(command)
    from rlhf_gym import films

    if command.episodes > films.MAX_TILES:
        raise UserError(f"--episodes {command.episodes} is too many for one film: watch {films.MAX_TILES} at most.")
    name = "all-rounds" if command.all_rounds else round_name(snapshot.round)
    path = command.out or session.path / "videos" / f"watch-{name}.mp4"
    if command.out is None and not os.access(path.parent, os.W_OK):  # on a medium that cannot be written
        path = Path.cwd() / f"{session.name}-{path.name}"
    with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("playing", total=None)
        casts = films.cast_rounds(session, say) if command.all_rounds else films.cast_episodes(
            snapshot, command.episodes
        )  # fmt: skip
        judge = films.newest_judge(session) if command.overlay else None
        films.write_film(
            casts, snapshot.info, path, judge=judge, overlay=command.overlay, max_seconds_shown=command.seconds,
            header=printable(film_header(session, None if command.all_rounds else snapshot.round)),
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if command.overlay and judge is None:
        say("There is no reward model yet: the film shows actions alone.")
    print(path)
    if command.open:
        open_file(path)
    return 0


def film_header(session: Session, number: int | None) -> str:
    parts = [session.name, session.config.env_id, *([] if number is None else [f"round {number}"]), session.goal()]
    return " · ".join(part for part in parts if part)


def check_watch(command: Watch) -> None:
    if command.episodes < 1:
        raise UserError(f"--episodes {command.episodes} is too few: watch at least 1.")
    if command.all_rounds and (command.round is not None or command.episodes > 1):
        raise UserError("--all-rounds shows one episode of every round: leave out --round and --episodes.")
    if not 0 < command.seconds <= 3600:
        raise UserError(f"--seconds {command.seconds:g} is out of range: give more than 0, and 3600 at most.")
    if command.out is not None and command.out.suffix not in (".mp4", ".gif"):
        raise UserError(f"--out {command.out} is neither .mp4 nor .gif: end the name with one of these.")


def open_file(path: Path) -> None:
    """Opens a file with the desktop's own program, where there is a display."""
    if sys.platform == "darwin":
        subprocess.Popen(["open", str(path)])
    elif sys.platform == "win32":
        os.startfile(path)
    elif os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        subprocess.Popen(["xdg-open", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def evaluate(command: Evaluate) -> int:
    if command.greedy and command.sampled:
        raise UserError("--greedy and --sampled exclude each other: give one of them.")
    if not 1 <= command.episodes <= 1_000_000:
        raise UserError(f"--episodes {command.episodes} is out of range: give a number from 1 to 1,000,000.")
    from rich.progress import Progress

    from rlhf_gym.labelers import load_score

    score = load_score(command.score) if command.score else None
    session, snapshot = open_snapshot(command)
    from rlhf_gym import baselines

    greedy = True if command.greedy else False if command.sampled else None
    config = dataclasses.replace(snapshot.config, score=command.score)
    top = baselines.ceiling_of(command.ceiling, command.where.data_dir, config)
    agents: dict[str, Any] = {"agent": (snapshot.agent, config)}
    if command.baselines:
        if snapshot.round >= 0 and (start := untrained(session)) is not None:
            agents["untrained"] = (start.agent, dataclasses.replace(start.config, score=command.score))
        agents["random"] = (baselines.random_agent(snapshot.info, config), config)
    with Progress(transient=True, disable=command.json or not sys.stderr.isatty()) as bar:
        task = bar.add_task("playing", total=None)
        played = baselines.compare(
            agents, snapshot.info, command.episodes, greedy=greedy, score=score,
            tell=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    result = baselines.report(played, snapshot.round, top)
    if command.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print_evaluation(result)
    return 0


def untrained(session: Session) -> Snapshot | None:
    """The session's untrained agent, if it can be read."""
    from rlhf_gym.checkpoints import Snapshot
    from rlhf_gym.store import START

    try:
        return Snapshot.load(session.checkpoint(START), of=session.config)
    except UserError as error:
        say(f"{error} The untrained agent is left out.")
        return None


def print_evaluation(result: dict[str, Any]) -> None:
    """One line on the agent, a table of all that it is held against, and what to make of it."""
    from rich.console import Console

    from rlhf_gym import baselines

    how = "likeliest actions" if result["greedy"] else "sampled actions"
    true = (
        "no true reward (NaN)" if result["mean"] is None else f"true return {result['mean']:.2f} ± {result['std']:.2f}"
    )
    length = f"{result['episodes']} episodes of {result['mean_length']:.0f} steps"
    print(f"round {result['round']}: {true} over {length}, {how}")
    if result.get("score_mean") is not None and result["score_std"] is not None:  # infinite ones have no number
        print(f"score {result['score_mean']:.4g} ± {result['score_std']:.4g}")
    print(flush=True)
    Console(width=None if sys.stdout.isatty() else 160).print(baselines.table(result))
    for sentence in result["verdicts"]:
        print(sentence)
    if result["capped"]:
        print(f"{result['capped']} episodes were cut short at the step cap.")


def export(command: Export) -> int:
    session = open_session(command.where.data_dir, command.session)
    from rich.progress import Progress

    from rlhf_gym import export as exporting

    with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("exporting", total=None)
        notes = exporting.export(
            session, command.out, command.format,
            lambda done, total: bar.update(task, completed=done, total=total), command.round,
        )  # fmt: skip
    for note in notes:
        say(note)
    print(command.out)
    return 0


def clean(command: Clean) -> int:
    session = open_session(command.where.data_dir, command.session)
    freed, kinds = session.clean()
    left = session.disk_bytes()
    what = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in kinds.items()) or "nothing to delete"
    print(f"Freed {freed / 1e6:.1f} MB ({what}); session {session.name} takes {left / 1e6:.1f} MB.")
    return 0


def doctor(command: Doctor) -> int:
    from rlhf_gym import doctor as machine

    report = machine.report(command.where.data_dir)
    print(json.dumps(report, allow_nan=False) if command.json else machine.render(report))
    return 0 if report["healthy"] else 1
