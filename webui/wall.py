"""The agent after every round: what the wall shows, and the curves of returns by round."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from rlhf_gym.store import START, Session
from rlhf_gym.wishes import Wishes
from webui.state import show_video


class Verdict(BaseModel):
    """The file beside a round's video: what a reward model says along the episode it shows."""

    judge: int | None = None
    fps: FiniteFloat | None = Field(default=None, gt=0)
    predicted: list[FiniteFloat] | None = None
    true: list[FiniteFloat] | None = None
    ended: bool | None = None
    mean: FiniteFloat | None = None


class WallRound(BaseModel):
    round: int = Field(description="-1: the untrained agent")
    title: str = Field(description="untrained, or round and its number")
    base: int | None = Field(
        serialization_alias="from", description="the round whose agent it began with; null for the untrained one"
    )
    practice: bool = Field(description="nothing was labeled: the agent only trained longer")
    url: str | None = Field(description="MP4; null where none was recorded")
    mean_return: float | None = Field(description="mean true return; null before its evaluation")
    std: float | None = Field(description="of the true return over the evaluation's episodes")
    star: bool = Field(description="whether the person likes this round best")
    mean: float | None = Field(description="mean predicted reward a step, over a horizon that all rounds share")
    fps: float | None = Field(description="of the numbers below: frames a second of the video")
    predicted: list[float] | None = Field(description="mean predicted reward a step, at each frame of the video")
    true: list[float] | None = Field(description="true reward at each frame of the video")
    ended: bool | None = Field(description="whether the episode ended by itself within the video")


class WallAnswer(BaseModel):
    judge: int | None = Field(description="the round whose reward model predicted all of this; null: none did yet")
    rounds: list[WallRound] = Field(description="every round that has an agent, oldest first")


def read_wall(session: Session) -> WallAnswer:
    """Every round that has an agent; predictions of one reward model alone, since others are not comparable."""
    wishes = session.wishes()
    means = session.true_returns()
    stds = {m["round"]: m["value"] for m in session.metrics("eval/std", "record")}
    verdicts = {number: read_verdict(session, number) for number in session.trained_rounds()}
    judge = pick_judge(list(verdicts.values()))
    rounds = [
        show_round(session, wishes, number, verdict if verdict.judge == judge else drop_predictions(verdict))
        for number, verdict in verdicts.items()
    ]
    for row in rounds:
        row.mean_return, row.std = means.get(row.round), stds.get(row.round)
    return WallAnswer(judge=judge, rounds=rounds)


def read_verdict(session: Session, number: int) -> Verdict:
    """An empty one where the file is missing or damaged."""
    try:
        return Verdict.model_validate_json(session.verdict(number).read_bytes())
    except (OSError, ValidationError):
        return Verdict()


def pick_judge(verdicts: list[Verdict]) -> int | None:
    """The reward model that judged most rounds, of as many the newest: a new one takes its time to see them all."""
    judged = Counter(v.judge for v in verdicts if v.judge is not None)
    return max(judged, key=lambda judge: (judged[judge], judge), default=None)


def drop_predictions(verdict: Verdict) -> Verdict:
    return verdict.model_copy(update={"predicted": None, "mean": None})


def show_round(session: Session, wishes: Wishes, number: int, verdict: Verdict) -> WallRound:
    plan = wishes.plan(number)
    video = show_video(session, number, session.video(number))
    base = plan.agent if plan is not None else number - 1
    return WallRound(
        round=number,
        title="untrained" if number == START else f"round {number}",
        base=None if number == START else base,
        practice=plan is not None and plan.practice,
        url=video.url if video else None,
        mean_return=None,
        std=None,
        star=wishes.star == number,
        mean=verdict.mean,
        fps=verdict.fps,
        predicted=verdict.predicted,
        true=verdict.true,
        ended=verdict.ended,
    )
