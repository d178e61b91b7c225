"""The documentation as files: links lead somewhere, every page is in the menu, every command in the reference."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from places import ROOT

from effconv import cli
from effconv.targets.registry import CREATABLE
from effconv.version import __version__

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
MADE = {DOCS / "reference" / "command-line.md"}  # by the site itself: docs/cli_reference.py
LINK = re.compile(r"\]\(([^)\s]+)\)")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    wrong = []
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = (page.parent / target).resolve() if target else page
        if path in MADE:
            assert page.is_relative_to(DOCS), f"{link}: only the site has that page"
        elif not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_file_of_the_project_that_is_named_exists(page):
    path = r"(?<![\w./:-])([a-z_.]+(?:/[A-Za-z_.-]+)+\.(?:py|jinja|md|txt|yml))\b"  # in a command, too
    named = re.findall(path, page.read_text(encoding="utf-8"))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert [path for path in named if path.split("/")[0] in folders and not (ROOT / path).exists()] == []


def test_the_menu_of_the_site_names_every_page_once():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in {*DOCS.rglob("*.md"), *MADE})


def test_the_reference_of_the_command_line_has_every_command():
    spec = importlib.util.spec_from_file_location("cli_reference", DOCS / "cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    commands = cli.typer.main.get_command(cli.app).list_commands(None)
    commands += [f"new {target}" for target in CREATABLE]  # the last one, a group
    assert re.findall(r"^## effconv (.+)$", page, flags=re.M) == commands
    assert page.count("Usage: effconv ") == len(commands) + 1
    assert "--block-size <int>" in page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_figures_have_a_leading_zero(page):
    text = without_code(page.read_text(encoding="utf-8"))
    assert re.findall(r"(?:^|[\s(/|±+–-])\.\d+", text, flags=re.M) == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_pin_their_actions_and_have_no_permission_that_they_do_not_need(path):
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.+)$", text, flags=re.M)
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {"publish": {"id-token"}, "deploy": {"id-token", "pages"}}
    for name, job in workflow["jobs"].items():
        assert set(job.get("permissions", {})) <= allowed.get(name, set())
        assert "timeout-minutes" in job


def test_the_citation_is_of_this_version_and_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    papers = {paper["identifiers"][0]["value"] for paper in citation["references"] if "identifiers" in paper}
    numbers = set(re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert papers >= {f"arXiv:{number}" for number in numbers}
    assert len(papers) == 5


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml"], ids=name_of
)
def test_yaml_files_can_be_read(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))
