"""The files beside a graph: what sentence-transformers, optimum and text-embeddings-inference read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.families.registry import FAMILIES
from ..convert.repo.manifest import config_of
from ..convert.repo.origin import FIELD as ORIGIN

CODE, WEIGHTS = (".py",), (".safetensors", ".safetensors.index.json", ".msgpack", ".bin")
LEFT_BEHIND = ("effconv.json", "README.md", "config.json", "model.safetensors.index.json")
OWN_CONFIG = "configuration_bigs.py"  # transformers has no BiGS: its config keeps its code, which loads nothing else


def copy_files(repo: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Copies tokenizer, modules and settings, and writes the config of the stock family.

    The graph holds weights and code, so neither comes along, but for the code of a tokenizer and of modules.
    """
    for name in manifest["files"]:
        path = Path(name)
        own_code = len(path.parts) == 1 and path.suffix in CODE and not _of_source(name, manifest, repo)
        weights = len(path.parts) == 1 and path.name.endswith(WEIGHTS)
        if name in LEFT_BEHIND or weights or (own_code and name != OWN_CONFIG):
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repo / path, folder / path)
    config = config_of(repo)
    (folder / "config.json").write_text(
        json.dumps(stock_config(config, manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def stock_config(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The config under the family's own model_type, without the fields of the conversion, which the graph holds."""
    family = FAMILIES.get(manifest["family"])
    auto_map = config.get("auto_map", {})
    if family is None:
        kept = {name: value for name, value in auto_map.items() if name == "AutoConfig"}
        return {name: value for name, value in config.items() if name != ORIGIN} | {"auto_map": kept}
    dropped = {"auto_map", "dtype", ORIGIN, *manifest["options"]}
    found = {name: value for name, value in config.items() if name not in dropped}
    prefix = _class_prefix(config, family.code.class_prefix)
    classes = [name.removeprefix(prefix) for name in config.get("architectures") or ()]
    tokenizer = {"auto_map": {"AutoTokenizer": auto_map["AutoTokenizer"]}} if "AutoTokenizer" in auto_map else {}
    return {**found, "model_type": family.code.model_type, "architectures": classes, **tokenizer}


def _class_prefix(config: Mapping[str, Any], stock: str) -> str:
    """What the repo's class names have before the stock ones: "LSG" of LSGBertModel."""
    for name in config.get("architectures") or ():
        if stock in name:
            return str(name)[: name.index(stock)]
    return ""


def _of_source(name: str, manifest: Mapping[str, Any], repo: Path) -> bool:
    """Whether a Python file came with the source: the code of its tokenizer or modules."""
    from ..convert.io.tokenizer import tokenizer_in
    from ..convert.repo.sentence import MODULES

    if name in tokenizer_in(repo).code:
        return True
    modules = repo / MODULES
    return modules.is_file() and any(
        str(module.get("type", "")).split(".")[0] == Path(name).stem
        for module in json.loads(modules.read_text(encoding="utf-8"))
    )
