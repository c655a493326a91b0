"""The collect phase: act, cut segments, choose pairs, write clips.

An episode is a seed and its actions, so only the chosen clips are rendered, by playing them again. Where an
environment does not repeat itself, candidates are filmed while they are played.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError
from rlhf_gym.drawing import postpone, repeats_itself, shown_frames
from rlhf_gym.envs import EnvInfo, Envs, Step, Twin
from rlhf_gym.files import write_atomic
from rlhf_gym.replay import Candidate, Report, play_again
from rlhf_gym.seeds import PHASE_SEED, seed_from
from rlhf_gym.segments import Segment, save_segment, stack
from rlhf_gym.sheets import layout, make_sheet, shown_stride
from rlhf_gym.store import Pair, Session, finite
from rlhf_gym.train import REFERENCE_STEPS, Agent, RewardModel

HOPELESS_CLIPS = 50  # without one clip after playing so many times its length, there will be none
CANDIDATE_PAIRS = 10  # candidate pairs per pair chosen by disagreement, or because its clips look different
DIFFERENT_FRACTION = 0.75  # where different clips are wanted; the rest stay uniform, to measure the reward model by


class TooLong(UserError):
    """Episodes are cut off too early for clips of that length."""


def clip_steps(config: Config, info: EnvInfo, longer: float = 1.0) -> int:
    """Steps of a clip: clip_seconds at the environment's own speed, at most its time limit."""
    steps = max(2, round(config.clip_seconds * longer * info.fps))
    return min(steps, info.max_episode_steps or steps)


# ---------------------------------------------------------------------------------------------- segments


@dataclass
class Cutter:
    """Cuts one environment's steps into segments of `steps` steps, with random gaps between them.

    A segment never spans a reset (unless resets are hidden). If the episode terminates inside it, the terminal
    observation is held to the end as absorbing steps; if it is truncated there, the segment is dropped. One that ends
    before half its length begins earlier instead, as far as the episode and the gap go: nobody can judge two frames.
    """

    steps: int
    gap: int
    hide: bool
    rng: np.random.Generator
    actions: list[np.ndarray] = field(default_factory=list)  # of the episode so far
    before: list[tuple[Any, ...]] = field(default_factory=list)  # the same of the episode's steps just before it
    taken: list[tuple[Any, ...]] = field(default_factory=list)  # obs, action, reward, info of the open segment
    frames: list[np.ndarray] = field(default_factory=list)
    prefix: list[np.ndarray] = field(default_factory=list)
    resets: dict[int, int] = field(default_factory=dict)
    wait: int = 0
    seed: int = 0  # of the running episode
    first_seed: int = 0  # of the episode the open segment began in

    def begin(self) -> None:
        self.before, self.taken, self.frames = [], [], []
        self.wait = int(self.rng.integers(0, self.gap + 1))

    def reset(self, seed: int) -> None:
        """A new episode began with this seed."""
        if self.hide and self.taken:
            self.resets[len(self.taken)] = seed
        else:
            self.begin()
        self.seed, self.actions = seed, []

    def open(self) -> bool:
        """Whether the step about to be taken belongs to a segment."""
        return bool(self.taken) or self.wait == 0

    def add(
        self, obs: np.ndarray, action: np.ndarray, reward: float, info: dict[str, float], final_obs: np.ndarray,
        terminated: bool,
    ) -> Candidate | None:  # fmt: skip
        """Takes one step; returns a segment when one is complete."""
        if not self.open():
            self.wait -= 1
            self.before.append((obs, action, reward, info))
        else:
            if not self.taken:
                self.prefix, self.resets, self.first_seed = list(self.actions), {}, self.seed
            self.taken.append((obs, action, reward, info))
        self.actions.append(action)
        ended = terminated and not self.hide and bool(self.taken)
        if len(self.taken) < self.steps and not ended:
            return None
        if ended and not self.frames:  # what was filmed cannot begin earlier
            earlier = max(0, min(-(-self.steps // 2) - len(self.taken), len(self.before)))
            self.taken = self.before[len(self.before) - earlier :] + self.taken
            self.prefix = self.prefix[: len(self.prefix) - earlier]
        candidate = self.finish(final_obs)
        self.begin()
        return candidate

    def finish(self, final_obs: np.ndarray) -> Candidate:
        missing = self.steps - len(self.taken)
        obs, actions, rewards, infos = (list(x) for x in zip(*self.taken, strict=True))
        segment = Segment(
            stack(obs + [final_obs] * missing),
            np.stack(actions + [np.zeros_like(actions[0])] * missing),
            np.array(rewards + [0.0] * missing, np.float32),
            np.arange(self.steps) >= len(obs),
            {k: np.stack([i.get(k, 0.0) for i in infos] + [infos[-1][k]] * missing) for k in infos[-1]},
        )
        sheet = make_sheet(self.frames) if self.frames else None
        return Candidate(segment, self.first_seed, self.prefix, self.resets, sheet)


class HeldActions:
    """Random actions, each held for a while: from one step to half a clip, in logarithmic measure.

    An untrained agent trembles on the spot, and its clips look alike. Held actions swing, drive and fall, so the first
    labels say something of states that it would not reach (docs/benchmarks.md).
    """

    def __init__(self, agent: Agent, num_envs: int, steps: int, rng: np.random.Generator) -> None:
        self.agent, self.steps, self.rng = agent, steps, rng
        self.mean = np.ones(num_envs)  # steps that the action of an environment is held for, on average
        self.actions: list[Any] = [None] * num_envs

    def choose(self, i: int) -> Any:
        """The next action of environment i, as the environment takes it."""
        if self.actions[i] is None or self.rng.random() < 1 / self.mean[i]:
            self.mean[i] = math.exp(self.rng.uniform(0, math.log(max(2.0, self.steps / 2))))
            self.actions[i] = self._draw()
        return self.actions[i]

    def _draw(self) -> Any:
        if self.agent.discrete:
            return self.rng.integers(self.agent.num_actions or 1)
        uniform = self.rng.uniform(-1, 1, (1, self.agent.low.numel()))
        return self.agent.to_env(torch.as_tensor(uniform, dtype=torch.float32, device=self.agent.low.device))[0]


def gather(
    snapshot: Snapshot, config: Config, info: EnvInfo, count: int, steps: int, seed_path: tuple[int, ...],
    report: Report, film: bool = False,
) -> list[Candidate]:  # fmt: skip
    """Acts, with exploration, until there are `count` candidate segments.

    Before there is a reward model, config.explore_share of the environments are played by random actions held for a
    while, not by the agent.

    Args:
        film: render while playing (one environment), for environments that do not repeat themselves.

    Raises:
        TooLong: episodes are cut off too early for clips of this length.
    """
    vec = FilmedEnvs(config, seed_path) if film else Envs(config, config.num_envs, seed_path)
    device = next(snapshot.agent.parameters()).device
    generator = torch.Generator(device).manual_seed(seed_from(*seed_path))
    room = info.max_episode_steps - steps if info.max_episode_steps else steps
    cutters = [
        Cutter(steps, min(steps, room), config.episode_ends == "hide", np.random.default_rng((*seed_path, i)))
        for i in range(vec.num_envs)
    ]
    held = HeldActions(snapshot.agent, vec.num_envs, steps, np.random.default_rng((*seed_path, vec.num_envs)))
    explorers = range(round(vec.num_envs * config.explore_share) if snapshot.reward is None else 0)
    stride = shown_stride(info.fps)
    candidates: list[Candidate] = []
    patience = 200 * steps * max(1, count // vec.num_envs)
    try:
        obs = vec.reset()
        for cutter, seed in zip(cutters, vec.episode_seeds, strict=True):
            cutter.reset(int(seed))
        for t in range(patience):
            actions = snapshot.agent.act(obs, generator)
            for i in explorers:
                actions[i] = held.choose(i)
            if isinstance(vec, FilmedEnvs) and cutters[0].open() and len(cutters[0].taken) % stride == 0:
                cutters[0].frames.append(vec.twin.frame())
            step = vec.step(actions)
            for i, cutter in enumerate(cutters):
                terminated, truncated = bool(step.terminated[i]), bool(step.truncated[i])
                ended = terminated and not cutter.hide and cutter.open() and len(cutter.taken) + 1 < steps
                if isinstance(vec, FilmedEnvs) and ended:
                    cutter.frames.append(vec.last_frame)
                ends = (step.final_obs[i], terminated)
                found = cutter.add(obs[i], actions[i], float(step.rewards[i]), step.info_of(i), *ends)
                if found is not None:
                    candidates.append(found)
                    report(min(len(candidates), count), count)
                if terminated or truncated:
                    cutter.reset(int(vec.episode_seeds[i]))
            obs = step.obs
            if len(candidates) >= count:
                return candidates[:count]
            if not candidates and t > HOPELESS_CLIPS * steps:
                break
    finally:
        vec.close()
    raise TooLong(
        f"Only {len(candidates)} of {count} clips of {steps} steps fit into the episodes of {config.env_id}, which "
        "are cut off too early: lower --clip-seconds."
    )


class FilmedEnvs:
    """One environment with the interface of Envs that can be seen at every step."""

    num_envs = 1

    def __init__(self, config: Config, seed_path: tuple[int, ...]) -> None:
        self.twin, self.seed_path, self.episodes = Twin(config), seed_path, 0
        self.episode_seeds = np.zeros(1, np.int64)
        self.last_frame = np.zeros((1, 1, 3), np.uint8)  # of the newest episode that terminated

    def reset(self) -> np.ndarray:
        self.episode_seeds[0] = seed_from(*self.seed_path, self.episodes) >> 1
        self.episodes += 1
        return self.twin.reset(int(self.episode_seeds[0]))[None]

    def step(self, actions: np.ndarray) -> Step:
        obs, reward, terminated, truncated, info = self.twin.step(actions[0])
        if terminated:
            self.last_frame = self.twin.frame()
        following = self.reset() if terminated or truncated else obs[None]
        flags = np.array([terminated]), np.array([truncated])
        return Step(following, np.array([reward], np.float32), *flags, obs[None], [info])

    def close(self) -> None:
        self.twin.close()


# ---------------------------------------------------------------------------------------------- pairs


def judge(model: RewardModel, agent: Agent, segments: Sequence[Segment]) -> torch.Tensor:
    """What each member gives each clip: (K, C) raw mean reward per step, times REFERENCE_STEPS, as in the loss."""
    device = model.scale.device
    sums = []
    for segment in segments:
        obs, actions, ended, count = (torch.as_tensor(x, device=device) for x in segment.rows())
        beside = None if model.potential is None else torch.as_tensor(segment.beside(), device=device)
        with torch.no_grad():
            total = (model(obs, agent.from_env(actions), ended, beside) * count).sum(1)
        sums.append(total / len(segment.absorbing) * REFERENCE_STEPS)
    return torch.stack(sums, 1)


def expit(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow


def looks(segments: Sequence[Segment]) -> np.ndarray:
    """What tells clips apart to the eye, roughly: (C, D), each column standardised over the clips.

    Mean and spread of each observation over the clip's steps (images: of the newest frame, in coarse blocks), and how
    much of it lies after the episode's end.
    """
    rows = []
    for segment in segments:
        x = segment.observations
        if x.ndim == 4:  # (T, S, H, W)
            block = max(1, min(x.shape[2:]) // 8)
            height, width = (side // block * block for side in x.shape[2:])
            blocks = x[:, -1, :height, :width].reshape(len(x), height // block, block, width // block, block)
            x = blocks.mean((2, 4))
        flat = x.reshape(len(x), -1).astype(np.float64)
        rows.append(np.concatenate([flat.mean(0), flat.std(0), [segment.absorbing.mean()]]))
    table = np.nan_to_num(np.stack(rows))
    return (table - table.mean(0)) / np.maximum(table.std(0), 1e-8)


def choose_pairs(
    candidates: int, count: int, rewards: np.ndarray | None, disagreement_fraction: float, rng: np.random.Generator,
    features: np.ndarray | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Chooses `count` pairs of different clips: some at random, some because the members disagree about them.

    Args:
        rewards: (K, C) raw clip rewards by member; None without a reward model, then none is chosen by disagreement.
        features: (C, D) of `looks`; with it most pairs that would be drawn at random are pairs that look different.

    Returns:
        rows of the pair table: left, right (positions among the candidates), kind, p_left, disagreement.
    """
    disagreeing = 0 if rewards is None else round(count * disagreement_fraction)
    different = 0 if features is None else round((count - disagreeing) * DIFFERENT_FRACTION)
    free = list(rng.permutation(candidates))

    def row(left: int, right: int, kind: str) -> dict[str, Any]:
        row: dict[str, Any] = {"left": int(left), "right": int(right), "kind": kind}
        if rewards is not None:
            p = expit(rewards[:, left] - rewards[:, right])
            row |= {"p_left": finite(p.mean()), "disagreement": finite(p.std())}
        return row

    def ranked(kind: str, wanted: int, worth: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
        """The best of many random pairs of free clips, each clip at most once."""
        drawn = [rng.choice(free, 2, replace=False) for _ in range(CANDIDATE_PAIRS * wanted)]
        tries = [row(left, right, kind) for left, right in drawn]
        chosen: list[dict[str, Any]] = []
        for r in sorted(tries, key=worth, reverse=True):
            if len(chosen) < wanted and r["left"] in free and r["right"] in free:
                chosen.append(r)
                free.remove(r["left"])
                free.remove(r["right"])
        while len(chosen) < wanted:  # the tries overlapped too much
            chosen.append(row(free.pop(), free.pop(), kind))
        return chosen

    def distance(r: dict[str, Any]) -> float:
        assert features is not None
        return float(np.square(features[r["left"]] - features[r["right"]]).mean())

    rows = [row(free.pop(), free.pop(), "uniform") for _ in range(count - disagreeing - different)]
    rows += ranked("different", different, distance)
    rows += ranked("disagreement", disagreeing, lambda r: r["disagreement"] or 0.0)
    return [rows[i] for i in rng.permutation(count)]


def choose_repeats(session: Session, number: int, count: int, rng: np.random.Generator) -> list[Pair]:
    """Earlier pairs with a decided label that counts, to show once more, sides swapped; none that came with labels of
    another session, since it may have been somebody else who judged them."""
    own = 1 if "labels_from" in session.header() else 0
    # a synthetic labeler's clips may not have been drawn
    old = session.repeatable(number, drawn=session.config.labeler == "human", since=own)
    picked = [old[i] for i in rng.permutation(len(old))[:count]]
    pairs = {p.id: p for p in session.pairs(ids=picked)}
    return [pairs[i] for i in picked]


# ---------------------------------------------------------------------------------------------- clips


def clip_name(number: int) -> str:
    """Of its files, without suffix."""
    return f"{number:04d}"


def write_clip(
    session: Session, directory: Path, number: int, candidate: Candidate, info: EnvInfo,
    shape: tuple[int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes a clip's files. Returns its row of the clip table, without round and attempt.

    Args:
        shape: height and width of the frames of a sheet that is still to be drawn.
    """
    stride, segment, sheet = shown_stride(info.fps), candidate.segment, candidate.sheet
    path = directory / f"{clip_name(number)}.npz"
    save_segment(path, segment)
    row: dict[str, Any] = {
        "path": path.relative_to(session.path).as_posix(), "fps": info.fps / stride, "steps": len(segment.rewards),
        "seed": candidate.seed, "start": len(candidate.prefix), "true_return": finite(float(segment.rewards.sum())),
    }  # fmt: skip
    if segment.absorbing.any():
        row["ended_frame"] = -(-int(segment.absorbing.argmax()) // stride)
    if sheet is not None:
        write_atomic(path.with_suffix(".png"), sheet.png)
        shown = (sheet.frame_width, sheet.frame_height, sheet.columns, sheet.frames)
    elif shape is not None:
        frames = shown_frames(segment, stride)
        laid = layout(frames, *shape)
        shown = (laid.width, laid.height, laid.columns, frames)
    else:
        return row
    row |= zip(("frame_width", "frame_height", "columns", "frames"), shown, strict=True)
    return row | {"sheet": path.with_suffix(".png").relative_to(session.path).as_posix()}


def collect(
    session: Session, snapshot: Snapshot, config: Config, info: EnvInfo, number: int, attempt: int, report: Report,
    longer: float = 1.0, differ: bool = False,
) -> None:  # fmt: skip
    """Collects the pairs of a round: after it, and not before, they are in the database, files and all.

    Where a person waits and the environment repeats itself, only the first pair is drawn by then: drawing.draw_rest
    does the others.

    Args:
        attempt: which batch of this round; an earlier one taught nothing, or the person wanted another.
        longer: how many times the usual length the clips have.
        differ: whether the clips of a pair shall look different.
    """
    seed_path = (config.seed, number, PHASE_SEED["collect"], attempt)
    rng = np.random.default_rng(seed_path)
    directory = session.clear_batch_files(number, attempt)
    repeats = choose_repeats(session, number, round(config.pairs_per_round * config.repeat_fraction), rng)
    fresh = config.pairs_per_round - len(repeats)
    steps = clip_steps(config, info, longer)
    choosing = snapshot.reward is not None or differ
    pool = round(2 * fresh * config.pool_factor) if choosing else 2 * fresh
    rendering = config.labeler == "human" or config.render
    needs_ram = info.kind == "atari" and bool(config.score)

    first_alone = config.labeler == "human" and not needs_ram and repeats_itself(config)
    # candidates, then the chosen ones again to be drawn
    whole = pool + (2 if first_alone else 2 * fresh * (rendering or needs_ram))

    def drawn(n: int, _total: int) -> None:
        report(pool + n, whole)

    for film in (False, True):
        candidates = gather(snapshot, config, info, pool, steps, seed_path, lambda n, _: report(n, whole), film)
        rewards = None
        if snapshot.reward is not None:
            rewards = judge(snapshot.reward, snapshot.agent, [c.segment for c in candidates]).cpu().numpy()
        features = looks([c.segment for c in candidates]) if differ else None
        rows = choose_pairs(len(candidates), fresh, rewards, config.disagreement_fraction, rng, features)
        first = [rows[0]["left"], rows[0]["right"]]  # whose picture stands for the session, too
        chosen = first + sorted({i for row in rows for i in (row["left"], row["right"])} - set(first))
        if film or not (rendering or needs_ram):
            break
        now = first if first_alone else chosen
        if play_again([candidates[i] for i in now], config, shown_stride(info.fps), rendering, drawn):
            break
    position = {index: n for n, index in enumerate(chosen)}
    shape = candidates[first[0]].shape if first_alone else None
    clips = [write_clip(session, directory, n, candidates[index], info, shape) for n, index in enumerate(chosen)]
    later = {clip_name(n): c for n, index in enumerate(chosen) if (c := candidates[index]).sheet is None}
    if shape is not None and later:
        postpone(session.undrawn(number, attempt), later, shape)
    pairs = [{**row, "left": position[row["left"]], "right": position[row["right"]]} for row in rows]
    for old in repeats:
        p_left = None if old.p_left is None else 1 - old.p_left
        pairs.insert(int(rng.integers(0, len(pairs) + 1)), {"kind": "repeat", "repeat_of": old.id, "p_left": p_left})
    batch = {"round": number, "attempt": attempt}
    session.add_batch([c | batch for c in clips], [p | batch | {"position": n} for n, p in enumerate(pairs)])
