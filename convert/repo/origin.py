"""Where a repo comes from, as a field of config.json.

Whatever saves a model again (transformers, sentence-transformers, PEFT, accelerate) writes its config and copies its
code, and leaves the manifest behind. So the config has what a manifest cannot be made without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..io.tokenizer import tokenizer_in

FIELD = "effconv"
FACTS = {  # of the manifest, with their types; all of these are needed
    "target": str, "family": str, "architecture": str, "source": dict, "options": dict, "settings": dict,
    "max_length": int, "source_max_length": int,
}  # fmt: skip
FURTHER = (
    "dense_source",
    "part",
    "upgraded",
    "source_config",
    "sentence_class",
    "source_code",
    "calibration",
    "pieces",
)
ELSEWHERE = "another program"  # who trained, of a repo that came back from another library
TOKENIZER = "tokenizer"  # a measurement that outlives a training: what the source's tokenizer made of some texts
LASTING = (TOKENIZER, "pretrain", "adapt", "finetune")
TRAINING = (
    "effconv",
    "by",
    "objective",
    "task",
    "train",
    "steps",
    "length",
)  # what the config says of a training, of all that is known


def origin_of(manifest: Mapping[str, Any], code: Mapping[str, str]) -> dict[str, Any]:
    """The field's value for a repo.

    Args:
        manifest: of the repo; hashes may be missing.
        code: the text of its code files, by name.
    """
    known = {name: manifest[name] for name in (*FACTS, *FURTHER) if name in manifest}
    trained = [{key: entry[key] for key in TRAINING if key in entry} for entry in manifest.get("adapted", ())]
    record = manifest.get("measurements", {}).get(TOKENIZER)
    return {
        "version": manifest["effconv"],
        **known,
        **({"adapted": trained} if trained else {}),
        **({TOKENIZER: record} if record else {}),
        "code_sha256": code_sha256(code),
    }


def lasting(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements that outlive other code and other weights: the tokenizer's record, those of trainings."""
    measured = manifest.get("measurements")
    return {name: measured[name] for name in LASTING if name in measured} if isinstance(measured, dict) else {}


def trained_elsewhere(manifest: Mapping[str, Any]) -> bool:
    """Whether another program saved the repo once: then its user may have changed the tokenizer too."""
    return any(entry.get("by") == ELSEWHERE for entry in manifest.get("adapted", ()))


def trained_before(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How a source that effconv made came about: random weights, then its trainings in their order; [] of any other."""
    origin = stated_origin(config) or {"source": {}}
    source = origin["source"]
    begun = [{"by": "new", "effconv": origin["effconv"]}] if "random" in source else []
    return [*source.get("trained", ()), *begun, *origin.get("adapted", ())]


def stated_origin(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a config says of its origin, as a manifest has it; None where it says nothing, or nothing complete."""
    if missing_facts(config):
        return None
    stated = config[FIELD]
    facts = {name: value for name, value in stated.items() if name not in ("version", TOKENIZER)}
    records = {TOKENIZER: stated[TOKENIZER]} if TOKENIZER in stated else {}
    return {"effconv": stated["version"], **facts, "measurements": records}


def missing_facts(config: Mapping[str, Any]) -> list[str]:
    """What a config lacks to state its origin: the field, or some of its fields."""
    stated = config.get(FIELD)
    if not isinstance(stated, dict):
        return [FIELD]
    kinds = {"version": str, **FACTS}
    return [f"{FIELD}.{name}" for name, kind in kinds.items() if not isinstance(stated.get(name), kind)]


def write_origin(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the field into a repo's config.json.

    Args:
        folder: with the code files. manifest: of the repo.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[FIELD] = origin_of(manifest, own_code(folder, manifest))
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def own_code(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The text of the code files that effconv wrote, by name: those in the folder that did not come with the source."""
    theirs = {*manifest.get("source_code", ()), *tokenizer_in(folder).code}
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name not in theirs}


def code_sha256(code: Mapping[str, str]) -> str:
    """One digest of several code files."""
    lines = [f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n" for name, text in sorted(code.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
