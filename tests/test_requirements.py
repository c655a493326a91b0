"""The pinned requirements hold everything that is needed here, and nothing that nobody needs."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def pinned(name: str) -> dict[str, Requirement]:
    """Those for this machine, by name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def needed(extras: set[str]) -> dict[str, str]:
    """Each package that rlhf-gym needs with these extras, with what asks for it first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]  # what is installed may be older
    ours = project["dependencies"] + [r for e in extras for r in project["optional-dependencies"][e]]
    asked = [(Requirement(text), "rlhf-gym") for text in ours]
    found: dict[str, str] = {}
    seen = set()
    while asked:
        requirement, by = asked.pop()
        if (key := (canonicalize_name(requirement.name), frozenset(requirement.extras))) in seen:
            continue
        seen.add(key)
        found.setdefault(key[0], by)
        if key[0].startswith(("nvidia-", "cuda-", "triton")):  # torch's own, which differ by its build
            continue
        for text in distribution(requirement.name).requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in {"", *requirement.extras}):
                asked.append((child, requirement.name))
    return {name: by for name, by in found.items() if not name.startswith(("nvidia-", "cuda-", "triton"))}


@pytest.mark.parametrize(
    ("files", "extras"),
    [(["requirements.txt"], {"mujoco", "box2d"}),
     (["requirements.txt", "requirements-dev.txt"], {"mujoco", "box2d", "dev"})],
)  # fmt: skip
def test_the_pins_are_what_is_needed(files: list[str], extras: set[str]) -> None:
    """A package that was there by chance is missing on the next machine."""
    pins = {name: r for file in files for name, r in pinned(file).items()}
    wanted = needed(extras)
    missing = {name: by for name, by in wanted.items() if name not in pins}
    assert not missing, f"not pinned, with what needs them: {missing}"
    idle = set(pins) - set(wanted)
    assert not idle, f"pinned, and nothing needs them: {idle}"


def test_each_pin_is_one_version_and_stands_once() -> None:
    both = [pinned("requirements.txt"), pinned("requirements-dev.txt")]
    assert not set(both[0]) & set(both[1])
    for requirement in [*both[0].values(), *both[1].values()]:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
