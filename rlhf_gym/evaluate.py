"""How good is the agent, and what does it look like: true return over whole episodes, and videos."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo, Envs, Twin
from rlhf_gym.files import write_atomic
from rlhf_gym.labelers import Score, ScoredClip
from rlhf_gym.seeds import PHASE_SEED, seed_from
from rlhf_gym.store import finite
from rlhf_gym.train import Agent
from rlhf_gym.verdicts import video_fps, video_stride

STEP_CAP = 27_000  # of an episode; Atari's own limit of 108,000 frames
EVAL_ENVS = 8


def generator_for(greedy: bool, agent: Any, seed_path: tuple[int, ...]) -> torch.Generator | None:
    """None where the likeliest actions are wanted, or by no network."""
    if greedy or not isinstance(agent, torch.nn.Module):
        return None
    return torch.Generator(next(agent.parameters()).device).manual_seed(seed_from(*seed_path))


class Actor(Protocol):
    """What can play: an agent, or a stand-in for one."""

    def act(self, obs: np.ndarray, generator: torch.Generator | None = None, /) -> np.ndarray: ...


@dataclass
class Episodes:
    """Episodes as they were played, whole but for the capped ones."""

    returns: np.ndarray  # (E,): true return of each
    lengths: np.ndarray
    scores: np.ndarray | None
    capped: int  # cut at step_cap or by the clock
    greedy: bool


def evaluate(
    agent: Agent,
    config: Config,
    info: EnvInfo,
    round: int,
    episodes: int,
    **how: Any,
) -> dict[str, Any]:
    """Plays whole episodes on the true reward and sums them up. Arguments as of `play_episodes`.

    Returns:
        mean, std, min, max, mean_length, episodes, round, greedy, capped (episodes cut at step_cap or by the
        clock); with a score also score_mean and score_std. Means are None where the true reward is NaN.
    """
    return summary(play_episodes(agent, config, info, episodes, **how), round)


def summary(played: Episodes, round: int) -> dict[str, Any]:
    """Episodes in numbers, as `evaluate` gives them."""

    def numbers(values: np.ndarray, **names: str) -> dict[str, float | None]:
        return {name: finite(float(getattr(values, what)())) for name, what in names.items()}

    result: dict[str, Any] = numbers(played.returns, mean="mean", std="std", min="min", max="max")
    result |= {
        "mean_length": float(played.lengths.mean()), "episodes": len(played.returns), "round": round,
        "greedy": played.greedy, "capped": played.capped,
    }  # fmt: skip
    if played.scores is not None:
        result |= numbers(played.scores, score_mean="mean", score_std="std")
    return result


def play_episodes(
    agent: Actor,
    config: Config,
    info: EnvInfo,
    episodes: int,
    *,
    greedy: bool | None = None,
    score: Score | None = None,
    max_seconds: float = float("inf"),
    step_cap: int = STEP_CAP,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Plays whole episodes on the true reward.

    Each environment plays its share of the episodes, so that short ones are not counted more often than long ones.

    Args:
        greedy: the likeliest actions; None means sampled on Atari, where a greedy agent gets stuck, greedy elsewhere.
        score: also score each whole episode (absorbing steps: none).
        clock: gives the seconds that count for max_seconds.
        max_seconds: no episode begins after half of them, and those under way are cut at the end and count as they
            stand: to leave them out would leave out the long ones.
    """
    greedy = info.kind != "atari" if greedy is None else greedy
    seed_path = (config.seed, PHASE_SEED["record"])  # the same episodes for every round
    generator = generator_for(greedy, agent, seed_path)
    n = min(EVAL_ENVS, episodes)
    share = [episodes // n + (i < episodes % n) for i in range(n)]
    results: list[tuple[float, int, float]] = []  # true return, length, score
    capped, start = 0, clock()
    steps: list[list[tuple[Any, ...]]] = [[] for _ in range(n)]
    rams = RamReader(config, n) if score is not None and info.kind == "atari" else None
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    vec = Envs(config, n, seed_path)
    try:
        obs = vec.reset()
        if rams is not None:
            rams.reset(range(n), vec.episode_seeds)
        while any(share):
            actions = agent.act(obs, generator)
            step = vec.step(actions)
            returns += step.rewards
            lengths += 1
            spent = clock() - start
            for i in range(n):
                if not share[i]:
                    continue
                if score is not None:
                    more = rams.step(i, actions[i]) if rams is not None else {}
                    steps[i].append((obs[i].copy(), actions[i], float(step.rewards[i]), {**step.infos[i], **more}))
                over = bool(step.terminated[i] or step.truncated[i])
                cut = lengths[i] >= step_cap or spent > max_seconds
                if over or cut:
                    capped += not over
                    value = score(whole_episode(steps[i])) if score is not None else 0.0
                    results.append((float(returns[i]), int(lengths[i]), value))
                    last = not over or spent > max_seconds / 2  # an episode without an end is played once
                    share[i] = 0 if last else share[i] - 1
                if over:
                    returns[i], lengths[i], steps[i] = 0.0, 0, []
                    if rams is not None:
                        rams.reset([i], vec.episode_seeds)
            if report is not None:
                report(len(results), episodes)
            obs = step.obs
    finally:
        vec.close()
        if rams is not None:
            rams.close()
    values = np.array(results)
    scores = values[:, 2] if score is not None else None
    return Episodes(values[:, 0], values[:, 1], scores, capped, greedy)


def whole_episode(steps: list[tuple[Any, ...]]) -> ScoredClip:
    obs, actions, rewards, infos = zip(*steps, strict=True)
    ended = np.zeros(len(obs), bool)
    return ScoredClip(np.stack(obs), np.stack(actions), np.array(rewards, np.float32), ended, list(infos))


class RamReader:
    """The console's RAM along running Atari episodes, which the vector environment does not give."""

    def __init__(self, config: Config, num_envs: int) -> None:
        self.twins = [Twin(config, render=False) for _ in range(num_envs)]

    def reset(self, which: range | list[int], seeds: np.ndarray) -> None:
        for i in which:
            self.twins[i].reset(int(seeds[i]))

    def step(self, i: int, action: np.ndarray) -> dict[str, Any]:
        return {"ram": self.twins[i].step(action)[4]["ram"]}

    def close(self) -> None:
        for twin in self.twins:
            twin.close()


# ---------------------------------------------------------------------------------------------- videos


@dataclass
class Played:
    """An episode as it was filmed."""

    steps: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)  # observation, action, true reward
    end: np.ndarray | None = None  # the terminal observation, if it ended by itself


def film_episode(
    agent: Agent, config: Config, seed: int, greedy: bool, max_steps: int, played: Played | None = None
) -> Generator[np.ndarray]:
    """Plays one episode and yields its frames (H, W, 3), one for each step and the last; fills in `played`."""
    twin = Twin(config)
    generator = generator_for(greedy, agent, (seed,))
    try:
        obs = twin.reset(seed)
        for _ in range(max_steps):
            yield twin.frame()
            action = agent.act(obs[None], generator)[0]
            following, reward, terminated, truncated, _ = twin.step(action)
            if played is not None:
                played.steps.append((obs, action, reward))
                played.end = following if terminated else None
            obs = following
            if terminated or truncated:
                break
        yield twin.frame()
    finally:
        twin.close()


def record_video(
    agent: Agent,
    config: Config,
    info: EnvInfo,
    path: Path,
    *,
    episodes: int = 1,
    greedy: bool | None = None,
    max_seconds_shown: float = 30.0,
    max_seconds: float = float("inf"),
    first_seed: int = 0,
    played: Played | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes episodes one after another as H.264 mp4 in real time, at 30 frames a second or fewer; atomically.

    Args:
        max_seconds_shown: of each episode, in seconds of play.
        max_seconds: that the recording itself may take; what has been played by then is the video.
        first_seed: another number, another episode.
        played: gets the last episode's steps.
    """
    greedy = info.kind != "atari" if greedy is None else greedy
    import av  # heavy

    stride, began = video_stride(info), time.monotonic()
    max_steps = max(1, int(max_seconds_shown * info.fps))
    movie = io.BytesIO()
    try:
        with av.open(movie, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=video_fps(info))
            stream.pix_fmt = "yuv420p"
            for episode in range(episodes):
                seed = seed_from(config.seed, PHASE_SEED["record"], first_seed + episode) >> 1
                film = film_episode(agent, config, seed, greedy, max_steps, played)
                with contextlib.closing(film):
                    for t, frame in enumerate(film):
                        if t % stride == 0:
                            picture = np.ascontiguousarray(even(enlarge(frame)))
                            if not stream.codec_context.is_open:
                                stream.height, stream.width = picture.shape[:2]
                            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                        if report is not None:
                            report(episode * max_steps + t, episodes * max_steps)
                        if time.monotonic() - began > max_seconds:
                            break
            container.mux(stream.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, movie.getvalue(), durable=False)
    except (OSError, av.error.FFmpegError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"Cannot write the video {path} ({said}).") from None
    return path


def enlarge(frame: np.ndarray, smallest: int = 320) -> np.ndarray:
    """Doubles small frames (Atari's 160×210) pixel by pixel, so that compression does not smear them."""
    factor = max(1, round(smallest / frame.shape[1]))
    return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame


def even(frame: np.ndarray) -> np.ndarray:
    """H.264 with 4:2:0 colour wants even sides."""
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
