"""What pyproject declares is what is run: the lower bounds in the second environment, the newest in the first."""

from __future__ import annotations

import re
import tomllib

import pytest
from wheels import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["sentence"]]


def pins(name: str) -> dict[str, str]:
    """Versions by normalised name, as a constraints file has them."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    found = (*found, ("torch", re.search(r"torch==(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]))
    return {re.sub(r"[-_.]+", "-", package).lower(): version.strip() for package, version in found}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


@pytest.mark.parametrize("declared", DECLARED)
def test_the_lower_bound_is_run_and_the_newest_is_allowed(declared):
    name, lower, upper = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", declared).groups()
    oldest, newest = pins("constraints-compat.txt")[name], pins("constraints.txt")[name]
    assert numbers(oldest)[: len(numbers(lower))] == numbers(lower), "the second environment runs the lower bound"
    assert numbers(lower) <= numbers(newest)
    assert upper is None or numbers(newest) < numbers(upper)


def test_the_linter_watches_over_the_oldest_python():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["ruff"]["target-version"] == "py" + PROJECT["requires-python"].removeprefix(">=").replace(
        ".", ""
    )
    assert f":: {PROJECT['requires-python'].removeprefix('>=')}" in " ".join(PROJECT["classifiers"])
