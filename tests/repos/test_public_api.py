"""The names that `import effconv` offers, and what `help` shows of them."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys

import pytest
from places import ROOT

import effconv
from effconv import api, cli
from effconv.lsgify.inmemory import lsgify

CALLABLE = {
    "adapt": api.adapt,
    "bench": api.bench,
    "convert": api.convert,
    "export": api.export,
    "lsgify": lsgify,
}


@pytest.mark.parametrize("name", effconv.__all__)
def test_every_name_can_be_imported(name):
    assert getattr(effconv, name) is not None


@pytest.mark.parametrize(("name", "function"), CALLABLE.items())
def test_help_of_a_callable_package_shows_its_function(name, function):
    package = getattr(effconv, name)
    shown = pydoc.render_doc(package, renderer=pydoc.plaintext)
    assert inspect.signature(package) == inspect.signature(function)
    assert f"{name}{inspect.signature(function)}" in shown
    for line in inspect.getdoc(function).splitlines():
        assert line.strip() in shown


def test_every_command_that_measures_or_looks_is_a_function():
    group = cli.typer.main.get_command(cli.app)
    listing = {"targets", "families"}
    converting = set(cli.CONVERTING)
    commands = set(group.list_commands(None)) - listing - converting
    assert {name.replace("-", "_") for name in commands} <= set(effconv.__all__)


PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
REFERENCE = re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_names_every_argument_by_itself(name):
    """`make docs` shows them in a table, and stops at one that the signature lacks."""
    found = pydoc.locate(name)
    members = vars(found).values() if inspect.isclass(found) or inspect.ismodule(found) else []
    for function in (value for value in [found, *members] if inspect.isfunction(value) or inspect.isclass(value)):
        section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", f"{inspect.getdoc(function)}\n", re.MULTILINE)
        named = re.findall(r"^ {4}\*{0,2}(\S.*?):", section[1], re.MULTILINE) if section else []
        assert not named or set(named) <= set(inspect.signature(function).parameters)


@pytest.mark.slow
def test_importing_the_package_and_its_callable_parts_imports_neither_the_api_nor_torch():
    code = (
        "import sys, effconv, effconv.convert, effconv.adapt, effconv.bench, effconv.lsgify; "
        "print([name for name in ('effconv.api', 'torch', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
