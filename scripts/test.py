"""Checks everything from a fresh clone: `python3 scripts/test.py [--full] [-- PYTEST ARGUMENTS]`.

Sets up `.venv` as scripts/run.py does, finds or installs a Chromium, then runs ruff, mypy and pytest. Exit status is 0
only if every part passed. Where the environment variable CI is set, a missing Chromium is a failure; elsewhere the
browser tests are left out and it says so.

Without arguments of your own, pytest shares the tests out among two processes where there are two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from run import ROOT, ensure

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
USUAL_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
HEADLESS_GL = ("libegl1", "libgl1-mesa-dri")  # MuJoCo draws with these where there is no display
INSTALL_CHROMIUM = (
    "No Chromium or Chrome found: install one (Debian: apt install chromium; any system: "
    "python -m playwright install chromium, with the python of .venv) and run this again."
)
PLAYWRIGHTS_OWN = (
    "from playwright.sync_api import sync_playwright\nwith sync_playwright() as p: print(p.chromium.executable_path)"
)


def find_chromium(python: Path) -> str | None:
    """Path of a Chromium: on the PATH, in the usual places, or Playwright's own."""
    for found in (*map(shutil.which, CHROMIUMS), *USUAL_PLACES):
        if found and Path(found).exists():
            return found
    asked = subprocess.run([python, "-c", PLAYWRIGHTS_OWN], capture_output=True, text=True)
    own = asked.stdout.strip()
    return own if own and Path(own).exists() else None


def apt_install(packages: list[str]) -> None:
    """Installs Debian packages where that needs no password; says what is missing where it does."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    sudo = [] if root else ["sudo", "-n"]
    may = root or (shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0)
    if not may:
        print(f"Missing system packages: sudo apt install {' '.join(packages)}", flush=True)
        return
    print(f"Installing {' '.join(packages)} with apt-get ...", flush=True)
    # `env` because sudo drops the variable
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        result = subprocess.run([*apt, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode:
            print(f"apt-get {command[0]} failed: {result.stderr.strip()[-500:]}", flush=True)


def missing_debian_packages(names: tuple[str, ...]) -> list[str]:
    def absent(name: str) -> bool:
        query = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True)
        return "ok installed" not in query.stdout

    return [name for name in names if absent(name)]


def prepare_system(python: Path) -> str | None:
    """Finds Chromium; on Debian and Ubuntu installs it and the software OpenGL where they are missing."""
    chromium = find_chromium(python)
    if sys.platform == "linux" and shutil.which("apt-get") and shutil.which("dpkg-query"):
        missing = missing_debian_packages(HEADLESS_GL) + ([] if chromium else ["chromium"])
        if missing:
            apt_install(missing)
            chromium = chromium or find_chromium(python)
    return chromium


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def pytest_arguments(full: bool, chromium: str | None, rest: list[str], cores: int) -> list[str]:
    # with "=": else pytest takes the path for a folder of tests before it knows the option
    browser = [f"--chromium={chromium}"] if chromium else ["-m", "not browser"]
    long = ["--full", "-o", "faulthandler_timeout=7200"]
    # Long tests measure, and want the machine; what is chosen by hand runs in pytest's own process, for -s and --pdb.
    alone = full or rest or cores == 1
    share = [] if alone else ["--numprocesses=2", "--dist=worksteal"]
    return [*(long if full else []), *share, *browser, *rest]


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs ruff, mypy and pytest in .venv.")
    parser.add_argument("--full", action="store_true", help="also the long tests: learning, crashes, soak")
    parser.add_argument("rest", nargs="*", metavar="-- PYTEST ARGUMENTS", help="handed on to pytest, after --")
    options = parser.parse_args()

    start = time.monotonic()
    python = ensure(ROOT / "requirements-dev.txt")
    chromium = prepare_system(python)
    if chromium is None:
        print(INSTALL_CHROMIUM, flush=True)
        if os.environ.get("CI"):
            return 1
    results = [f"setup {time.monotonic() - start:.1f} s"]

    parts = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy", "--num-workers=2"],
        "pytest": ["pytest", *pytest_arguments(options.full, chromium, options.rest, count_cores())],
    }
    failed = []
    for name, command in parts.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run([python, "-m", *command], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        failed += [name] if code else []
        results.append(f"{name} {time.monotonic() - start:.1f} s{' FAILED' if code else ''}")
    print(" | ".join([*results, f"failed: {', '.join(failed)}" if failed else "all passed"]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
