"""What the user is told of an environment that fails, of one that cannot be used, and of one that is not installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from strange import strange

from rlhf_gym import envs
from rlhf_gym.config import Config, UserError


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (
            "step",
            r"test/Strange-v0 failed in step\(.*0.*\): ZeroDivisionError: the wind has turned \(strange\.py, line \d+\)",
        ),
        (
            "nan",
            r"Strange-v0 gave an observation with NaN or infinity in it: \[.* nan\]",
        ),
        (
            "inf",
            r"Strange-v0 gave an observation with NaN or infinity in it: \[.* inf\]",
        ),
        (
            "shape",
            r"Strange-v0 gave an observation that is not of its space: ValueError: its shape is \(1,\), where its space has ",
        ),
        (
            "rewards",
            r"Strange-v0 gave a reward that is not one number: ValueError: .*",
        ),
        ("info", r"Strange-v0 gave an info that is no dict but str"),
    ],
)
def test_an_environment_that_fails_is_told_in_a_sentence(fail: str, says: str) -> None:
    vec = envs.Envs(strange(fail=fail), 2, (0,))
    vec.reset()
    for _ in range(2):
        vec.step(np.zeros(2, np.int64))
    with pytest.raises(UserError, match=says):
        vec.step(np.zeros(2, np.int64))
    vec.close()


def test_a_later_reset_that_fails_is_told_too() -> None:
    vec = envs.Envs(strange(fail="later reset", end=2), 1, (0,))
    vec.reset()
    with pytest.raises(
        UserError,
        match=r"failed in reset\(seed=\d+\): RuntimeError: once is enough \(strange\.py, line \d+\)",
    ):
        for _ in range(2):
            vec.step(np.zeros(1, np.int64))
    vec.close()


def test_a_reset_and_a_twin_refuse_infinity_too() -> None:
    far = strange(obs=spaces.Box(-1e300, 1e300, (2,), np.float64))  # too large for float32
    for begin in (lambda: envs.Envs(far, 2, (0,)).reset(), lambda: envs.Twin(far, render=False).reset(0)):
        with pytest.raises(UserError, match="NaN or infinity"), np.errstate(over="ignore"):
            begin()
    twin = envs.Twin(strange(fail="inf"), render=False)
    twin.reset(0)
    for _ in range(2):
        twin.step(0)
    with pytest.raises(UserError, match="NaN or infinity"):
        twin.step(0)


@pytest.mark.parametrize(
    ("fail", "says"),
    [("later frame", "cannot render a frame: OSError: no more film"), ("no later frame", "renders NoneType: its rgb")],
)
def test_a_frame_that_fails_later_is_told_too(fail: str, says: str) -> None:
    twin = envs.Twin(strange(fail=fail))
    twin.reset(0)
    twin.frame()  # draws once more than it shows, to see whether it can
    with pytest.raises(UserError, match=f"Strange-v0 {says}"):
        twin.frame()


def test_a_reward_may_be_an_array_of_one_number() -> None:
    vec = envs.Envs(strange(reward=np.array([-0.25])), 2, (0,))
    vec.reset()
    assert vec.step(np.zeros(2, np.int64)).rewards.tolist() == [-0.25, -0.25]


def message(config: Config, what: Any = envs.describe) -> str:
    with pytest.raises(UserError) as caught:
        what(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (Config(env_id="CartPol-v1"), ["'CartPol-v1'", "CartPole-v1"]),
        (Config(env_id="CartPole"), ["'CartPole'", "CartPole-v1"]),
        (Config(env_id="ALE/Pongg-v5"), ["ALE/Pong-v5"]),
        (Config(env_id="PongNoFrameskip-v4"), ["an old name of an Atari game", "use ALE/Pong-v5"]),
        (Config(env_id="ale_py:SpaceInvaders-v0"), ["an old name of an Atari game", "use ALE/SpaceInvaders-v5"]),
        (Config(env_id="rlhf_gym/Dott-v0"), ["rlhf_gym/Dot-v0"]),
        (Config(env_id="zzzzzzzzz"), ["'zzzzzzzzz'", "CartPole-v1"]),
        (Config(env_id="no_such_module:My-v0"), ["no_such_module", "cannot be imported"]),
        (Config(env_id="json:My-v0"), ["'json:My-v0'"]),
        (Config(env_id="CartPole-v1", env_kwargs={"speed": 3}), ["CartPole-v1", "speed"]),
        (Config(env_id="CartPole-v1", env_kwargs={"render_mode": "human"}), ["render_mode", "leave it out"]),
        (Config(env_id="ALE/Pong-v5", env_kwargs={"mode": 1}), ["mode", "frameskip"]),
        (Config(env_id="ALE/Pong-v5", env_kwargs={"frameskip": [2, 5]}), ["ALE/Pong-v5", "[2, 5]"]),
        (strange(fail="init"), ["test/Strange-v0", "ValueError", "the moon is full"]),
        (strange(fail="reset"), ["test/Strange-v0", "failed in reset(seed=", "no reset today"]),
        (strange(obs=spaces.Dict(a=spaces.Discrete(2))), ["Dict", "FlattenObservation", "--pixels"]),
        (strange(obs=spaces.Text(5)), ["Text", "--pixels"]),
        (strange(obs=spaces.Sequence(spaces.Discrete(2))), ["Sequence"]),
        (strange(act=spaces.MultiDiscrete([2, 2])), ["MultiDiscrete actions", "Box"]),
        (strange(act=spaces.MultiBinary(2)), ["MultiBinary actions"]),
        (strange(act=spaces.Box(0, 3, (2,), np.int64)), ["Box actions", "floating-point"]),
        (strange(obs=spaces.Box(0, 255, (35, 40, 3), np.uint8)), ["35x40", "36x36"]),
        (strange(obs=spaces.Box(0, 255, (3, 40, 40), np.uint8)), ["(3, 40, 40)", "channels"]),
    ],
    ids=lambda v: v.env_id if isinstance(v, Config) else None,
)
def test_mistakes_are_told_in_one_sentence(config, parts):
    text = message(config)
    assert all(part in text for part in parts), text


def test_without_frames_nobody_can_see_it():
    assert envs.describe(Config(env_id="test/Blind-v0")).kind == "classic"
    for config, what in (
        (Config(env_id="test/Blind-v0"), envs.require_render),
        (Config(env_id="test/Blind-v0", pixels=True), envs.describe),
    ):
        assert "rgb_array" in message(config, what)
    envs.require_render(Config(env_id="CartPole-v1"))


@pytest.mark.parametrize(
    ("env_id", "package", "extra"), [("LunarLander-v3", "Box2D", "box2d"), ("Hopper-v5", "mujoco", "mujoco")]
)
def test_a_missing_extra_is_named(env_id, package, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from rlhf_gym import config, envs\n"
        f"try: envs.describe(config.Config(env_id={env_id!r}))\n"
        "except config.UserError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f'pip install "rlhf-gym[{extra}]"' in out, out


def test_without_egl_mujoco_simulates_and_says_what_drawing_needs():
    code = (
        "import ctypes, os\n"
        "for k in ('DISPLAY', 'WAYLAND_DISPLAY', 'MUJOCO_GL'): os.environ.pop(k, None)\n"
        "load = ctypes.CDLL.__init__\n"
        "def without(self, name, *a, **k):\n"
        "    if any(x in str(name) for x in ('EGL', 'OSMesa')): raise OSError(f'{name}: no such file')\n"
        "    return load(self, name, *a, **k)\n"
        "ctypes.CDLL.__init__ = without\n"
        "import ctypes.util; ctypes.util.find_library = lambda name: None\n"
        "from rlhf_gym import config, envs\n"
        "c = config.Config(env_id='Hopper-v5')\n"
        "print(envs.describe(c).kind)\n"
        "try: envs.require_render(c)\n"
        "except config.UserError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("mujoco-falls\nHopper-v5 cannot render a frame"), out
    assert "libegl1" in out


def test_a_users_own_file_in_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', entry_point=CartPoleEnv, max_episode_steps=9)\n"
    )
    code = "from rlhf_gym.config import Config\nfrom rlhf_gym.envs import describe\n"
    code += "print(describe(Config(env_id='mine:Mine-v0')).max_episode_steps)"
    script = tmp_path / "bin" / "script.py"  # like a console script, which has not the current folder on its path
    script.parent.mkdir()
    script.write_text(f"import sys; sys.path.insert(1, {str(envs.__file__).rsplit('/', 2)[0]!r})\n{code}")
    out = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert out.stdout == "9\n"


def test_quiet_quick_and_without_torch(tmp_path):
    code = (
        "import sys; from rlhf_gym import config, envs\n"
        "heavy = {'torch', 'ale_py', 'mujoco', 'PIL', 'Box2D', 'pygame'} & set(sys.modules); assert not heavy, heavy\n"
        "for i in ('ALE/Pong-v5', 'HalfCheetah-v5', 'CartPole-v0', 'rlhf_gym/Dot-v0'):\n"
        "    t = envs.Twin(config.Config(env_id=i)); t.reset(0); t.frame(); t.close()\n"
        "assert 'torch' not in sys.modules"
    )
    root = str(envs.__file__).rsplit("/", 2)[0]
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [], "MuJoCo left its log in the user's folder"
