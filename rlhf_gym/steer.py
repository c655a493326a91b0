"""The person at the wheel: what may be asked of a session now, put down as events for the loop. No torch here."""

from __future__ import annotations

from rlhf_gym import config as cfg
from rlhf_gym.config import UserError
from rlhf_gym.store import START, TRAINING, Session
from rlhf_gym.wishes import LONGEST

MORE_ROUNDS = 2


def said(number: int) -> str:
    return "the untrained agent" if number == START else f"round {number}"


def steer(session: Session, do: str, round: int | None = None) -> None:
    """Writes down what the person wants; the loop that runs, or the next one, does it.

    Args:
        do: pause, continue or stop the loop; train the agent longer; train an untrained agent anew on the reward
            model there is; go back to a round's agent and on from there; do two more rounds.
        round: where to go back to.

    Raises:
        UserError: there is nothing of the kind to do.
    """
    if do in ("pause", "continue", "stop"):
        _to_the_loop(session, do)
    elif do == "longer":
        _longer(session)
    elif do == "anew":
        _anew(session)
    elif do == "more":
        _more(session)
    else:
        _back(session, round)


def _to_the_loop(session: Session, do: str) -> None:
    where = session.where()
    if not session.running():
        raise UserError(
            f"Nothing runs session {session.name!r} that could {do}: "
            f"{cfg.program()} resume {session.name} makes it go on."
        )
    if do == "pause" and where.phase == "label":
        raise UserError("While pairs wait for labels nothing else is done: there is nothing to pause.")
    session.add_event(do, where.round)


def _longer(session: Session) -> None:
    """In training, another part of as many steps; else a round of practice on the newest reward model."""
    where = session.where()
    if where.phase in TRAINING:
        session.add_event("longer", where.round)
    else:
        _need_a_reward_model(session, "train longer")
        number = session.next_round()
        plan = session.wishes().plan(number)  # they may have gone back before
        session.add_event("plan", number, agent=plan.agent if plan else number - 1, practice=True)


def _anew(session: Session) -> None:
    where, number = session.where(), session.next_round()
    plan = session.wishes().plan(number)
    practice = where.phase not in TRAINING or (plan is not None and plan.practice)
    if practice:
        _need_a_reward_model(session, "train an agent anew")
    session.add_event("plan", number, agent=START, practice=practice)


def _need_a_reward_model(session: Session, what: str) -> None:
    if session.next_round() == 0:
        raise UserError(f"There is no reward model yet to {what} on: label the first batch.")


def _back(session: Session, to: int | None) -> None:
    trained, number, where = session.trained_rounds(), session.next_round(), session.where()
    if to is None or to not in trained:
        known = ", ".join(str(n) for n in trained)
        raise UserError(f"There is no agent of round {to} to go back to: choose one of {known} (-1: untrained).")
    plan = session.wishes().plan(number)
    base, practice = (plan.agent, plan.practice) if plan else (number - 1, False)
    if to == base and not practice and where.phase not in ("record", "finished"):
        raise UserError(f"Round {number} goes on from {said(to)} already.")
    # the batch that there is, or that is being collected this moment, shows another agent
    attempt = session.newest_attempt(number)
    if where.phase == "collect":
        attempt = where.attempt
    session.add_event("plan", number, agent=to, practice=False, attempt=attempt)


def _more(session: Session) -> None:
    where = session.where()
    if where.phase not in ("record", "finished"):
        raise UserError(f"Session {session.name!r} has rounds left to do: it is in round {where.round}.")
    session.add_event("rounds", where.round, rounds=session.next_round() + MORE_ROUNDS)


def star(session: Session, round: int | None) -> None:
    """Marks the round that the person likes best; None: none."""
    if round is not None and round not in session.trained_rounds():
        raise UserError(f"There is no agent of round {round} to star.")
    session.add_event("star", session.next_round(), round=round)


def other_clips(session: Session, longer: bool, differ: bool) -> None:
    """Drops the batch that is being labeled for another, of longer clips or of pairs that differ more.

    What was labeled of it still counts. So do the wishes for later batches.
    """
    where, wishes = session.where(), session.wishes()
    if where.phase != "label":
        raise UserError(f"There is no batch to collect anew: session {session.name!r} is in phase {where.phase}.")
    if not longer and not differ:
        raise UserError("Say what the clips should be: longer, or paired so that they differ more.")
    if longer and wishes.clip_factor >= LONGEST:
        raise UserError(f"Clips are {LONGEST:g} times as long as at first already.")
    session.add_event("clips", where.round, attempt=where.attempt, longer=longer, differ=differ)
