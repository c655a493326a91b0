"""How good is the agent, and what does it look like: true return over whole episodes, and videos."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_gym import movies
from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo, Envs, Step, Twin
from rlhf_gym.files import write_atomic
from rlhf_gym.labelers import Score, ScoredClip
from rlhf_gym.seeds import PHASE_SEED, seed_from
from rlhf_gym.store import finite
from rlhf_gym.train import Agent
from rlhf_gym.verdicts import video_fps, video_stride

STEP_CAP = 27_000  # of an episode; Atari's own limit of 108,000 frames
EVAL_ENVS = 8
PATIENCE = 4  # times as long as episodes begin the last of them may take


def plays_greedily(info: EnvInfo) -> bool:
    """Whether agents take their likeliest actions where they are looked at: not on Atari, where they get stuck."""
    return info.kind != "atari"


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
        greedy: the likeliest actions; None means as `plays_greedily` says.
        score: also score each whole episode.
        clock: gives the seconds that count for max_seconds.
        max_seconds: no episode begins after so many. Those under way then have three times as long again, before they
            are cut and count as they stand: to leave them out would leave out the long ones.
    """
    greedy = plays_greedily(info) if greedy is None else greedy
    seed_path = (config.seed, PHASE_SEED["record"])  # the same episodes for every round
    generator = generator_for(greedy, agent, seed_path)
    n = min(EVAL_ENVS, episodes)
    share = [episodes // n + (i < episodes % n) for i in range(n)]
    results: list[tuple[float, int, float]] = []  # true return, length, score
    capped, start = 0, clock()
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    with closing(Scorer(score, config, info, n)) as scorer, closing(Envs(config, n, seed_path)) as vec:
        obs = vec.reset()
        for i in range(n):
            scorer.begin(i, int(vec.episode_seeds[i]))
        while any(share):
            actions = agent.act(obs, generator)
            step = vec.step(actions)
            returns += step.rewards
            lengths += 1
            spent = clock() - start
            for i in range(n):
                if not share[i]:
                    continue
                scorer.add(i, obs[i], actions[i], step)
                over = bool(step.terminated[i] or step.truncated[i])
                cut = lengths[i] >= step_cap or spent > PATIENCE * max_seconds
                if over or cut:
                    capped += not over
                    results.append((float(returns[i]), int(lengths[i]), scorer.take(i)))
                    last = not over or spent > max_seconds  # an episode without an end is played once
                    share[i] = 0 if last else share[i] - 1
                if over:
                    returns[i], lengths[i] = 0.0, 0
                    scorer.begin(i, int(vec.episode_seeds[i]))
            if report is not None:
                report(len(results), episodes)
            obs = step.obs
    values = np.array(results)
    scores = values[:, 2] if score is not None else None
    return Episodes(values[:, 0], values[:, 1], scores, capped, greedy)


class Scorer:
    """Scores whole episodes of some environments as they are played; without a score function it does nothing.

    On Atari a twin of each plays along, for the console's RAM, which the vector environment does not give.
    """

    def __init__(self, score: Score | None, config: Config, info: EnvInfo, num_envs: int) -> None:
        self.score = score
        self.steps: list[list[tuple[Any, ...]]] = [[] for _ in range(num_envs)]  # observation, action, reward, info
        atari = score is not None and info.kind == "atari"
        self.twins = [Twin(config, render=False) for _ in range(num_envs if atari else 0)]

    def begin(self, i: int, seed: int) -> None:
        """An episode of environment i, from that seed on."""
        self.steps[i] = []
        if self.twins:
            self.twins[i].reset(seed)

    def add(self, i: int, obs: np.ndarray, action: np.ndarray, step: Step) -> None:
        """What environment i did: its observation (*obs_shape) before the step, its action, what all came to."""
        if self.score is None:
            return
        ram = {"ram": self.twins[i].step(action)[4]["ram"]} if self.twins else {}
        self.steps[i].append((obs.copy(), action, float(step.rewards[i]), {**step.infos[i], **ram}))

    def take(self, i: int) -> float:
        """The score of environment i's episode as far as it was played; absorbing steps: none. 0 without a score."""
        if self.score is None:
            return 0.0
        obs, actions, rewards, infos = zip(*self.steps[i], strict=True)
        absorbing = np.zeros(len(obs), bool)
        return self.score(
            ScoredClip(np.stack(obs), np.stack(actions), np.array(rewards, np.float32), absorbing, list(infos))
        )

    def close(self) -> None:
        for twin in self.twins:
            twin.close()


# ---------------------------------------------------------------------------------------------- videos


@dataclass
class Played:
    """An episode as it was filmed."""

    steps: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)  # observation, action, true reward
    end: np.ndarray | None = None  # the terminal observation, if it ended by itself


def episode_seed(config: Config, number: int = 0) -> int:
    """That of the episode in each round's video, or of the next ones: the same for all rounds."""
    return seed_from(config.seed, PHASE_SEED["record"], number) >> 1


def film_episode(
    agent: Agent, config: Config, seed: int, stride: int, max_steps: int, played: Played | None = None
) -> Generator[np.ndarray]:
    """Plays one episode, greedily but on Atari; yields its frames (H, W, 3) and fills in `played`.

    Args:
        stride: only every so many steps a frame is drawn; the last is left out, too, where it is none of these.
    """
    twin = Twin(config)
    generator = generator_for(plays_greedily(twin.info), agent, (seed,))
    try:
        obs = twin.reset(seed)
        for t in range(max_steps):
            if t % stride == 0:
                yield twin.frame()
            action = agent.act(obs[None], generator)[0]
            following, reward, terminated, truncated, _ = twin.step(action)
            if played is not None:
                played.steps.append((obs, action, reward))
                played.end = following if terminated else None
            obs = following
            if terminated or truncated:
                break
        if (t + 1) % stride == 0:
            yield twin.frame()
    finally:
        twin.close()


def record_video(
    agent: Agent,
    config: Config,
    info: EnvInfo,
    path: Path,
    *,
    max_seconds_shown: float = 30.0,
    max_seconds: float = float("inf"),
    number: int = 0,
    played: Played | None = None,
) -> Path:
    """Writes an episode as H.264 mp4 in real time, at 30 frames a second or fewer; atomically.

    Args:
        max_seconds_shown: in seconds of play.
        max_seconds: that the recording itself may take; what has been played by then is the video.
        number: of the episode; that of a round's video is 0.
        played: gets its steps.

    Raises:
        UserError: it cannot be written.
    """
    max_steps = max(1, int(max_seconds_shown * info.fps))
    film = film_episode(agent, config, episode_seed(config, number), video_stride(info), max_steps, played)
    movie = io.BytesIO()
    with movies.writing("video", path), closing(film):
        movies.encode(movie, map(movies.enlarge, begun_within(film, max_seconds)), video_fps(info))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, movie.getvalue(), durable=False)
    return path


def begun_within(frames: Iterable[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """The frames up to the first that took longer; one at least, for a movie of none cannot be written."""
    began = time.monotonic()
    for frame in frames:
        yield frame
        if time.monotonic() - began > seconds:
            return
