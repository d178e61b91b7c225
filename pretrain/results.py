"""The card's block about a pretraining, and its plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapt.results import FIGURES, draw
from ..convert.repo.card_blocks import with_block
from ..convert.text import counted
from .presets import PRESETS

PLOT = "pretrain.svg"
BLOCK, HEADING = "pretrain", "Pretraining"


def add_results(folder: Path, manifest: Mapping[str, Any], card: str) -> str:
    """Draws the plot, and returns the card with a block about the last of the manifest's pretrainings."""
    plotted = draw(folder / PLOT, manifest["measurements"]["pretrain"][-1])
    return with_block(card, BLOCK, block(manifest, plotted), heading=HEADING)


def block(manifest: Mapping[str, Any], plotted: bool) -> str:
    """The card's block."""
    record = manifest["measurements"]["pretrain"][-1]
    data, spent, options = record["data"], record["spent"], record["options"]
    (before,), (after,) = record["before"], record["after"]
    digest = f" (sha256 `{data['sha256'][:12]}`)" if "sha256" in data else ""
    preset = f", preset `{record['preset']}` ({PRESETS[record['preset']].source})" if record["preset"] else ""
    warmup = f" after {counted(options['warmup_steps'], 'step')} of warmup" if options["warmup_steps"] else ""
    how = (
        f"Trained on text with the objective `{record['objective']}`{preset}: {counted(record['steps'], 'step')} of "
        f"{counted(options['batch_size'], 'example')} of up to {record['lengths'][0]:,} tokens, {record['tokens']:,} "
        f"tokens of {', '.join(data['data'])}{digest}. Peak learning rate {options['learning_rate']:g}, "
        f"{options['schedule']} schedule{warmup}, {options['optimizer']} ({options['beta1']:g}, {options['beta2']:g}), "
        f"weight decay {options['weight_decay']:g}. {spent['wall_seconds']:,.0f} s "
        f"({spent['processes']} process{'es' if spent['processes'] > 1 else ''}). The state of step "
        f"{record['best_step']:,} was kept."
    )
    rows = [
        "| held-out text | before | after |",
        "|---|---|---|",
        *(f"| {FIGURES[name]} | {before[name]:.4f} | {after[name]:.4f} |" for name in FIGURES if name in after),
    ]
    where = (
        f"Measured on {counted(after['texts'], 'example')} that were not trained on ({after['predicted']:,} predicted "
        f"tokens, sha256 `{data['heldout_sha256'][:12]}`)."
    )
    picture = [f"![loss and score by step]({PLOT})", ""] if plotted else []
    return "\n".join([how, "", where, "", *rows, "", *_chain(manifest), *picture])


def _chain(manifest: Mapping[str, Any]) -> list[str]:
    """The trainings of a repo in their order, where there were several."""
    trained = [*manifest["source"].get("trained", ()), *manifest.get("adapted", ())]
    if len(trained) < 2:
        return []
    lines = [f"{number}. {_said(entry)}" for number, entry in enumerate(trained, 1)]
    return ["How the weights came about:", "", *lines, ""]


def _said(entry: Mapping[str, Any]) -> str:
    if entry.get("by") == "new":
        return "random weights"
    what = " ".join(str(entry[key]) for key in ("objective", "task") if entry.get(key))
    said = f"{entry.get('by', 'adapt')} {what}".strip()
    return said + (f", {entry['steps']:,} steps of up to {entry['length']:,} tokens" if "length" in entry else "")
