"""`rlhf-gym doctor`: what this machine has, what it lacks and the remedy, and how fast it is. Takes under 15 seconds.

`report()` looks and tries for real (draws a frame, encodes a video) and returns a dictionary that JSON can hold;
`render()` makes the text of it. Rendering is tried in processes of their own, as graphics drivers can crash theirs.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_gym import __version__

PACKAGES = ("torch", "gymnasium", "ale-py", "numpy", "mujoco", "Box2D", "av", "fastapi", "SQLAlchemy")
SPEED_SECONDS = 0.5  # of each measurement, after a short warm-up
RENDER_TIMEOUT = 5  # seconds
LOW_DISK_GB = 2.0

REINSTALL = "Delete .venv and start scripts/run.py again, which installs it anew."
EXTRA = "Optional: install it with .venv/bin/python -m pip install 'gymnasium[{}]'."
RENDER_REMEDIES = {
    "CartPole-v1": REINSTALL,
    "Hopper-v5": "On a Linux machine without a display: apt install libegl1 libgl1-mesa-dri. Otherwise update the "
    "graphics driver. Only MuJoCo's environments need this.",
}
RENDER_CODE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import gymnasium
env = gymnasium.make(sys.argv[1], render_mode="rgb_array")
env.reset(seed=1)
start = time.perf_counter(); env.render(); first = time.perf_counter() - start
env.step(env.action_space.sample())
start = time.perf_counter(); frame = env.render(); next_ = time.perf_counter() - start
print(json.dumps([frame.shape[1], frame.shape[0], first * 1e3, next_ * 1e3]))
"""


def check(name: str, try_it: Callable[[], str], remedy: str, optional: bool = False) -> dict[str, str]:
    """One line of the report: name, status (ok, missing or failed), detail and, unless ok, the remedy."""
    try:
        return {"name": name, "status": "ok", "detail": try_it(), "remedy": ""}
    except Exception as error:  # whatever is wrong with this machine is the finding, and the user is told
        detail = " ".join(str(error).split()) or type(error).__name__
        return {"name": name, "status": "missing" if optional else "failed", "detail": detail[:200], "remedy": remedy}


def package_versions() -> dict[str, str]:
    found = {"rlhf-gym": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def cpu() -> dict[str, Any]:
    """Name, usable cores, and whether bf16 is native (None where we cannot tell)."""
    name, flags, bf16 = platform.processor() or platform.machine(), "", None
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), fields.get("flags") or fields.get("Features", "")
        bf16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))
    elif sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string", "hw.optional.arm.FEAT_BF16"]
        lines = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")
        name, bf16 = lines[0] or name, "1" in lines[1:]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "cores": cores, "native_bf16": bf16}


def memory_gb() -> float | None:
    """Main memory in GB; None where the system does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def find_gpu() -> str:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about drivers that it cannot use; the check below says it shorter
        cuda = torch.cuda.is_available()
    if cuda:
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in devices)
    if torch.backends.mps.is_available():
        return f"Apple GPU (mps), {torch.mps.recommended_max_memory() / 1e9:.0f} GB of the main memory"
    if shutil.which("nvidia-smi"):
        raise RuntimeError(f"there is an NVIDIA driver, but PyTorch {torch.__version__} cannot use it")
    return "none, networks run on the CPU"


def try_render(env_id: str) -> str:
    environment = dict(os.environ)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        environment.setdefault("MUJOCO_GL", "egl")
    try:
        result = subprocess.run(
            [sys.executable, "-c", RENDER_CODE, env_id],
            capture_output=True, text=True, timeout=RENDER_TIMEOUT, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no frame within {RENDER_TIMEOUT} seconds") from None
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if line.strip()]
        crash = f"the process died with status {result.returncode}"
        raise RuntimeError(said[-1] if result.returncode > 0 and said else crash)
    width, height, first, after = json.loads(result.stdout.splitlines()[-1])
    return f"{width}x{height}, first frame {first:.0f} ms, next {after:.0f} ms"


def try_h264() -> str:
    import av
    import numpy as np

    from rlhf_gym import movies

    start, file = time.perf_counter(), io.BytesIO()
    movies.encode(file, (np.full((64, 64, 3), i * 50, np.uint8) for i in range(5)), rate=30)
    seconds = time.perf_counter() - start
    file.seek(0)
    with av.open(file, "r") as clip:
        frames = len(list(clip.decode(video=0)))
    if frames != 5:
        raise RuntimeError(f"5 frames went in, {frames} came out")
    return f"PyAV wrote and read 5 frames, {seconds * 1e3:.0f} ms to write"


def try_disk(data_dir: Path) -> str:
    there = data_dir.resolve()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        raise RuntimeError(f"{there} cannot be written")
    free = shutil.disk_usage(there).free / 1e9
    if free < LOW_DISK_GB:
        raise RuntimeError(f"only {free:.1f} GB free at {there}")
    return f"{free:.0f} GB free at {there}"


def find_extra(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        raise RuntimeError("not installed")
    return version(module)


def rate(work: Callable[[], object], amount: float) -> float:
    """Amount per second, over SPEED_SECONDS of calling `work`, each call of which does `amount`."""
    work()
    calls, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SPEED_SECONDS:
        work()
        calls += 1
    return calls * amount / seconds


def cartpole_speed() -> str:
    import gymnasium

    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=1)

    def steps() -> None:
        for _ in range(100):
            if env.step(0)[2]:
                env.reset()

    return f"{rate(steps, 100):,.0f} steps/s, one environment"


def pong_speed() -> str:
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv

    envs = AtariVectorEnv("pong", num_envs=8)
    envs.reset(seed=1)
    actions = np.zeros(8, np.int64)
    speed = rate(lambda: envs.step(actions), 8)
    envs.close()
    return f"{speed:,.0f} steps/s, 8 environments"


def matmul_speed(dtype: str) -> str:
    import torch

    a = torch.rand(1024, 1024).to(getattr(torch, dtype))
    return f"{rate(lambda: a @ a, 2 * 1024**3) / 1e9:,.0f} GFLOP/s, {torch.get_num_threads()} threads"


def report(data_dir: Path | str = "data") -> dict[str, Any]:
    """Everything that doctor finds, JSON-able. `healthy` is False if a check that is not optional failed."""
    processor = cpu()
    checks = [
        check("GPU", find_gpu, "Update the NVIDIA driver, or reinstall PyTorch with CUDA; the CPU is used until then."),
        check("mujoco", lambda: find_extra("mujoco"), EXTRA.format("mujoco"), optional=True),
        check("box2d", lambda: find_extra("Box2D"), EXTRA.format("box2d"), optional=True),
        check("disk", lambda: try_disk(Path(data_dir)), "Free some space, or choose another place with --data-dir."),
        check("video h264", try_h264, REINSTALL),
    ]
    for env_id, remedy in RENDER_REMEDIES.items():
        if env_id != "Hopper-v5" or checks[1]["status"] == "ok":
            checks.append(check(f"render {env_id}", lambda env_id=env_id: try_render(env_id), remedy))  # type: ignore[misc]
    checks += [
        check("speed CartPole", cartpole_speed, REINSTALL),
        check("speed Pong", pong_speed, REINSTALL),
        check("speed matmul fp32", lambda: matmul_speed("float32"), REINSTALL),
    ]
    if processor["native_bf16"]:
        checks.append(check("speed matmul bf16", lambda: matmul_speed("bfloat16"), REINSTALL))
    return {
        "healthy": all(line["status"] != "failed" for line in checks),
        "system": platform.platform(),
        "versions": package_versions(),
        "cpu": processor,
        "memory_gb": memory_gb(),
        "checks": checks,
    }


def render(found: dict[str, Any]) -> str:
    """The report as text: one line each, and under what failed one sentence with the remedy."""
    bf16 = {True: "native bf16", False: "no native bf16", None: "bf16 unknown"}[found["cpu"]["native_bf16"]]
    memory = "size unknown" if found["memory_gb"] is None else f"{found['memory_gb']} GB"
    lines = [
        ("", "system", found["system"]),
        ("", "CPU", f"{found['cpu']['name']}, {found['cpu']['cores']} cores, {bf16}"),
        ("", "memory", memory),
        *(("", name, number) for name, number in found["versions"].items()),
    ]
    for line in found["checks"]:
        lines.append((line["status"], line["name"], line["detail"]))
        if line["remedy"]:
            lines.append(("", "", f"-> {line['remedy']}"))
    failed = [line["name"] for line in found["checks"] if line["status"] == "failed"]
    last = f"Not right here: {', '.join(failed)}." if failed else "Everything needed works on this machine."
    return "\n".join([*(f"{status:<8}{name:<19}{text}".rstrip() for status, name, text in lines), "", last])
