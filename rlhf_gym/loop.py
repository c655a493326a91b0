"""The phases in order: the whole product on one page.

    collect  ->  label  ->  train_reward  ->  train_agent  ->  collect  -> ...      (record while the person labels)

What comes next is read off the disk each time (`Session.where`), so whatever stopped the loop, it goes on from there.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlhf_gym import checkpoints, collect, drawing, evaluate, honesty, labelers, succession, verdicts, whatif
from rlhf_gym.board import Watched
from rlhf_gym.checkpoints import Damaged, Snapshot, load_state, save_state
from rlhf_gym.config import Config, UserError, flag
from rlhf_gym.control import Control, Replanned
from rlhf_gym.envs import EnvInfo
from rlhf_gym.episodes import Gains
from rlhf_gym.faults import KEPT
from rlhf_gym.files import replace as replace_file
from rlhf_gym.labels import load_labels
from rlhf_gym.live import Live
from rlhf_gym.monitor import Monitor, in_words
from rlhf_gym.seeds import PHASE_SEED
from rlhf_gym.segments import Segment, load_clip, save_segment
from rlhf_gym.store import START, TRAINING, Pair, Session, Where
from rlhf_gym.team import Team
from rlhf_gym.train import RewardModel, train_agent, train_reward
from rlhf_gym.wishes import LONGER, Plan

EVAL_SECONDS = 30.0
MAX_CHECKPOINT_SECONDS = 60.0
COMPARED = ("charts/worth", "charts/worth_before", "charts/kept")  # what `the_better` measures
REMEDY = "say of pairs which one is better, or ask for longer clips, or for pairs that differ more"
DOES = {
    "collect": "collect clips", "label": "label", "train_reward": "train the reward model",
    "train_agent": "train the agent", "record": "record a video", "draw": "draw clips", "": "begin",
}  # fmt: skip


@dataclass
class Loop:
    """What every phase needs."""

    session: Session
    config: Config
    info: EnvInfo
    device: torch.device
    monitor: Monitor
    control: Control
    live: Live | None  # where pictures are wanted
    team: Team = field(default_factory=Team)  # those that train the agent

    def plan(self, number: int) -> Plan | None:
        return self.session.wishes().plan(number)

    def before(self, number: int, plan: Plan | None = None) -> Snapshot:
        """What a round begins with: the agent of the round before, or of the one that the person went back to, and
        in any case the newest reward model."""
        newest = Snapshot.load(self.session.checkpoint(number - 1), self.device, self.config)
        if plan is None or plan.agent == number - 1:
            return newest
        if not self.session.checkpoint(plan.agent).exists():  # it was damaged
            self.monitor.say(f"There is no agent of round {plan.agent} any more: going on from the newest.")
            return newest
        chosen = Snapshot.load(self.session.checkpoint(plan.agent), self.device, self.config)
        return replace(chosen, reward=newest.reward, last_label_id=newest.last_label_id, forgotten=newest.forgotten)


def run(
    session: Session, config: Config, info: EnvInfo, monitor: Monitor, since: int | None = None,
    team: Team | None = None,
) -> None:  # fmt: skip
    """Runs a session until its rounds are done (config.rounds; 0 means until interrupted).

    Args:
        since: the newest event when the session began to run; None: this moment.
        team: the processes that train the agent together, led by this one; None: this one alone.

    Raises:
        UserError: the session is running elsewhere, or something of the user's is in the way.
        Stopped: the person stopped it from the page.
    """
    with session.lock():
        control = monitor.control = Control(session, since)
        live = Live(session, config, info) if config.labeler == "human" or config.render else None
        device = checkpoints.pick_device(config, info)
        loop = Loop(session, config, info, device, monitor, control, live, team or Team())
        try:
            monitor.board.begin(config)
            prepare(loop)
            while True:
                try:
                    if (where := look(loop)).phase == "finished":
                        loop.before(where.round + 1)  # whether it can go on from there, one day
                        break
                    draw_rest(loop, where)
                    if where.phase not in ("collect", "record"):
                        record(loop, where.round - 1)
                    PHASES[where.phase](loop, where)
                except Replanned:
                    pass  # what comes next is another thing now
                except Damaged as error:
                    set_aside(loop, error)
                except torch.OutOfMemoryError:
                    take_less(loop, where)
            session.write_progress(phase="finished", round=where.round)
        finally:
            monitor.close()


def set_aside(loop: Loop, error: Damaged) -> None:
    """A damaged checkpoint is kept under another name; what it held is trained again from what is whole."""
    aside = error.path.with_name(f"{error.path.name}.damaged")
    if aside.exists():
        raise error  # for the second time: that is no accident
    replace_file(error.path, aside)
    loop.monitor.say(f"{error} It is kept as {aside.name}, and what it held is trained again; no label is lost.")
    prepare(loop)


def take_less(loop: Loop, where: Where) -> None:
    """The GPU's memory is full: the phase goes on with smaller batches, which the settings keep.

    Raises:
        UserError: they cannot be smaller.
    """
    config, phase = loop.config, loop.monitor.name
    smaller = config
    if phase == "train_reward":
        smaller = replace(config, reward_batch_pairs=max(1, config.reward_batch_pairs // 2))
    elif phase == "train_agent" and 8 * config.num_minibatches < loop.team.part(config).num_envs * config.num_steps:
        smaller = replace(config, num_minibatches=2 * config.num_minibatches)
    if smaller == config:
        raise UserError(
            f"{loop.device} has too little memory to {DOES[phase]}: end other programs that use it, or go on with "
            f"--device cpu. {KEPT}."
        )
    name = "reward_batch_pairs" if phase == "train_reward" else "num_minibatches"
    loop.monitor.say(
        f"{loop.device} has too little memory to {DOES[phase]}: {flag(name)} {getattr(config, name)} -> "
        f"{getattr(smaller, name)}, from now on."
    )
    loop.config = smaller
    loop.session.write_config(loop.config)
    if phase == "train_reward" and (partial := loop.session.partial(where.round, "train_reward")).exists():
        save_state(partial, {**load_state(partial), "training": None})  # it counts in batches of the old size


def look(loop: Loop) -> Where:
    """What comes next; every plan made so far is in it."""
    loop.control.next_turn()
    return loop.session.where()


# ---------------------------------------------------------------------------------------------- before the first round


def prepare(loop: Loop) -> None:
    """Makes the untrained agent, measures this machine once, and says how long a round will take."""
    session, config = loop.session, loop.config
    session.clear_leftovers()
    if START not in session.trained_rounds():
        agent = checkpoints.new_agent(loop.info, config, loop.device)
        Snapshot(agent, None, config, loop.info, START).save(session.checkpoint(START))
    if config.checkpoint_iterations == 0:
        seconds = measure_iteration(loop)
        # A power of two, and some way below the limit, so that the stopwatch's noise seldom changes it: the
        # environments begin anew at every eighth of them, so runs with another interval are other runs.
        every = 2 ** max(0, math.floor(math.log2(0.8 * MAX_CHECKPOINT_SECONDS / seconds)))
        loop.config = replace(config, checkpoint_iterations=every)
        session.write_config(loop.config, seconds_per_iteration=seconds)
        iterations = math.ceil(config.agent_steps_per_round / (config.num_envs * config.num_steps))
        loop.monitor.say(
            f"{config.env_id} on {loop.device}: about {in_words(iterations * seconds)} of agent training a round, "
            f"{config.pairs_per_round} pairs to label, about {megabytes_per_round(loop):.0f} MB of disk."
        )


def measure_iteration(loop: Loop) -> float:
    """Seconds of one PPO iteration here, with the reward model scored, on a throwaway agent."""
    config = loop.config
    share = 8 if loop.info.image else 1  # of a rollout, so that the person need not wait for the measurement
    config = replace(
        config, num_steps=max(2, config.num_steps // share), checkpoint_iterations=0,
        num_minibatches=max(1, config.num_minibatches // share),  # of the same size: smaller ones take longer a step
    )  # fmt: skip
    agent = checkpoints.new_agent(loop.info, config, loop.device)
    model = checkpoints.new_reward_model(loop.info, config, loop.device, 0)
    speeds: list[float] = []
    train_agent(
        agent, model.score, config, loop.device, steps=2 * config.num_envs * config.num_steps,
        seed_path=(config.seed, 0), report=lambda done, total, metrics: speeds.append(metrics["charts/SPS"]),
    )  # fmt: skip
    return loop.config.num_envs * loop.config.num_steps / speeds[-1]  # the first iteration warms up


def megabytes_per_round(loop: Loop) -> float:
    """A guess from what such clips take: compressed observations and sprite sheets, video, checkpoint."""
    steps = collect.clip_steps(loop.config, loop.info)
    per_clip = 0.1 + steps * (0.002 if loop.info.image else 0.0002)
    return 2 * loop.config.pairs_per_round * per_clip + (20 if loop.info.image else 1)


# ---------------------------------------------------------------------------------------------- the phases


def collect_pairs(loop: Loop, where: Where) -> None:
    session, number, wishes = loop.session, where.round, loop.session.wishes()
    for phase in TRAINING:
        session.partial(number, phase).unlink(missing_ok=True)  # the person went back while it was being trained
    longer = wishes.clip_factor
    if where.attempt > 0 and where.attempt - 1 not in wishes.dropped(number):
        loop.monitor.say("Nothing to learn from in that batch (only ties or skips): trying once more, longer clips.")
        longer *= 2
    session.drop_metrics(number, "train_agent")
    with loop.monitor.phase(number, "collect", "clips") as report:
        before = loop.before(number, loop.plan(number))
        original = whatif.original_of(session)
        if original is not None and number < len(original.until):
            return whatif.recall(session, original, before, number, report)
        while True:
            try:
                return collect.collect(
                    session, before, loop.config, loop.info, number, where.attempt, report,
                    longer=longer, differ=wishes.differ,
                )  # fmt: skip
            except collect.TooLong as error:
                if longer <= 1.0:
                    raise
                longer = max(1.0, longer / LONGER)
                loop.monitor.say(f"{error} Trying clips that are {longer:.2g} times as long as at first.")


def draw_rest(loop: Loop, where: Where) -> None:
    """Draws the clips that the person does not look at yet; does nothing if that is done."""
    session, number, attempt = loop.session, where.round, where.attempt

    def wanted() -> bool:
        now = session.where()
        return (now.phase, now.round, now.attempt) == ("label", number, attempt)

    drawing.give_up_others(session, number, attempt)
    if not os.path.lexists(session.undrawn(number, attempt)):
        return
    if not wanted():
        drawing.give_up(session, number, attempt)
        return
    with loop.monitor.phase(number, "draw", "clips") as report:
        trouble = drawing.draw_rest(session, loop.config, loop.info, number, attempt, report, wanted)
    for sentence in trouble:
        loop.monitor.say(sentence)


def label(loop: Loop, where: Where) -> None:
    with loop.monitor.phase(where.round, "label", "pairs") as report:
        if loop.config.labeler == "synthetic":
            labelers.label_synthetically(loop.session, loop.config, where, report)
        else:
            threading.Thread(target=get_ready, daemon=True).start()
            labelers.wait_for_human(loop.session, where, report)


def get_ready() -> None:
    """Loads, while the person labels, what training needs and what takes seconds."""
    for name in ("torch._dynamo", "torch.utils.tensorboard"):
        with contextlib.suppress(Exception):  # whoever needs it says what is wrong
            importlib.import_module(name)


def fit_reward(loop: Loop, where: Where) -> None:
    """Trains the reward model on all labels there are; leaves it in the in-phase checkpoint of train_agent."""
    session, config, number = loop.session, loop.config, where.round
    partial = session.partial(number, "train_reward")
    state: dict[str, Any] = {"last_label_id": session.last_label_id(), "forgotten": session.wishes().forgotten}
    if partial.exists():
        state = checkpoints.upgraded(load_state(partial))  # on the CPU, where random states and the order of pairs live
    else:
        save_state(partial, state)  # from here on the round's labels are fixed, and undo refuses
        batch = session.pairs(number, where.attempt)
        if any(p.choice is None for p in batch) and not session.wishes().closed(number, where.attempt):
            partial.unlink()  # an undo came first
            return
    before = loop.before(number, loop.plan(number))
    until, after = state["last_label_id"], state["forgotten"]
    labels = load_labels(session, before.agent.from_env, config.seed, config.ensemble_size, after, until)
    for sentence in labels.damaged if labels is not None else []:
        loop.monitor.say(f"{sentence} Its pairs are left out.")
    model: RewardModel | None = None
    with loop.monitor.phase(number, "train_reward", "steps") as report:
        if labels is not None:
            model = checkpoints.new_reward_model(loop.info, config, loop.device, number)
            previous = before.reward if config.reward_init == "previous" else None
            if previous is not None and before.forgotten == after and checkpoints.may_go_on(previous):
                model.load_state_dict(previous.state_dict())
            metrics = train_reward(
                model, labels, config, loop.device, report=report, state=state.get("training"),
                save=lambda training: save_state(partial, {**state, "training": training}),
            )  # fmt: skip
            batch = session.pairs(number, where.attempt, labels_until=until)
            metrics |= honesty.foresight(batch) | clips_foreseen(session, before, batch)
            metrics |= honesty.consistency(labels.pairs, config.assumed_mistake_rate)
            report(report.total, report.total, metrics)
            session.put_opinions(verdicts.opinions(labels, number))
            loop.monitor.board.judged(number, labels, model)
    if model is None:
        loop.monitor.say(f"No label says better or worse yet, so the agent stays as it is: {REMEDY}.")
    elif not model.scale.any():  # advantages of no reward are noise, and would be normalised to full size
        model = None
        loop.monitor.say(f"The labels tell no clip from another, so the agent stays as it is: {REMEDY}.")
    found: dict[str, Any] = {"last_label_id": until, "reward": {}, "forgotten": before.forgotten, "training": {}}
    if model is not None:
        found |= {"reward": model.state_dict(), "forgotten": after}
    save_state(session.partial(number, "train_agent"), found)
    partial.unlink()


def clips_foreseen(session: Session, before: Snapshot, batch: list[Pair]) -> dict[str, float]:
    """How what the reward model of the round before gives the uniformly drawn clips goes with their true return."""
    if before.reward is None:
        return {}
    drawn = sorted({i for p in batch if p.kind == "uniform" for i in (p.left_clip, p.right_clip)})
    true, segments = list[float](), list[Segment]()
    for clip in session.clips(drawn).values():
        if clip.true_return is not None:
            with contextlib.suppress(UserError):  # a damaged clip, of which the labels' loading has told
                segments.append(load_clip(session, clip))
                true.append(clip.true_return)
    if not segments:
        return {}
    each = collect.judge(before.reward, before.agent, segments)  # (K, C)
    return honesty.foresight_of_clips((each * before.reward.scale[:, None]).mean(0).tolist(), true)


def fit_agent(loop: Loop, where: Where) -> None:
    """Trains the agent on the reward model, from the last in-phase checkpoint if there is one.

    Where the person asks for more, another part of as many steps follows. Where they plan the round anew meanwhile,
    the agent that they chose begins again on the same reward model.
    """
    session, config, number = loop.session, loop.config, where.round
    partial, plan = session.partial(number, "train_agent"), loop.plan(number)
    before = loop.before(number, plan)
    state: dict[str, Any]
    teaches_anew = partial.exists()
    if teaches_anew:
        state = checkpoints.upgraded(load_state(partial))
    else:  # practice: no labels, no new reward model
        reward = before.reward.state_dict() if before.reward is not None else {}
        state = {"last_label_id": before.last_label_id, "forgotten": before.forgotten, "reward": reward}
    state = {"forgotten": 0, "training": {}, "plan": 0, "part": 0, "steps": 0, "early": {}, **state}
    if state["plan"] != (plan.id if plan else 0):
        state |= {"training": {}, "plan": plan.id if plan else 0, "part": 0, "steps": 0, "early": {}}
        session.drop_metrics(number, "train_agent")
    session.partial(number, "train_reward").unlink(missing_ok=True)  # if it was killed between the two
    if loop.live is not None:
        loop.live.clear()
    model = before.reward
    if state["reward"]:
        model = checkpoints.new_reward_model(loop.info, config, loop.device, number)
        checkpoints.load_reward(model, state["reward"])
        if number > 0 and teaches_anew and not state["training"]:
            succession.soften(before.agent, *succession.softness(config, number))
        # what the person asked for is taken as it is; with images a comparison would take long
        may_compare = config.keep_better and plan is None and not loop.info.image
        with loop.monitor.phase(number, "train_agent", "steps") as report:
            while True:
                gains, chosen = train_part(loop, number, before, model, state, report), before
                if may_compare and session.wishes().longer(number) == 0:
                    chosen = the_better(loop, number, before, model, state, report)
                else:  # what a comparison said that was broken off, or came before the person asked for more
                    session.drop_metrics(number, "train_agent", COMPARED)
                if session.wishes().longer(number) <= state["part"]:
                    break
                state |= {"training": {}, "part": state["part"] + 1}
        before = chosen
        if told := gains.warning(number):  # the page says so beside the curves, for longer than this phase
            loop.monitor.say(told)
    global_step = before.global_step + state["steps"]
    loop.control.check()  # the last moment at which another plan for this round can be heard
    seen = {name: state[name] for name in ("last_label_id", "forgotten")}
    snapshot = Snapshot(before.agent, model, config, loop.info, number, global_step=global_step, **seen)
    snapshot.save(session.checkpoint(number))
    partial.unlink(missing_ok=True)


def the_better(
    loop: Loop, number: int, trained: Snapshot, model: RewardModel, state: dict[str, Any], report: Monitor
) -> Snapshot:
    """The agent just trained, or the one of before where the reward model clearly likes that better."""
    before = loop.before(number)
    agents = [trained.agent, before.agent]
    worth = succession.worth(agents, model, loop.config, number, report.heed, report.elapsed)
    keeps = succession.kept(*worth)
    values = {"charts/worth": float(worth[0].mean()), "charts/worth_before": float(worth[1].mean())}
    report.put({**values, "charts/kept": float(keeps)}, trained.global_step + state["steps"])
    if keeps:
        return trained
    loop.monitor.say(
        f"The reward model likes the agent of before better than the one trained in round {number}: that one is kept."
    )
    return before


def train_part(
    loop: Loop, number: int, before: Snapshot, model: RewardModel, state: dict[str, Any], report: Monitor
) -> Gains:
    """Trains before.agent for one part of a round, adds its steps to the state, and says what that brought.

    What its first episodes were like is in the in-phase checkpoint, so a resumed phase is measured by the same ones.
    """
    config, partial = loop.config, loop.session.partial(number, "train_agent")
    live, since, gains, score = loop.live, report.elapsed(), Gains(state["early"]), Watched(model)

    def save(training: dict[str, object]) -> None:
        save_state(partial, {**state, "training": training})

    def reported(done: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal since
        if live is not None:
            live.maybe(before.agent, report.elapsed() - since)
            since = report.elapsed()
            metrics["charts/live_share"] = live.share
        to_come = loop.control.wishes.longer(number) - state["part"]
        so_far = state["steps"] + done
        metrics |= gains.update(so_far / total, metrics)
        report(so_far, state["steps"] + total * (1 + to_come), metrics, before.global_step + so_far)

    part = (state["part"],) if state["part"] else ()
    state["steps"] += loop.team.run(
        train_agent, before.agent, score, config, loop.device, steps=config.agent_steps_per_round,
        seed_path=(config.seed, number, PHASE_SEED["train_agent"], *part),
        warmup=0 if part else config.value_warmup_iterations,
        state=state["training"] or None, save=save, report=reported,
    )  # fmt: skip
    report.board.histogram("charts/predicted_rewards", score.newest(), number, before.global_step + state["steps"])
    return gains


def record(loop: Loop, number: int) -> None:
    """Evaluates a round's agent on the true reward and records an episode; does nothing if that is done."""
    session, config = loop.session, loop.config
    if session.recorded(number):
        return
    snapshot = Snapshot.load(session.checkpoint(number), loop.device, config)
    with loop.monitor.phase(number, "record", "episodes") as report:
        if loop.live is not None:
            film(loop, loop.live, snapshot)
        score = labelers.load_score(config.score) if config.score else None
        result = evaluate.evaluate(
            snapshot.agent, config, loop.info, number, config.eval_episodes,
            max_seconds=EVAL_SECONDS, score=score, clock=report.elapsed, report=report,
        )  # fmt: skip
        keys = ("mean", "std", "min", "max", "mean_length", "episodes", "score_mean", "score_std")
        report.put({f"eval/{k}": result[k] for k in keys if result.get(k) is not None}, snapshot.global_step)
        report(result["episodes"], result["episodes"])
        if result["capped"]:
            loop.monitor.say(f"{result['capped']} of {result['episodes']} episodes were cut, and count as they stood.")
        report.numbers = {"eval/mean": result["mean"]} if result["mean"] is not None else {}


def film(loop: Loop, live: Live, snapshot: Snapshot) -> None:
    """Records a round's video and episode, and lets its reward model judge the episodes of all rounds."""
    session, number = loop.session, snapshot.round
    if not (session.video(number).exists() and session.episode(number).exists()):
        played = evaluate.Played()
        evaluate.record_video(snapshot.agent, loop.config, loop.info, session.video(number), played=played)
        save_segment(session.episode(number), verdicts.episode_segment(played.steps, played.end))
        live.calibrate(snapshot.agent)
        loop.monitor.board.recorded(number)
    if snapshot.reward is not None:
        verdicts.judge_videos(session, snapshot.reward, snapshot.agent, loop.info, number)


def record_last(loop: Loop, where: Where) -> None:
    record(loop, where.round)


PHASES = {
    "collect": collect_pairs,
    "label": label,
    "train_reward": fit_reward,
    "train_agent": fit_agent,
    "record": record_last,
}
