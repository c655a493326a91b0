"""The pinned requirements hold everything that is needed here, and nothing that nobody needs."""

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OF_TORCHS_BUILD = ("nvidia-", "cuda-", "triton")  # for other devices than a CPU


def pins(name: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def for_this_machine(*files: str) -> dict[str, Requirement]:
    """Its pins by name."""
    found = [r for file in files for r in pins(file)]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def needed(extras: set[str]) -> list[tuple[Requirement, str]]:
    """Whatever rlhf-gym needs with these extras, each with what asks for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]  # what is installed may be older
    ours = project["dependencies"] + [r for e in extras for r in project["optional-dependencies"][e]]
    found = [(Requirement(text), "rlhf-gym") for text in ours]
    seen = set()
    for requirement, _ in found:  # grows meanwhile
        if requirement.name.startswith(OF_TORCHS_BUILD):
            continue
        if (key := (canonicalize_name(requirement.name), frozenset(requirement.extras))) in seen:
            continue
        seen.add(key)
        for text in distribution(requirement.name).requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in {"", *requirement.extras}):
                found.append((child, requirement.name))
    return [(requirement, by) for requirement, by in found if not requirement.name.startswith(OF_TORCHS_BUILD)]


@pytest.mark.parametrize(
    ("files", "extras"),
    [(["requirements.txt"], {"mujoco", "box2d"}),
     (["requirements.txt", "requirements-dev.txt"], {"mujoco", "box2d", "export", "dev"})],
)  # fmt: skip
def test_the_pins_are_what_is_needed(files: list[str], extras: set[str]) -> None:
    """A package that was there by chance is missing on the next machine."""
    pinned, wanted = for_this_machine(*files), needed(extras)
    missing = {r.name: by for r, by in wanted if canonicalize_name(r.name) not in pinned}
    assert not missing, f"not pinned, with what needs them: {missing}"
    for requirement, by in wanted:
        version_pinned = str(pinned[canonicalize_name(requirement.name)].specifier)[2:]
        assert requirement.specifier.contains(version_pinned), f"{by} needs {requirement}, pinned is {version_pinned}"
    idle = set(pinned) - {canonicalize_name(r.name) for r, _ in wanted}
    assert not idle, f"pinned, and nothing needs them: {idle}"


def test_torch_is_the_first_pin_and_all_are_exact_and_stand_once() -> None:
    requirements = [*pins("requirements.txt"), *pins("requirements-dev.txt")]
    assert requirements[0].name == "torch"
    for requirement in requirements:
        assert re.fullmatch(r"==[\d.]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    names = [canonicalize_name(r.name) for r in requirements]
    assert len(set(names)) == len(names)


def test_what_is_installed_is_what_is_pinned() -> None:
    for requirement in for_this_machine("requirements.txt", "requirements-dev.txt").values():
        assert version(requirement.name) in requirement.specifier, requirement
