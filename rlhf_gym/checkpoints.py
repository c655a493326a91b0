"""Networks new and on disk: the untrained agent, a round's checkpoint, the state in the middle of a phase.

Files hold tensors, numbers and strings alone, so that reading one never runs code (`weights_only=True`).
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf_gym import config as cfg
from rlhf_gym import fast
from rlhf_gym.atari import score_regions
from rlhf_gym.config import Config, UserError, one_line
from rlhf_gym.envs import EnvInfo, Envs
from rlhf_gym.files import seal, sealed, unseal, write_atomic
from rlhf_gym.seeds import PHASE_SEED, seed_from
from rlhf_gym.train import END_SPEED, Agent, RewardModel, rollout


def pick_device(config: Config, info: EnvInfo) -> torch.device:
    """The device asked for; auto means a GPU for images and the CPU, one thread, for vectors (it is faster)."""
    torch.set_num_threads(torch.get_num_threads() if info.image else 1)
    if config.device != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available[config.device]:
            raise UserError(f"--device {config.device} is not on this machine: use --device auto or cpu.")
        if config.device == "mps" and not info.image:
            raise UserError("--device mps does not help with vectors, and lacks what they need: use --device cpu.")
        return torch.device(config.device)
    return torch.device("cuda" if info.image and torch.cuda.is_available() else "cpu")


def new_agent(info: EnvInfo, config: Config, device: torch.device) -> Agent:
    """An untrained agent; where observations are normalised, by the statistics of its own first steps."""
    torch.default_generator.manual_seed(seed_from(config.seed, PHASE_SEED["start"]))
    agent = Agent(info, config).to(device)
    if agent.normalizer is not None:
        vec = Envs(config, config.num_envs, (config.seed, PHASE_SEED["start"]))
        generator = torch.Generator(device).manual_seed(seed_from(config.seed, PHASE_SEED["start"]))
        roll, _, _ = rollout(agent, vec, vec.reset(), config, generator, device)
        agent.normalizer.update(roll.obs.flatten(0, 1))
        vec.close()
    return agent


def new_reward_model(info: EnvInfo, config: Config, device: torch.device, round: int) -> RewardModel:
    torch.default_generator.manual_seed(seed_from(config.seed, round, PHASE_SEED["train_reward"]))
    model = RewardModel(info, config).to(device)
    model.regions = score_regions(config)
    if config.fast and info.image:
        fast.lay_out(model)
    return model


class Damaged(UserError):
    """A checkpoint that is there and cannot be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"Checkpoint {path} cannot be read ({why}).")
        self.path = path


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes nested dicts of tensors, numbers and strings; atomic and durable, with a checksum at the end."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, seal(buffer.getvalue()))


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what save_state wrote.

    Raises:
        Damaged: the file is torn, or a bit of it has changed.
        UserError: there is no such file, or it is no checkpoint.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Checkpoint {path} cannot be read ({error.strerror}).") from None
    whole = unseal(data)
    if whole is None:
        raise Damaged(path, "its checksum is wrong" if sealed(data) else "its end is missing")
    try:
        state = torch.load(io.BytesIO(whole), map_location=device, weights_only=True)
    except Exception as error:  # torch says it in many ways: KeyError for a text, EOFError for an empty file
        raise Damaged(path, one_line(error)) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of rlhf-gym.")
    return state


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint, or the state in the middle of a phase, as this version writes it.

    Before, what an end is worth was one number for all of them, and not known as long as no labeled clip had shown one.
    """
    reward = state.get("reward") or {}
    if "absorbing" in reward and "trust" not in reward:
        known, constant = bool(reward.get("ends", 1)), reward[max(k for k in reward if k.startswith("biases."))]
        number = (reward["absorbing"] - constant.flatten()) / END_SPEED
        reward = {k: v for k, v in reward.items() if k != "ends"}
        reward |= {"trust": torch.tensor(float(not known)), "absorbing": number if known else torch.zeros_like(number)}
        state = {**state, "reward": reward}
    half = (state.get("training") or {}).get("model")
    if half is not None and not {"trust", "obs_mean"} <= set(half):  # half a training: once more
        state = {k: v for k, v in state.items() if k != "training"}
    return state


def load_reward(model: RewardModel, state: dict[str, torch.Tensor]) -> None:
    """Loads what a checkpoint holds of a reward model. Before, one of images did not standardise what it sees."""
    model.load_state_dict({"obs_mean": model.obs_mean, "obs_std": model.obs_std, **state})
    model.eval()


def may_go_on(model: RewardModel) -> bool:
    """Whether a new reward model may begin with its weights; those of images of before know other inputs."""
    return not (model.image and bool((model.obs_std == 1).all()))


@dataclass
class Snapshot:
    """A round's checkpoint: the agent, the reward model (none for the untrained agent), and what made them."""

    agent: Agent
    reward: RewardModel | None
    config: Config
    info: EnvInfo
    round: int
    last_label_id: int = 0  # the newest label row the reward model has seen
    global_step: int = 0  # steps of training behind the agent, over all rounds
    forgotten: int = 0  # label rows up to this one had no part in the reward model's weights

    def save(self, path: Path) -> None:
        meta: dict[str, Any] = {
            "round": self.round,
            "last_label_id": self.last_label_id,
            "global_step": self.global_step,
            "forgotten": self.forgotten,
        }
        meta |= {"config": cfg.to_json(self.config), "info": asdict(self.info)}
        reward = self.reward.state_dict() if self.reward is not None else {}
        save_state(path, {"agent": self.agent.state_dict(), "reward": reward, "meta": json.dumps(meta)})

    @staticmethod
    def load(path: Path, device: torch.device | str = "cpu", of: Config | None = None) -> Snapshot:
        """Raises UserError where the file is missing, torn, or made of other parts.

        Args:
            of: the settings of its session: those that run code count, and a checkpoint of others is refused.
        """
        state = upgraded(load_state(path, device))
        try:
            meta = json.loads(state["meta"])
            config, info = cfg.from_json(meta["config"]), EnvInfo.from_json(meta["info"])
            if of is not None:
                config = replace(config, score=of.score, fast=of.fast, bfloat16=of.bfloat16)
                if (config.env_id, config.env_kwargs) != (of.env_id, of.env_kwargs):
                    raise UserError(
                        f"Checkpoint {path} is of another environment than its session ({ascii(config.env_id)[:200]} "
                        f"with {json.dumps(config.env_kwargs)[:200]}, not {ascii(of.env_id)[:200]}): it is not used."
                    )
            if info.image and "normalizer.mean" not in state["agent"]:  # before, images were not standardised
                config = replace(config, normalize_obs=False)
            agent, reward = Agent(info, config).to(device), None
            agent.load_state_dict(state["agent"])
            if state["reward"]:
                reward = new_reward_model(info, config, torch.device(device), meta["round"])
                load_reward(reward, state["reward"])
            seen = {"last_label_id": meta["last_label_id"], "forgotten": meta.get("forgotten", 0)}  # not noted before
            return Snapshot(agent, reward, config, info, meta["round"], global_step=meta["global_step"], **seen)
        except (KeyError, TypeError, RuntimeError) as error:  # a missing part, another shape
            raise UserError(f"{path} is no checkpoint of this version of rlhf-gym ({one_line(error)}).") from None
