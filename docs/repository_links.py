"""A hook of mkdocs: on the site, relative links to files outside docs/ lead to the repository."""

from __future__ import annotations

import re

OUTSIDE = re.compile(r"\]\((?:\.\./)+(?!tutorials/|how-to/|reference/|explanation/)([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown, page, config, files):  # noqa: ANN001, ANN201 - as mkdocs calls it
    up = page.file.src_uri.count("/") + 1  # ../ that lead from the page out of docs/

    def absolute(match: re.Match[str]) -> str:
        if match[0].count("../") != up:
            return match[0]
        return f"]({config.repo_url.rstrip('/')}/blob/main/{match[1]}{match[2] or ''})"

    return OUTSIDE.sub(absolute, markdown)
