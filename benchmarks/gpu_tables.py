"""The Markdown tables and the plot of what benchmarks/gpu.py measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LSG, SDPA = "LSG, auto", "flash SDPA"


def text(results: Mapping[str, Any]) -> str:
    """The results as JSON, one entry a line."""
    parts = []
    for name, value in results.items():
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value) if isinstance(value, list) else ""
        parts.append(f' "{name}": [\n{lines}\n ]' if lines else f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def markdown(results: Mapping[str, Any]) -> str:
    """Every part that was measured, under its own heading."""
    machine = results["machine"]
    lines = [
        f"{machine['card']}, torch {machine['torch']}, Triton {machine['triton']}, transformers "
        f"{machine['transformers']}. Measured limits: {machine['tflops']:.0f} TFLOP/s (bfloat16 product), "
        f"{machine['gb_per_second']:,.0f} GB/s (copy)."
    ]
    for part, table in (
        ("correctness", _correctness),
        ("layers", _layers),
        ("models", _models),
        ("training", _training),
    ):
        if results.get(part):
            lines += ["", *table(results[part])]
    return "\n".join(lines)


def _correctness(entries: list[dict[str, Any]]) -> Iterable[str]:
    late = [entry["case"] for entry in entries if entry["error"] == "not finished in time"]
    failed = [entry["case"] for entry in entries if entry["error"] and entry["case"] not in late]
    wrong = [entry["case"] for entry in entries if not all(far <= limit for far, limit in entry["checks"].values())]
    sound = len(entries) - len({*late, *failed, *wrong})
    checks = sum(len(entry["checks"]) for entry in entries)
    yield "### Is it right?"
    yield ""
    yield f"{sound} of {len(entries)} jobs right, with {checks:,} checks; wrong: {len(wrong)}; failed: {len(failed)}."
    for what, names in (("Wrong", wrong), ("Failed", failed), ("Not finished in the time of the run", late)):
        if names:
            yield f"{what}: {'; '.join(names)}."
    worst: dict[tuple[str, float], float] = defaultdict(float)
    for entry in entries:
        for what, (far, limit) in entry["checks"].items():
            form = what.partition(",")[0]
            if form in ("auto", "plain", "flex", "triton") and limit in (3e-6, 2e-3, 1e-2):
                worst[form, limit] = max(worst[form, limit], far)
    if worst:
        yield ""
        yield "Largest ‖a − b‖ / ‖b‖ of a context or a gradient, b in float64:"
        yield ""
        yield "| attention_form | float32 | float16 | bfloat16 |"
        yield "|---|---|---|---|"
        for form in ("auto", "triton", "plain", "flex"):
            cells = (worst.get((form, limit)) for limit in (3e-6, 2e-3, 1e-2))
            yield f"| {form} | {' | '.join('–' if far is None else f'{far:.1e}' for far in cells)} |"


def _layers(entries: list[dict[str, Any]]) -> Iterable[str]:
    names = list(dict.fromkeys(entry["layer"] for entry in entries))
    ways = (
        ("forward", "forward_ms"),
        ("forward and backward", "train_ms"),
        ("forward, replayed as a CUDA graph", "graph_ms"),
    )
    yield "### The attention layer"
    for title, key in ways:
        rows = _by_shape(entries, key)
        shown = [name for name in names if any(name in row for row in rows.values())]
        yield ""
        yield f"Milliseconds, {title}:"
        yield ""
        yield f"| batch × tokens | {' | '.join(shown)} |"
        yield "|---|" + "---|" * len(shown)
        for (batch, tokens), row in rows.items():
            yield f"| {batch} × {tokens:,} | {' | '.join(_ms(row.get(name)) for name in shown)} |"


def _by_shape(entries: list[dict[str, Any]], key: str) -> dict[tuple[int, int], dict[str, float]]:
    """What was measured of each shape, by layer or model; shapes without any left out."""
    rows: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for entry in entries:
        if key in entry:
            rows[entry["batch"], entry["tokens"]][entry.get("layer") or entry["model"]] = entry[key]
    return rows


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _models(entries: list[dict[str, Any]]) -> Iterable[str]:
    names = list(dict.fromkeys(entry["model"] for entry in entries))
    forward, train, peak = (_by_shape(entries, key) for key in ("forward_ms", "train_ms", "train_peak_mb"))
    yield "### Whole models"
    yield ""
    yield "Milliseconds forward / forward and backward (peak GB of the latter):"
    yield ""
    yield f"| batch × tokens | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for shape, row in forward.items():
        cells = []
        for name in names:
            memory = peak.get(shape, {}).get(name)
            cell = f"{_ms(row.get(name))} / {_ms(train[shape].get(name))}"
            cells.append(cell if memory is None else f"{cell} ({memory / 1024:.1f})")
        yield f"| {shape[0]} × {shape[1]:,} | {' | '.join(cells)} |"


def _training(entries: list[dict[str, Any]]) -> Iterable[str]:
    yield "### Training"
    yield ""
    yield "| | batch × tokens | steps a second | loss, first and last ten steps | finite | measured |"
    yield "|---|---|---|---|---|---|"
    for entry in entries:
        if "steps_per_second" in entry:
            yield (
                f"| {entry['model']} | {entry['batch']} × {entry['tokens']:,} | {entry['steps_per_second']:.1f} | "
                f"{entry['first_loss']:.2f} → {entry['last_loss']:.2f} ({entry['steps']} steps) | "
                f"{'yes' if entry['finite'] else 'no'} | {entry.get('run', 'in this run')} |"
            )
        else:
            ended = entry.get("error") or f"{entry['seconds']:.0f} s in all"
            yield f"| {entry['model']} | | | {ended} | | |"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """The layer's times over the length, batch 1, forward on the left and with the backward on the right."""
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file, with its words as text.
    matplotlib.rcParams.update({"svg.hashsalt": "effconv", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, (title, key) in zip(axes, (("forward", "forward_ms"), ("forward and backward", "train_ms")), strict=True):
        rows = _by_shape(results["layers"], key)
        for name in dict.fromkeys(entry["layer"] for entry in results["layers"]):
            points = [(tokens, row[name]) for (batch, tokens), row in rows.items() if batch == 1 and name in row]
            width = 2.5 if name in (LSG, SDPA) else 1
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="tokens")
        axis.set_xticks([tokens for batch, tokens in rows if batch == 1], minor=False)
        axis.set_xticklabels([f"{tokens // 1024}k" for batch, tokens in rows if batch == 1])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"milliseconds, {results['machine']['card']}")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
