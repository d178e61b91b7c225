"""The model card: front matter from the source's card, and generated blocks that later commands may replace.

A generated block is between `<!-- effconv:NAME -->` and `<!-- /effconv:NAME -->`. Text outside the blocks is never
changed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import templates
from ..errors import BadInputError
from ..families.registry import ENCODER_DECODERS
from ..io.source import Source, sentence_modules
from ..io.tensorfile import file_sha256
from ..options import Settings, changed
from ..target import Target
from .card_blocks import with_block, with_results
from .card_yaml import FRONT, carried, loaded
from .manifest import CARD, read_manifest, write_manifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PIPELINES = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForPreTraining": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModel": "feature-extraction",
}
GENERATES = ("summarization", "translation", "text2text-generation")  # what a source's own card may say instead
CARRIED_FIELDS = ("license", "license_name", "license_link", "language", "datasets")


def add_to_card(
    repo: str | os.PathLike[str],
    name: str,
    content: str,
    *,
    heading: str = "",
    results: Sequence[EvalResult] = (),
    model: str = "",
) -> None:
    """Writes a generated block, and results into `model-index`, into a repo's card; all else in it stays.

    The manifest learns the new card where nobody had written in the old one, so that it does not pass for a person's.

    Args:
        repo: folder of the repo.
        name: of the block (small letters, digits, - and _); a block of that name is replaced.
        content: Markdown.
        heading: written above the block where the card has none of that name yet.
        results: entries for `model-index`; they replace those of the same task, dataset and metric.
        model: its name in `model-index`; by default the folder's.

    Raises:
        BadInputError: no repo, or its card's blocks or front matter are broken.
    """
    folder = Path(repo)
    manifest, path = read_manifest(folder), folder / CARD
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"the card cannot be read ({error})", where=CARD, hint="restore README.md") from None
    untouched = file_sha256(path) == manifest["files"].get(CARD)
    text = with_block(text, name, content, heading=heading)
    text = with_results(text, model or folder.absolute().name, results) if results else text
    path.write_bytes(text.encode())
    if untouched:
        write_manifest(folder, {**manifest, "files": {**manifest["files"], CARD: file_sha256(path)}})


def render_card(target: Target, manifest: Mapping[str, Any], source: Source) -> str:
    """The card of a repo that is made from this source."""
    return card_text(target, manifest, source_front_matter(source), sentence=bool(sentence_modules(source)))


def card_text(target: Target, manifest: Mapping[str, Any], theirs: Mapping[str, Any], *, sentence: bool) -> str:
    """The whole card.

    Args:
        target: of the repo.
        manifest: with its measurements.
        theirs: front matter of the source's card.
        sentence: whether the repo is a sentence-transformers one.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _part(name, target.code.package)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    front = yaml.safe_dump(front_matter(target, manifest, theirs, sentence), sort_keys=False, allow_unicode=True)
    measurements = manifest["measurements"]
    return environment.get_template("card.md.jinja").render(
        front=front,
        manifest=manifest,
        target=target,
        sentence=sentence,
        seq2seq=manifest["family"] in ENCODER_DECODERS,
        auto=own_auto(manifest),
        checks=measurements["checks"] if isinstance(measurements["checks"], list) else None,
        fidelity=measurements.get("fidelity", []),
        measured_by=measurements.get("fidelity_by"),
        versions=" and ".join(f"{name} {version}" for name, version in measurements.get("versions", {}).items()),
        command=command(target, manifest),
        source=described(manifest),
    )


def _part(name: str, package: str) -> str:
    """A part of the card: one of effconv's, or of a target's own package."""
    shared = resources.files(templates) / "cards" / name
    return (shared if shared.is_file() else resources.files(package) / name).read_text(encoding="utf-8")


def front_matter(
    target: Target, manifest: Mapping[str, Any], theirs: Mapping[str, Any], sentence: bool
) -> dict[str, Any]:
    """The card's YAML: license and language from the source's card, and metadata of this repo."""
    front = carried(theirs, CARRIED_FIELDS)
    if manifest["source"].get("hub_id"):
        front |= {"base_model": manifest["source"]["hub_id"], "base_model_relation": "finetune"}
    front["library_name"] = "sentence-transformers" if sentence else target.weights_format.library
    front["pipeline_tag"] = (
        "sentence-similarity" if sentence else PIPELINES.get(own_auto(manifest), "feature-extraction")
    )
    if front["pipeline_tag"] in GENERATES and theirs.get("pipeline_tag") in GENERATES:
        front["pipeline_tag"] = theirs["pipeline_tag"]
    front["tags"] = ["effconv", manifest["target"], "long-context"]
    if not manifest.get("dense_source", True):
        front["tags"] += [manifest["family"]]
    if target.weights_format.library == "transformers" and target.code.files:
        front["tags"] += ["custom_code"]
    if sentence:
        front["tags"] += ["sentence-transformers"]
    return front


def source_front_matter(source: Source) -> dict[str, Any]:
    """The front matter of the source's README.md; {} where it has none that can be read."""
    import yaml

    if CARD not in source.files:
        return {}
    found = FRONT.match(source.fetch(CARD).read_text(encoding="utf-8", errors="replace"))
    try:
        parsed = loaded(found[1]) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def own_auto(manifest: Mapping[str, Any]) -> str:
    """The Auto class of the repo's own architecture."""
    return str(manifest["auto"])


def described(manifest: Mapping[str, Any]) -> str:
    """The source in words: Hub id and commit, or name and hash."""
    source = manifest["source"]
    if source.get("hub_id"):
        return f"[{source['hub_id']}](https://huggingface.co/{source['hub_id']}) at commit `{source['commit'][:12]}`"
    if source.get("random"):
        return "random weights"
    weights = next((digest for name, digest in source["sha256"].items() if name != "config.json"), "")
    return f"`{source['name']}` (weights sha256 `{weights[:12]}`)"


def command(target: Target, manifest: Mapping[str, Any]) -> str:
    """The command that reproduces the repo, with the options that differ from their defaults."""
    source = manifest["source"]
    if source.get("random"):
        return shlex.join(_command_of_new(target, manifest))
    parts = ["effconv", target.command or target.name, source.get("hub_id") or source["name"]]
    if source.get("commit"):
        parts += ["--revision", source["commit"]]
    stated = manifest.get("upgraded", {}).get("options", {})
    options = changed(target.options(), manifest["options"], stated) | changed(Settings(), manifest["settings"])
    return shlex.join([*parts, *_as_flags(options)])


def _command_of_new(target: Target, manifest: Mapping[str, Any]) -> list[str]:
    """The command that makes a repo with random weights."""
    stated = manifest["source"]["random"]
    asked = target.command.removeprefix("new ") or target.name
    tokenizer = stated.get("tokenizer", {})
    named = tokenizer.get("hub_id") or tokenizer.get("name")
    parts = ["effconv", "new", asked, *stated["command"]]
    parts += ["--tokenizer", named] if named else []
    parts += ["--revision", tokenizer["commit"]] if tokenizer.get("commit") and "--revision" not in parts else []
    own = {name: value for name, value in manifest["options"].items() if name != "max_length"}
    usual = stated["options"]  # of the preset and of a new model of this target
    return [*parts, *_as_flags(changed(target.options(), own, usual))]


def _as_flags(options: Mapping[str, Any]) -> list[str]:
    parts = []
    for flag, value in options.items():
        if isinstance(value, bool):
            parts.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for item in value if isinstance(value, list) else [value]:
                parts += [flag, str(item)]
    return parts
