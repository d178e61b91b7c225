"""The scores in a model card: a generated block with a table, and entries of `model-index`.

A later run on other tasks adds its rows to the table. Rows of other weights or settings are dropped: the line above the
table says what the scores belong to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.errors import BadInputError, OutputError
from ..convert.repo.card import add_to_card
from ..convert.repo.card_blocks import OWN, blocks, with_block, with_results
from ..convert.repo.digest import weights_digest
from ..convert.repo.manifest import CARD

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BLOCK, HEADING = "eval", "Scores on tasks"
COLUMNS = ("task", "split", "metric", "score", "source", "difference")
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| .* \|$", re.MULTILINE)
WEIGHTS = (".safetensors", ".msgpack")


def write_card(folder: Path, manifest: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Writes the scores into the card of a repo."""
    card = (folder / CARD).read_text(encoding="utf-8")
    content = block(manifest, record, blocks(card).get(BLOCK, ""))
    add_to_card(folder, BLOCK, content, heading=HEADING, results=eval_results(record["results"]))


def require_writable(folder: Path) -> None:
    """Raises what would keep the scores out of the card, before they are computed.

    Raises:
        BadInputError: the card is missing, or its blocks or front matter are broken.
        OutputError: the card or its manifest must not be written.
    """
    path = folder / CARD
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"the card cannot be read ({error})",
            where=str(path),
            hint="restore README.md, or pass --no-card",
        ) from None
    try:
        with_results(with_block(text, BLOCK, ""), "model", [_entry(_EMPTY)])
    except BadInputError as error:
        error.where = error.where.replace(CARD, str(path), 1)
        raise
    try:
        with path.open("r+b"), (folder / "effconv.json").open("r+b"):
            pass
    except OSError as error:
        raise OutputError(
            f"the model card cannot be written ({error.strerror})",
            where=str(folder),
            hint="change the permissions, or pass --no-card",
        ) from None


def block(manifest: Mapping[str, Any], record: Mapping[str, Any], before: str = "") -> str:
    """The card's block: what was measured, and a row per task, split and language.

    Args:
        before: the block of an earlier run. Its rows stay if they are of the same weights and settings.
    """
    weights = {name: digest for name, digest in manifest["files"].items() if name.endswith(WEIGHTS)}
    normalised = ", vectors scaled to length 1" if record["normalize"] else ""
    head = (
        f"Measured with mteb {record['mteb']} (`effconv eval`) on texts of up to {record['max_length']:,} tokens"
        f"{normalised}. Weights: sha256 `{weights_digest(weights)[:12]}`."
    )
    if record.get("against"):
        head += f" Source: {record['against']}, up to {record['against_max_length']:,} tokens."
    rows = {_key(cells): cells for cells in map(_cells, record["results"])}
    if before.partition("\n")[0].strip() == head:
        kept = {match.groups(): match[0] for match in ROW.finditer(before) if match[1] not in ("task", "---")}
    else:
        kept = {}
    lines = {key: line for key, line in kept.items() if key not in rows}
    lines |= {key: f"| {' | '.join(cells)} |" for key, cells in rows.items()}
    columns = COLUMNS if record.get("against") else COLUMNS[:4]
    return "\n".join([head, "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines.values()])


def eval_results(rows: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """The entries of `model-index`, one a row, with mteb's names."""
    return [_entry(row) for row in rows]


_EMPTY = {
    "task": "", "type": "Retrieval", "dataset": "d", "path": "d", "revision": "", "subset": "", "split": "",
    "metric": "m", "score": 0.0,
}  # fmt: skip


def _entry(row: Mapping[str, Any]) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=row["type"],
        dataset_type=row["path"],
        dataset_name=row["dataset"],
        dataset_config=row["subset"],
        dataset_split=row["split"],
        dataset_revision=row["revision"],
        metric_type=row["metric"],
        metric_name=row["metric"],
        metric_value=round(row["score"], 6),
        **OWN,
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = row["task"] if row["subset"] == "default" else f"{row['task']} ({row['subset']})"
    name += " (own task)" if row["local"] else ""
    cells = [name.replace("|", "/"), row["split"], row["metric"], f"{row['score']:.4f}"]
    if "against" in row:
        cells += [f"{row['against']:.4f}", f"{row['difference']:+.4f}"]
    return cells


def _key(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(cells[:3])
