"""Starts rlhf-gym from a fresh clone: `python3 scripts/run.py`, or `python3 scripts/run.py COMMAND ...`.

Needs Python 3.11 or newer and nothing else. The first start makes `.venv` in the repository and installs the pinned
packages there; a stamp, written last, makes every later start immediate, and an interrupted install goes on where it
stopped. Without arguments it runs `rlhf-gym run CartPole-v1`; arguments are handed on as they are.
"""

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (before anything that an older Python could not run)
    sys.exit(
        "rlhf-gym needs Python 3.11 or newer, and this is {}.{}: start it with a newer one, for example "
        "python3.12 scripts/run.py (Windows: py -3.12 scripts\\run.py).".format(*sys.version_info[:2])
    )

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
AGAIN = "then start again: it goes on where it stopped."
# what pip wrote -> the remedy; the first that fits
REMEDIES = {
    "No space left": f"free some disk space, {AGAIN}",
    "No matching distribution": "use 64-bit Python 3.11, 3.12 or 3.13 on Linux, Windows or an Apple-silicon Mac: "
    "another machine has no ready-made build of this package.",
    "": f"check the internet connection, {AGAIN} If it keeps failing, delete .venv first.",
}


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(requirements: Path) -> str:
    """Changes when the pins do, when the package's metadata does, and when the checkout moves."""
    parts = [str(ROOT), (ROOT / "pyproject.toml").read_text("utf-8")]
    # requirements-dev.txt begins with `-r requirements.txt`
    parts += [path.read_text("utf-8") for path in sorted({ROOT / "requirements.txt", requirements})]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp(requirements: Path) -> Path:
    return VENV / f".{requirements.stem}-sha256"


def installed(requirements: Path) -> bool:
    path = stamp(requirements)
    return venv_python().exists() and path.exists() and path.read_text("utf-8") == fingerprint(requirements)


def torch_pin() -> str:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def make_venv() -> None:
    """Makes .venv, or makes it anew where it is half made or its Python is gone."""
    if importlib.util.find_spec("ensurepip") is None:
        minor = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"This Python cannot make virtual environments: apt install python{minor}-venv, then start again.")
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no reason given"]
        sys.exit(f"Could not make {VENV}: {reason[0]} Free disk space or fix its permissions, then start again.")


def run_step(what: str, command: list[str]) -> None:
    """Runs a part of the install with its output in .venv/install.log; on failure exits with one sentence."""
    start, live, log_path = time.monotonic(), sys.stdout.isatty(), VENV / "install.log"
    print(f"{what} ...", end="" if live else "\n", flush=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    if live:
                        print(f"\r{what} ... {time.monotonic() - start:.0f} s", end="", flush=True)
        except KeyboardInterrupt:
            process.wait()  # the terminal sent Ctrl-C to it as well
            print("\nStopped while installing. Start again: it goes on where it stopped.")
            sys.exit(130)
    if live:
        print()
    if process.returncode:
        text = log_path.read_text("utf-8", errors="replace")
        remedy = next(remedy for said, remedy in REMEDIES.items() if said in text)
        error = [line for line in text.splitlines() if line.startswith("ERROR")][-1:] or ["no reason given"]
        sys.exit(f"Installing failed ({error[0]}; all of it: {log_path}): {remedy}")


def ensure(requirements: Path) -> Path:
    """The Python of .venv, with everything in `requirements` and this checkout installed."""
    if installed(requirements):
        return venv_python()
    usable = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    if not venv_python().exists() or subprocess.run([venv_python(), "-c", usable], capture_output=True).returncode:
        print(f"Making {VENV} with Python {sys.version.split()[0]} ...", flush=True)
        make_venv()
    stamp(requirements).unlink(missing_ok=True)
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # PyTorch first and by name alone, so that pip takes the build that this machine is set up for.
    size = "0.2 GB to download, 3 GB with NVIDIA's libraries on Linux" if sys.platform == "linux" else "0.2 GB"
    run_step(
        f"Installing PyTorch (once; {size}; minutes on a slow line)",
        [*pip, torch_pin(), "--constraint", str(ROOT / "requirements.txt")],
    )
    run_step(f"Installing {requirements.name} (once; 0.2 GB)", [*pip, "--requirement", str(requirements)])
    # setuptools is pinned and already here, so nothing is fetched to build with.
    run_step("Installing rlhf-gym itself", [*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    aside = stamp(requirements).with_suffix(".new")
    aside.write_text(fingerprint(requirements), "utf-8")
    aside.replace(stamp(requirements))
    return venv_python()


def main(arguments: list[str]) -> None:
    python = ensure(ROOT / "requirements.txt")
    command = [str(python), "-m", "rlhf_gym", *(arguments or ["run", "CartPole-v1"])]
    if os.name == "nt":  # execv would return to the prompt at once there
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console sends Ctrl-C to the program as well
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
