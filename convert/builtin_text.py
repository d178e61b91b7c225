"""The text that comes with effconv: some 10,000 words of English prose, a part to fit on and a part to measure on."""

from __future__ import annotations

from importlib import resources

FITTING_SHARE = 0.75


def fitting_text() -> str:
    """What calibrations fit on where the user gives no text."""
    return "".join(_articles()[0])


def measuring_text() -> str:
    """What fidelity is measured on: articles that no calibration has seen."""
    return "".join(_articles()[1])


def _articles() -> tuple[list[str], list[str]]:
    text = (resources.files(__package__) / "data" / "text.txt").read_text(encoding="utf-8")
    articles = [f" = {article}" for article in text.removeprefix(" = ").split("\n = ")]
    first = int(len(articles) * FITTING_SHARE)
    return articles[:first], articles[first:]
