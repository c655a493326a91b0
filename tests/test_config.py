"""Settings: who wins, what is refused, and what stands in config.json; and that imports run one way."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym import config as cfg
from rlhf_gym.config import FIXED, PRESETS, RANGES, Config, Settings, UserError

ROOT = Path(__file__).parents[1]
HINTS = get_type_hints(Config)
LITERALS = [name for name, hint in HINTS.items() if get_origin(hint) is Literal]
NUMBERS = sorted(RANGES)


def make(**settings: Any) -> Config:
    return Config(**{"env_id": "CartPole-v1", **settings})


def refusal(**settings: Any) -> str:
    """The sentence with which these settings are refused."""
    with pytest.raises(UserError) as caught:
        cfg.validate(make(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- who wins


def test_an_explicit_setting_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    assert Config().learning_rate != PRESETS["classic"]["learning_rate"]
    explicit = {"env_id": "CartPole-v1", "gamma": 0.5}
    config = cfg.resolve(explicit, "classic")
    assert config.gamma == 0.5  # the preset says otherwise
    assert config.learning_rate == PRESETS["classic"]["learning_rate"]
    assert config.gae_lambda == Config().gae_lambda


def test_an_explicit_setting_wins_even_where_it_equals_the_default() -> None:
    default = Config().update_epochs
    assert PRESETS["classic"]["update_epochs"] != default
    assert cfg.resolve({"env_id": "CartPole-v1", "update_epochs": default}, "classic").update_epochs == default


@pytest.mark.parametrize("kind", PRESETS)
def test_every_preset_names_real_settings_and_is_valid(kind: str) -> None:
    config = cfg.resolve({"env_id": "x"}, kind)
    assert {k: getattr(config, k) for k in PRESETS[kind]} == PRESETS[kind]


def test_what_resolve_makes_of_bad_settings_is_refused() -> None:
    with pytest.raises(UserError, match="--gamma 2"):
        cfg.resolve({"env_id": "CartPole-v1", "gamma": 2.0}, "classic")


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(name: str) -> None:
    low, high = RANGES[name]
    whole = HINTS[name] is int
    for end, outward in ((low, -1), (high, 1)):
        value = int(end) if whole else end
        room = {"num_envs": 4096, "num_steps": 10**5} if name == "num_minibatches" else {}
        config = make(**{"num_minibatches": 1, **room, name: value})
        assert cfg.validate(config) is config
        if math.isinf(end):
            assert (name, end) == ("skip_threshold", -math.inf)  # means: never
            continue
        beyond: float = value + outward if whole else math.nextafter(end, outward * math.inf)
        said = refusal(**{name: beyond})
        assert said.startswith(f"{cfg.flag(name)} {beyond} is out of range")
        assert f"{cfg.exactly(low)} to {cfg.exactly(high)}" in said


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, True, "1", None, [1]], ids=repr)
def test_no_number_is_nan_infinite_a_bool_or_something_else(name: str, bad: Any) -> None:
    assert cfg.flag(name) in refusal(**{name: bad})


@pytest.mark.parametrize("name", [n for n in NUMBERS if HINTS[n] is int])
def test_a_whole_number_is_no_float(name: str) -> None:
    assert refusal(**{name: float(RANGES[name][0])}).endswith("is not a whole number.")


@pytest.mark.parametrize("name", LITERALS)
@pytest.mark.parametrize("bad", ["", "neither", None, 1, ["absorb"]], ids=repr)
def test_a_choice_is_one_of_those_there_are(name: str, bad: Any) -> None:
    said = refusal(**{name: bad})
    assert all(choice in said for choice in get_args(HINTS[name]))


@pytest.mark.parametrize("name", [n for n, hint in HINTS.items() if hint is bool])
@pytest.mark.parametrize("bad", [0, 1, "true", None], ids=repr)
def test_true_or_false_is_no_number(name: str, bad: Any) -> None:
    assert refusal(**{name: bad}) == f"{cfg.flag(name)} {bad!r} is not true or false."


@pytest.mark.parametrize("bad", ["{", "text", 5, [1], None, {"x": math.nan}, {"x": math.inf}, {"x": {1}}], ids=repr)
def test_env_kwargs_are_what_json_calls_an_object(bad: Any) -> None:
    assert "is not a JSON object" in refusal(env_kwargs=bad)


def test_texts_that_do_not_fit() -> None:
    assert refusal(env_id="").startswith("No environment is named")
    assert "501 characters" in refusal(goal="x" * 501)
    assert cfg.validate(make(goal="x" * 500))
    assert "is not text" in refusal(goal=5)
    assert "MODULE:FUNCTION" in refusal(score="my_scores")


def test_minibatches_need_a_row_each() -> None:
    assert cfg.validate(make(num_envs=2, num_steps=8, num_minibatches=16))
    assert "17 is more than the 16 steps" in refusal(num_envs=2, num_steps=8, num_minibatches=17)
    alone = make(num_envs=2, num_steps=8, num_minibatches=17)
    assert cfg.validate_each(alone) is alone  # the preset that is not known yet may change the others


# ---------------------------------------------------------------------------------------------- changes


def test_changes_are_told_and_validated() -> None:
    old = make(goal="up")
    new, changes = cfg.changed(old, {"goal": "down", "rounds": 3, "gamma": old.gamma})
    assert changes == {"goal": ("up", "down"), "rounds": (0, 3)}
    assert new == dataclasses.replace(old, goal="down", rounds=3)
    assert cfg.changed(old, {}) == (old, {})
    with pytest.raises(UserError, match="out of range"):
        cfg.changed(old, {"rounds": -1})


OTHER: dict[str, Any] = {
    "env_id": "Acrobot-v1", "env_kwargs": {"gravity": 1.0}, "pixels": True, "episode_ends": "hide", "seed": 2,
    "frameskip": 2, "repeat_action_probability": 0.0, "frame_stack": 2, "image_size": 64, "hidden_size": 32,
    "normalize_obs": True, "reward_sees_action": False, "ensemble_size": 5, "reward_hidden": 32,
    "reward_potential": True, "reward_quadratic": True,
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_what_a_session_keeps_for_life_cannot_change(name: str) -> None:
    old = make()
    assert cfg.changed(old, {name: getattr(old, name)}) == (old, {})  # the same again is no change
    with pytest.raises(UserError, match=f"{cfg.flag(name)} cannot change from .* to "):
        cfg.changed(old, {name: OTHER[name]})


def test_what_the_issue_says_cannot_change_is_fixed() -> None:
    assert {"env_id", "env_kwargs", "pixels", "episode_ends", "seed"} <= set(FIXED)


# ---------------------------------------------------------------------------------------------- config.json


def value_of(name: str) -> st.SearchStrategy[Any]:
    hint = HINTS[name]
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(RANGES[name][0]), int(RANGES[name][1]))
    if hint is float:
        low, high = RANGES[name]
        return st.floats(
            None if math.isinf(low) else low, high, allow_nan=False, allow_infinity=name == "skip_threshold"
        )
    if name == "env_kwargs":
        scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
        return st.dictionaries(
            TEXT, st.recursive(scalars, lambda x: st.lists(x) | st.dictionaries(TEXT, x), max_leaves=5)
        )
    return {"env_id": TEXT.filter(bool), "goal": TEXT, "score": st.sampled_from(["", "a:b", "ä.b:c"])}[name]


TEXT = st.text(max_size=60)
CONFIGS = st.fixed_dictionaries({name: value_of(name) for name in HINTS})


@given(CONFIGS)
def test_a_config_survives_json(values: dict[str, Any]) -> None:
    values["num_minibatches"] = min(values["num_minibatches"], values["num_envs"] * values["num_steps"])
    values["reward_potential"] &= not values["reward_quadratic"]
    config = cfg.validate(Config(**values))
    text = cfg.to_json(config)
    assert cfg.from_json(text) == config
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity, which JSON has not


def test_an_infinite_threshold_survives_json() -> None:
    config = make(skip_threshold=-math.inf)
    assert json.loads(cfg.to_json(config))["skip_threshold"] is None
    assert cfg.from_json(cfg.to_json(config)).skip_threshold == -math.inf
    assert cfg.from_json(cfg.to_json(make(skip_threshold=-3.5))).skip_threshold == -3.5


def test_every_setting_in_force_stands_in_json() -> None:
    values = json.loads(cfg.to_json(make()))
    assert set(values) == {f.name for f in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "name no environment"),
        ("{}", "name no environment"),
        ('{"env_id": "x", "colour": 3}', "Unknown setting 'colour'"),
        ('{"env_id": "x", "seed": 1.5}', "--seed 1.5 is not a whole number"),
        ('{"env_id": "x", "gamma": NaN}', "--gamma nan"),
        ('{"env_id": "x", "gamma": null}', "--gamma None"),
        ('{"env_id": "x", "tie_threshold": 1e999}', "--tie-threshold inf"),
        ('{"env_id": 5}', "--env-id 5 is not text"),
        ('{"env_id": "x", "env_kwargs": {"a": NaN}}', "--env-kwargs"),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        cfg.from_json(text)


def test_a_file_of_an_older_version_takes_defaults_for_what_it_lacks() -> None:
    assert cfg.from_json('{"env_id": "x", "seed": 5}') == Config(env_id="x", seed=5)


# ---------------------------------------------------------------------------------------------- the source itself


def field_docstrings(class_name: str) -> dict[str, str]:
    tree = ast.parse((ROOT / "rlhf_gym" / "config.py").read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    found = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[node.target.id] = str(after.value.value) if documented else ""  # type: ignore[attr-defined]
    return found


def test_every_setting_has_a_docstring_and_every_number_a_range() -> None:
    documented = field_docstrings("Settings") | field_docstrings("Config")
    assert set(documented) == {f.name for f in dataclasses.fields(Config)}
    assert [name for name, text in documented.items() if not re.fullmatch(r"\S.*[.)]", text, re.DOTALL)] == []
    assert set(RANGES) == {name for name, hint in HINTS.items() if hint in (int, float)}
    assert all(low < high for low, high in RANGES.values())
    assert set(FIXED) <= set(documented)
    assert dataclasses.is_dataclass(Settings)


# docs/architecture.md: imports run one way. Modules that lie on one line do not know each other, but for `below`.
ORDER = [
    {"config", "dot", "episodes", "files", "seeds", "tables", "watchdog", "wishes"},
    {"arguments", "faults", "home", "migrate", "movies", "rows", "spec", "within"},
    {"store"},
    {"atari", "catalog", "control", "provenance", "steer", "track", "trust"},
    {"envs"},
    {"segments", "sheets"},
    {"bundle", "replay"},
    {"cards", "drawing", "parquet", "trajectories"},
    {"adopt", "labelers", "normalizer"},
    {"labels"},
    {"fast", "honesty", "potential", "quadratic", "team", "values"},
    {"stretch"},
    {"train"},
    {"board"},
    {"checkpoints", "monitor", "doctor", "succession", "verdicts"},
    {"branch", "collect", "evaluate", "library", "models"},
    {"baselines", "export", "films", "live", "whatif"},
    {"loop"},
    {"running"},
    {"cli"},
    {"retrain"},
]
NEEDS_ONLY = {
    "library": {"catalog", "checkpoints", "config", "envs", "faults", "segments", "store", "train", "trust"},
    "config": set(),
    "files": set(),
    "faults": {"config"},
    "home": {"config"},
    "within": {"config"},
    "migrate": {"config", "files", "tables"},
    "watchdog": set(),
    "seeds": set(),
    "rows": {"config", "tables", "wishes"},
    "store": {"config", "files", "rows", "tables", "wishes", "within"},
    "trust": {"config", "home", "store"},
    "branch": {"catalog", "checkpoints", "config", "files", "labelers", "store", "tables", "track", "trust"},
    "wishes": set(),
    "control": {"store", "wishes"},
    "steer": {"config", "store", "wishes"},
    "segments": {"config", "files", "store"},
    "movies": {"config"},
    "sheets": {"store"},
    "bundle": {"config", "movies", "segments", "sheets", "store", "tables"},
    "cards": {"bundle", "store"},
    "adopt": {"bundle", "catalog", "config", "drawing", "faults", "segments", "store", "tables", "within"},
    "parquet": {"bundle", "segments", "store"},
    "trajectories": {"bundle", "segments", "store"},
    "replay": {"atari", "config", "envs", "segments", "sheets"},
    "drawing": {"config", "envs", "files", "replay", "segments", "sheets", "spec", "store"},
    "spec": {"config"},
    "atari": {"config", "spec"},
    "envs": {"atari", "config", "spec", "watchdog"},
    "labels": {"config", "normalizer", "segments", "store"},
    "labelers": {"config", "segments", "store"},
    "track": {"config", "store"},
    "board": {"config", "labels", "sheets", "store", "track", "train"},
    "monitor": {"board", "config", "control", "store"},
    "fast": {"config"},
    "honesty": {"episodes", "store"},
    "team": {"config", "seeds"},
    "stretch": {"config", "envs", "episodes", "team"},
    "potential": set(),
    "quadratic": {"config"},
    "values": {"config"},
    "train": {
        "config",
        "envs",
        "episodes",
        "fast",
        "honesty",
        "labels",
        "normalizer",
        "potential",
        "quadratic",
        "seeds",
        "stretch",
        "team",
        "values",
    },
}


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports anywhere, save under `if __name__ == "__main__"` and for types alone:
    rlhf_gym's by their bare names, webui's as webui."""
    tree = ast.parse(path.read_text())
    ifs = [n for n in tree.body if isinstance(n, ast.If)]
    left_out = [n for n in ifs if "__main__" in ast.dump(n.test) or "TYPE_CHECKING" in ast.dump(n.test)]
    tree.body = [n for n in tree.body if n not in left_out]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {p.stem for p in (ROOT / "rlhf_gym").glob("*.py")}
    found = {parts[1] for n in names if (parts := n.split("."))[0] == "rlhf_gym" and len(parts) > 1}
    return (found & modules) | ({"webui"} if any(n.split(".")[0] == "webui" for n in names) else set())


def test_imports_run_one_way() -> None:
    rank = {name: i for i, names in enumerate(ORDER) for name in names}
    modules = {p.stem: p for p in (ROOT / "rlhf_gym").glob("*.py") if not p.stem.startswith("__")}
    assert set(rank) == set(modules), "a new module needs its place in ORDER, and in architecture.md's"
    told = (ROOT / "docs" / "architecture.md").read_text().split("## Imports run one way")[1].split("\n## ")[0]
    assert [name for name in rank if not re.search(rf"\b{name}\b", told)] == [], "architecture.md names every module"
    imports = {name: imports_of(path) for name, path in modules.items()}
    backwards = [(a, b) for a, names in imports.items() for b in names - {"webui"} if rank[b] >= rank[a]]
    assert backwards == []
    beyond = {name: imports[name] - allowed for name, allowed in NEEDS_ONLY.items() if imports[name] - allowed}
    assert beyond == {}
    assert [n for n in imports if {"loop", "webui"} <= imports[n]] == ["running"]
    assert [n for n in imports if "webui" in imports[n]] == ["running"]


def test_the_pages_need_only_the_store() -> None:
    files = sorted((ROOT / "webui").glob("*.py"))
    assert len(files) > 2
    assert {
        f.name: imports_of(f) - {"webui", "catalog", "faults", "store", "config", "home", "sheets", "steer", "wishes"}
        for f in files
    } == {f.name: set() for f in files}


def loaded_by(modules: str) -> set[str]:
    """The modules loaded after `import MODULES` in a fresh interpreter."""
    code = f"import {modules}, sys; print(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_torch_is_loaded_only_where_networks_are() -> None:
    modules = ("config", "store", "segments", "labelers", "cli", "envs", "dot", "trust", "adopt")
    loaded = loaded_by(", ".join([*(f"rlhf_gym.{m}" for m in modules), "webui.app", "webui.server"]))
    assert {"rlhf_gym.labelers", "webui.app", "numpy"} <= loaded
    assert loaded & {"torch", "tensorboard", "mujoco", "Box2D", "ale_py", "pygame"} == set()


def test_settings_alone_load_nothing_heavy() -> None:
    loaded = loaded_by("rlhf_gym.config, rlhf_gym.store")
    assert loaded & {"torch", "gymnasium", "numpy", "fastapi", "PIL"} == set()
