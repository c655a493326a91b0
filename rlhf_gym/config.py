"""Every setting of a session: one flat frozen dataclass, and the presets per kind of environment.

`resolve()` puts together what the user asked for and the preset of the environment's kind; the result is what
stands in `config.json`. Field docstrings are the help texts of the command line and of docs/settings.md.
Nothing here imports torch or gymnasium.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

FORMAT_VERSION = 2  # of sessions, see migrate.py

Kind = Literal["classic", "box2d", "mujoco", "mujoco-falls", "atari", "pixels"]


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what, the value, and what to do. Never a traceback."""


@dataclass(frozen=True)
class Settings:
    """What can be set for a session. Presets per kind of environment move some of these defaults."""

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """JSON object passed to the environment, e.g. '{"gravity": 12.0}'."""
    goal: str = ""
    """Sentence shown above the clips, so that you judge by the same taste for an hour."""
    seed: int = 1
    """Seed of everything random; same seed, same labels, same agent (on CPU)."""
    pixels: bool = False
    """Learn from rendered frames (gray, resized, stacked) instead of the environment's own observation."""
    episode_ends: Literal["absorb", "hide"] = "absorb"
    """absorb: an ended episode shows its last frame, held, and has a learned value; hide: resets are ordinary steps."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where networks run; auto takes an NVIDIA GPU for pixels where there is one, and Apple's only if you say mps."""
    fast: bool = True
    """The same algorithm computed sooner; --no-fast leaves every number to the plain code."""
    bfloat16: bool = True
    """With --fast, multiply images in bfloat16, but only where the CPU or GPU does so natively."""

    rounds: int = 0
    """Stop after this many rounds; 0 means until you stop it."""
    pairs_per_round: int = 20
    """Pairs of clips to label in each round."""
    clip_seconds: float = 1.7
    """Length of a clip in seconds of play."""
    agent_steps_per_round: int = 50_000
    """Steps the agent is trained for after each batch of labels."""
    num_envs: int = 8
    """Environments stepped side by side."""

    labeler: Literal["human", "synthetic"] = "human"
    """human: labels come from the page; synthetic: from the true return or --score, with nobody there."""
    mistake_rate: float = 0.0
    """Probability that the synthetic labeler flips a label that says left or right."""
    score: str = ""
    """MODULE:FUNCTION with score(clip) -> float for the synthetic labeler; empty means the true return."""
    tie_threshold: float = 0.0
    """The synthetic labeler says equal when two scores differ by no more than this."""
    skip_threshold: float = -math.inf
    """The synthetic labeler says can't tell when both scores lie below this."""
    render: bool = False
    """With a synthetic labeler, render clips and videos all the same."""
    track: bool = False
    """Show it on Weights & Biases as well, which has to be installed (pip install wandb)."""

    pool_factor: float = 2.0
    """Clips collected as candidates, as a multiple of the clips needed."""
    explore_share: float = 0.75
    """Share of the environments played by random actions, held for a while, until there is a reward model."""
    disagreement_fraction: float = 0.5
    """Share of pairs chosen because the reward model's members disagree about them; the rest is drawn at random."""
    repeat_fraction: float = 0.05
    """Share of pairs that are earlier pairs shown again with sides swapped, to measure consistency."""

    ensemble_size: int = 3
    """Members of the reward model."""
    reward_hidden: int = 64
    """Width of the two hidden layers of a vector reward model."""
    reward_learning_rate: float = 1e-3
    """Adam step size of the reward model."""
    reward_weight_decay: float = 1e-3
    """Decoupled weight decay (AdamW) of the reward model."""
    reward_batch_pairs: int = 32
    """Pairs in one gradient step of the reward model."""
    reward_steps: int = 400
    """Gradient steps of the reward model in each round, at most; fewer while there are few labels."""
    reward_epochs: int = 150
    """Passes over all labels in each round, at most."""
    reward_clip_steps: int = 0
    """Steps of each clip, drawn anew, that one gradient step of the reward model looks at; 0 means all of them."""
    reward_init: Literal["fresh", "previous"] = "fresh"
    """Where the reward model starts in each round: new weights, or those of the round before."""
    assumed_mistake_rate: float = 0.05
    """Share of labels taken to be slips, until 30 hidden repeats tell; the likelihood of a label is (1 - 2m) p + m."""
    ends_alike: float = 5.0
    """From so many labeled clips that end on, all ends count as alike more than each by what is seen there."""
    reward_potential: bool = False
    """Judge a clip also by how far it came: a potential of each number and its size (vectors, ends not hidden)."""
    reward_quadratic: bool = False
    """Let members be quadratic functions of what is seen, found at once, in place of networks (vectors)."""
    reward_sees_action: bool = True
    """Predict reward from observation and action, r(o, a), rather than from the observation alone, r(o)."""

    learning_rate: float = 2.5e-4
    """Adam step size of the agent."""
    anneal_lr: bool = True
    """Let the agent's step size fall to zero over each round."""
    num_steps: int = 128
    """Steps per environment in one rollout."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    num_minibatches: int = 4
    """Minibatches per epoch of an update."""
    update_epochs: int = 4
    """Passes over a rollout in one update."""
    norm_adv: bool = True
    """Normalise advantages in each minibatch."""
    clip_coef: float = 0.2
    """Clipping of the surrogate objective."""
    clip_vloss: bool = True
    """Clip the value loss as well."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    target_kl: float = 0.0
    """End an update once the policy has moved further than this (KL divergence, after a pass); 0: it never ends so."""
    max_grad_norm: float = 0.5
    """Largest gradient norm."""
    hidden_size: int = 64
    """Width of the two hidden layers of a vector agent."""
    normalize_obs: bool = False
    """Give the agent observations of running mean zero and variance one; of images, each pixel."""
    initial_std: float = 1.0
    """Standard deviation of an untrained policy's actions, where -1 and 1 are the bounds; a softened one's at least."""
    soften_policy: float = 1.0
    """Factor on the policy's last layer at the start of each round after the first; below 1 it tries more things."""
    soften_fades: bool = False
    """Soften less from round to round: by --soften-policy after the first round, then by its square root, and so on."""
    round_std: float = 0.0
    """Standard deviation of actions with which a later round begins, at least, means within bounds; 0: as it was."""
    keep_better: bool = True
    """Keep the agent of before where the reward model clearly likes it better than the one just trained (vectors)."""
    value_warmup_iterations: int = 2
    """Rollouts at the start of a round on which the value alone is fitted, once it is on the new reward's scale."""

    frameskip: int = 4
    """Emulator frames per step (Atari)."""
    repeat_action_probability: float = 0.25
    """Probability that the emulator repeats the last action (Atari's sticky actions)."""
    noop_max: int = 30
    """Up to this many no-ops begin an episode (Atari)."""
    frame_stack: int = 4
    """Frames in one pixel observation."""
    image_size: int = 84
    """Side of a pixel observation; smaller images are left as they are."""
    mask_score: bool = True
    """Paint over the score in what the reward model sees (Atari games where we know the region)."""

    checkpoint_iterations: int = 0
    """Iterations between in-phase checkpoints of train_agent; 0 means measured at the start, at most 60 s apart."""
    eval_episodes: int = 10
    """Episodes of the evaluation after each round (none begins after 30 s, and after two minutes they are cut)."""


@dataclass(frozen=True)
class Config(Settings):
    """Every setting in force in a session: what stands in config.json."""

    env_id: str = ""
    """Gymnasium id, e.g. CartPole-v1, ALE/Pong-v5, or package.module:MyEnv-v0 for your own."""


MUJOCO = dict[str, Any](
    agent_steps_per_round=100_000, pairs_per_round=40, num_envs=8, num_steps=256, num_minibatches=32, update_epochs=10,
    learning_rate=3e-4, ent_coef=0.0, clip_vloss=False, normalize_obs=True, ensemble_size=5, reward_steps=300,
    reward_clip_steps=16, reward_sees_action=False,
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "classic": dict(
        agent_steps_per_round=40_000, update_epochs=10, num_minibatches=8, learning_rate=1e-3,
        ent_coef=0.0, clip_vloss=False, normalize_obs=True,
    ),
    "classic-continuous": dict(
        agent_steps_per_round=60_000, update_epochs=10, learning_rate=1e-3, gamma=0.95, ent_coef=0.0,
        num_steps=256, num_minibatches=16, clip_vloss=False, normalize_obs=True, soften_policy=0.1,
    ),
    "box2d": dict(
        agent_steps_per_round=100_000, pairs_per_round=30, num_envs=16, num_steps=256, num_minibatches=32,
        update_epochs=4, learning_rate=5e-4, clip_vloss=False, normalize_obs=True, reward_steps=300,
        reward_clip_steps=32, ends_alike=1e9,  # a landing and a crash are both ends
        reward_potential=True,  # what a landing is: where it came to, and how (docs/benchmarks.md)
    ),
    "mujoco": MUJOCO | dict(initial_std=0.37),  # flailing less it learns more (docs/benchmarks.md)
    "mujoco-falls": MUJOCO,  # with a standard deviation below one Hopper may stand still (docs/benchmarks.md)
    "atari": dict(
        agent_steps_per_round=100_000, pairs_per_round=40, anneal_lr=False, num_minibatches=8,
        target_kl=0.03,  # else it moves too far at once to play well (docs/benchmarks.md), and takes longer
        normalize_obs=True,  # else the ball is lost in what never moves
        reward_learning_rate=3e-4, reward_batch_pairs=16, reward_steps=600, reward_epochs=100, reward_clip_steps=8,
        reward_init="previous", reward_weight_decay=1e-2, reward_sees_action=False,
        # what the first, mistaken rewards taught is not tried out of it again; later ones are better
        soften_policy=0.1, soften_fades=True,
    ),
    "pixels": dict(
        agent_steps_per_round=20_000, pairs_per_round=20, learning_rate=5e-4, clip_vloss=False, normalize_obs=True,
        reward_learning_rate=3e-4, reward_batch_pairs=16, reward_steps=200, reward_epochs=40, reward_init="previous",
        reward_weight_decay=1e-2,
    ),
}  # fmt: skip

# Settings that a session keeps for life: what is on disk was made with them.
FIXED = (
    "env_id", "env_kwargs", "pixels", "episode_ends", "seed", "frameskip", "repeat_action_probability",
    "frame_stack", "image_size", "hidden_size", "normalize_obs", "reward_sees_action", "reward_hidden",
    "reward_potential", "reward_quadratic", "ensemble_size",
)  # fmt: skip

# name: (lowest, highest), both allowed
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1), "rounds": (0, 100_000), "pairs_per_round": (1, 10_000), "clip_seconds": (0.05, 60),
    "agent_steps_per_round": (1, 10**10), "num_envs": (1, 4096), "mistake_rate": (0, 0.5),
    "tie_threshold": (0, 1e12), "skip_threshold": (-math.inf, 1e12), "pool_factor": (1, 100),
    "explore_share": (0, 1), "disagreement_fraction": (0, 1), "repeat_fraction": (0, 0.5), "ensemble_size": (1, 32),
    "reward_hidden": (1, 4096), "reward_learning_rate": (1e-8, 1), "reward_weight_decay": (0, 10),
    "reward_batch_pairs": (1, 4096), "reward_steps": (1, 10**7), "reward_epochs": (1, 10**6),
    "reward_clip_steps": (0, 10**5),
    "assumed_mistake_rate": (0, 0.49), "ends_alike": (1e-3, 1e9), "learning_rate": (1e-8, 1), "num_steps": (2, 10**6),
    "gamma": (0, 0.99999), "gae_lambda": (0, 1), "num_minibatches": (1, 10**5), "update_epochs": (1, 1000),
    "clip_coef": (1e-4, 10), "target_kl": (0, 100), "ent_coef": (0, 10), "vf_coef": (0, 100),
    "max_grad_norm": (1e-6, 1e6),
    "hidden_size": (1, 8192), "initial_std": (1e-3, 10), "soften_policy": (0, 1), "round_std": (0, 10),
    "value_warmup_iterations": (0, 10_000), "frameskip": (1, 60),
    "repeat_action_probability": (0, 1), "noop_max": (0, 1000), "frame_stack": (1, 16), "image_size": (36, 512),
    "checkpoint_iterations": (0, 10**9), "eval_episodes": (1, 100_000),
}  # fmt: skip

MAX_GOAL_CHARS = 500


def program() -> str:
    """What the user types to call us: rlhf-gym where it is on the PATH, else the checkout's scripts/run.py."""
    script = Path(__file__).resolve().parent.parent / "scripts" / "run.py"
    if shutil.which("rlhf-gym") or not script.exists():
        return "rlhf-gym"
    here = Path.cwd()
    return f"python3 {script.relative_to(here) if script.is_relative_to(here) else script}"


def printable(text: object) -> str:
    """Without the control characters with which a stranger's session could write anywhere on the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def exactly(number: float) -> str:
    """2147483647, not 2.14748e+09."""
    return str(int(number)) if number == number // 1 and abs(number) < 1e12 else f"{number:g}"


def one_line(error: BaseException, most: int = 200) -> str:
    """An error's type and text on one line of at most so many characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def validate(config: Config) -> Config:
    """Returns the config unchanged, or raises UserError naming the first setting that is out of range."""
    validate_each(config)
    if config.num_envs * config.num_steps < config.num_minibatches:
        raise UserError(
            f"--num-minibatches {config.num_minibatches} is more than the {config.num_envs * config.num_steps} steps "
            "of a rollout: lower it, or raise --num-envs or --num-steps."
        )
    if config.reward_quadratic and config.reward_potential:
        raise UserError(
            "--reward-quadratic and --reward-potential are two ways to judge a step that do not go together: add "
            "--no-reward-potential, or leave out --reward-quadratic."
        )
    return config


@functools.cache
def type_hints() -> dict[str, Any]:
    """Of the settings; finding them takes longer than all else that validating does."""
    return get_type_hints(Config)


def validate_each(config: Config) -> Config:
    """As `validate`, but each setting alone: for what is known before the environment's kind, and so its preset."""
    hints = type_hints()
    for f in dataclasses.fields(Config):
        value, hint = getattr(config, f.name), hints[f.name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise UserError(f"{flag(f.name)} {value!r} is not one of {', '.join(get_args(hint))}.")
        elif hint in (int, float):
            number = isinstance(value, int) if hint is int else isinstance(value, int | float)
            if not number or isinstance(value, bool):
                raise UserError(f"{flag(f.name)} {value!r} is not {'a whole number' if hint is int else 'a number'}.")
            low, high = RANGES[f.name]
            if not low <= value <= high:  # NaN fails this too
                raise UserError(
                    f"{flag(f.name)} {value} is out of range: give a value from {exactly(low)} to {exactly(high)}."
                )
        elif hint in (bool, str):
            if not isinstance(value, hint):
                raise UserError(f"{flag(f.name)} {value!r} is not {'true or false' if hint is bool else 'text'}.")
        elif not is_json_object(value):
            raise UserError(f"{flag(f.name)} {value!r} is not a JSON object: write it like '{{\"gravity\": 12.0}}'.")
    if not config.env_id:
        raise UserError("No environment is named: give a Gymnasium id, e.g. CartPole-v1.")
    if len(config.goal) > MAX_GOAL_CHARS:
        raise UserError(f"--goal has {len(config.goal)} characters: {MAX_GOAL_CHARS} at most fit above the clips.")
    if config.score and ":" not in config.score:
        raise UserError(f"--score {config.score!r} is not MODULE:FUNCTION, e.g. my_scores:upright.")
    return config


def is_json_object(value: Any) -> bool:
    """Whether it is a dict that JSON can hold: NaN and infinity it cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)


def resolve(explicit: dict[str, Any], kind: str) -> Config:
    """The config in force: defaults, then the preset of the environment's kind, then what the user said.

    Args:
        explicit: settings the user gave, `env_id` among them.
        kind: a key of PRESETS, as `envs.describe` returns it.
    """
    return validate(Config(**{**PRESETS[kind], **explicit}))


def changed(old: Config, explicit: dict[str, Any]) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    """Applies settings to a session's config. Returns the new one and {name: (before, after)}.

    Raises:
        UserError: if a setting that a session keeps for life would change.
    """
    changes = {k: (getattr(old, k), v) for k, v in explicit.items() if getattr(old, k) != v}
    for name in FIXED:
        if name in changes:
            before, after = changes[name]
            raise UserError(
                f"{flag(name)} cannot change from {before!r} to {after!r} in an existing session: "
                "what is on disk was made with it. Start a new session for that."
            )
    return validate(dataclasses.replace(old, **{k: v for k, (_, v) in changes.items()})), changes


def to_json(config: Config) -> str:
    """The config as JSON (infinite thresholds as null: JSON has no infinity)."""
    values = {"env_id": config.env_id} | dataclasses.asdict(config)
    values = {k: None if v == -math.inf else v for k, v in values.items()}
    return json.dumps(values, indent=2, allow_nan=False)


def from_json(text: str) -> Config:
    """The config from `to_json`'s text, validated.

    Raises:
        UserError: unknown or missing settings, wrong types, values out of range, or no JSON at all.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The settings are not valid JSON ({error}).") from None
    if not isinstance(values, dict) or "env_id" not in values:
        raise UserError("The settings name no environment (env_id).")
    known = {f.name for f in dataclasses.fields(Config)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"Unknown setting {unknown[0]!r}: made by another version of rlhf-gym?")
    if values.get("skip_threshold", 0) is None:
        values["skip_threshold"] = -math.inf
    return validate(Config(**values))
