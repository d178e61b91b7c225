"""A card's text: generated blocks and front matter, set without touching what a person wrote around them.

A generated block stands between `<!-- effconv:NAME -->` and `<!-- /effconv:NAME -->`. Every function takes the card's
whole text and returns the new one; a command that adds results to a card calls `with_block` and `with_results`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError
from .card_yaml import BOM, FRONT, loaded

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MARKER = re.compile(r"<!-- (/?)effconv:([a-z][a-z0-9_-]*) -->")
OWN: dict[str, Any] = {
    "source_name": "effconv",
    "source_url": "https://pypi.org/project/effconv/",
}  # of results that effconv measured
OUTDATED = "The weights were trained since they were measured. `effconv eval` measures them again."
VARIABLES = {"repo_id": "repo", "revision": "revision"}  # in the block that loads the model


def blocks(text: str) -> dict[str, str]:
    """The content of every generated block, by name, in the card's order."""
    return {name: text[start:end].strip("\r\n") for name, (start, end) in _spans(text).items()}


def with_block(text: str, name: str, content: str, *, heading: str = "") -> str:
    """The card with this content in the block of that name.

    Args:
        text: the card.
        name: of the block: small letters, digits, - and _.
        content: Markdown, without any marker of a block.
        heading: written above the block where the card has none of that name yet, which puts it at the end.

    Raises:
        BadInputError: the card's blocks are broken.
        ValueError: the name or the content would break them.
    """
    if MARKER.search(content) or not MARKER.fullmatch(f"<!-- effconv:{name} -->"):
        raise ValueError(f"no content of a block: {name}")
    spans, line = _spans(text), _line_end(text)
    content = content.strip("\r\n").replace("\r\n", "\n").replace("\n", line)
    if name in spans:
        start, end = spans[name]
        return f"{text[:start]}{line}{content}{line}{text[end:]}"
    above = f"## {heading}{line}{line}" if heading else ""
    block = f"<!-- effconv:{name} -->{line}{content}{line}<!-- /effconv:{name} -->{line}"
    return f"{text.rstrip()}{line}{line}{above}{block}"


def merged(theirs: str, ours: str) -> str:
    """A card that a person has written in, with the generated blocks and the missing front matter of a new one.

    Blocks that a person has taken out stay out, and fields that they have set stay as they are.
    """
    kept = blocks(theirs)
    for name, content in blocks(ours).items():
        if name in kept:
            theirs = with_block(theirs, name, content)
    stated = front_matter(theirs)
    for key, value in front_matter(ours).items():
        if key not in stated:
            theirs = with_field(theirs, key, value)
    return theirs


def joined(theirs: str, ours: str) -> str:
    """A card that another program or a person wrote, with ours: merged, or after it where it has none of our blocks."""
    if blocks(theirs):
        return merged(theirs, ours)
    body = FRONT.sub("", ours, count=1).strip().removeprefix("# ")
    text = merged(theirs, ours)
    stated, added = (front_matter(card).get("tags") for card in (theirs, ours))
    if isinstance(stated, list) and isinstance(added, list):  # custom_code among them: what the Hub warns by
        text = with_field(text, "tags", [*stated, *(tag for tag in added if tag not in stated)])
    return f"{text.rstrip()}\n\n# {body}\n"


def named(text: str, repo_id: str, revision: str = "main") -> str:
    """The card whose lines that load the model name this repo of the Hub, instead of the folder."""
    lines = blocks(text).get("load", "")
    for key, value in (("repo_id", repo_id), ("revision", revision)):
        lines = re.sub(rf'^({VARIABLES[key]} = )".*?"', rf'\1"{value}"', lines, flags=re.MULTILINE)
    return with_block(text, "load", lines) if lines else text


def names_in(text: str) -> dict[str, str]:
    """The repo and the revision that the card's lines load, as `repo_id` and `revision` of `named`."""
    lines = blocks(text).get("load", "")
    found = {key: re.search(rf'^{name} = "(.*?)"', lines, re.MULTILINE) for key, name in VARIABLES.items()}
    return {key: match[1] for key, match in found.items() if match}


def front_matter(text: str) -> dict[str, Any]:
    """The card's YAML; {} where it has none.

    Raises:
        BadInputError: it cannot be read.
    """
    import yaml

    found = FRONT.match(text)
    try:
        parsed = loaded(found[1]) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"the card's front matter is no YAML ({str(error).splitlines()[0]})",
            where="README.md",
            hint="mend the lines between the two --- at its top",
        ) from None
    if parsed is not None and not isinstance(parsed, dict):
        raise BadInputError("the card's front matter holds no fields", where="README.md", hint="write key: value lines")
    return parsed or {}


def with_field(text: str, key: str, value: object) -> str:
    """The card with one field of its front matter set (None: taken out), and every other line of it as it was."""
    import yaml

    stated, line = front_matter(text), _line_end(text)
    wanted = {**stated, key: value}
    if value is None:
        del wanted[key]
    if wanted == stated:
        return text
    written = "" if value is None else yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True)
    written = written.replace("\n", line)
    found = FRONT.match(text)
    if not found:
        return f"---{line}{written}---{line}{line}{text.removeprefix(BOM).lstrip()}"
    body = found[1]
    field = re.compile(
        rf"^[\"']?{re.escape(key)}[\"']?[ \t]*:.*\n(?:(?:[ \t]*\r?\n)*(?:[ \t]+\S.*|-(?:[ \t].*)?)\n)*", re.MULTILINE
    )
    body = field.sub(lambda _: written, body, count=1) if field.search(body) else body + written
    result = f"---{line}{body}---{line}{text[found.end() :]}"
    if not _reads_as(result, wanted):  # laid out as no pattern foresees: written anew
        body = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True).replace("\n", line)
        result = f"---{line}{body}---{line}{text[found.end() :]}"
    return result


def with_results(text: str, model: str, results: Sequence[EvalResult]) -> str:
    """The card with these results in its `model-index`.

    Others stay; one of the same task, dataset and metric is replaced.

    Args:
        text: the card.
        model: the model's name, where the card has no `model-index` yet.
        results: what was measured.
    """
    from huggingface_hub import ModelCardData

    index = front_matter(text).get("model-index") or [{"name": model, "results": []}]
    if not isinstance(index, list) or not all(isinstance(entry, dict) for entry in index):
        raise BadInputError(
            "the card's model-index is no list of models", where="README.md: model-index", hint="mend or remove it"
        )
    entries = [dict(entry) for entry in index[0].get("results") or () if isinstance(entry, dict)]
    written: Any = ModelCardData(model_name=model, eval_results=list(results))
    for entry in written.to_dict()["model-index"][0]["results"]:
        same = [e for e in entries if (e.get("task"), e.get("dataset")) == (entry["task"], entry["dataset"])]
        new = [(metric["type"], metric.get("name")) for metric in entry["metrics"]]
        if same:
            others = [m for m in same[0].get("metrics") or () if (m.get("type"), m.get("name")) not in new]
            same[0].update({**entry, "metrics": [*others, *entry["metrics"]]})
        else:
            entries.append(entry)
    return with_field(text, "model-index", [{**index[0], "results": entries}, *index[1:]])


def without_scores(text: str) -> str:
    """The card of weights that were trained since: without the scores that effconv measured of those before.

    What a person or another program wrote in `model-index` stays.
    """
    if "eval" in blocks(text):
        text = with_block(text, "eval", OUTDATED)
    index = front_matter(text).get("model-index")
    if not isinstance(index, list) or not all(isinstance(entry, dict) for entry in index):
        return text
    kept = [
        {**entry, "results": [result for result in entry.get("results") or () if not _is_own(result)]}
        for entry in index
    ]
    left = [entry for entry in kept if entry["results"]]
    return text if kept == index else with_field(text, "model-index", left or None)


def _is_own(result: object) -> bool:
    source = result.get("source") if isinstance(result, dict) else None
    return isinstance(source, dict) and source.get("name") == OWN["source_name"]


def _spans(text: str) -> dict[str, tuple[int, int]]:
    """Where the content of each block begins and ends.

    Raises:
        BadInputError: a block without an end, inside another, or twice.
    """
    found: dict[str, tuple[int, int]] = {}
    begun: tuple[str, int] | None = None
    for marker in MARKER.finditer(text):
        ends, name = bool(marker[1]), marker[2]
        if ends != (begun is not None) or (begun and begun[0] != name) or name in found:
            raise BadInputError(
                f"the card's generated blocks do not match at {marker[0]}",
                where=f"README.md: line {text.count(chr(10), 0, marker.start()) + 1}",
                hint="each block has one beginning and one end of the same name; mend it, or remove both markers",
            )
        if begun:
            found[name] = (begun[1], marker.start())
        begun = None if ends else (name, marker.end())
    if begun:
        raise BadInputError(
            f"the card's generated block {begun[0]} has no end",
            where="README.md",
            hint=f"write <!-- /effconv:{begun[0]} --> where it ends, or remove its beginning",
        )
    return found


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return front_matter(text) == wanted
    except BadInputError:
        return False
