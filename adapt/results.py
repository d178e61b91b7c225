"""Writes the new repo: the old files with trained weights, and the results in manifest, card and plot."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..convert.io.dtypes import from_float32
from ..convert.io.reader import open_checkpoint
from ..convert.io.source import resolve
from ..convert.io.tensorfile import TensorFile
from ..convert.repo.card_blocks import with_block
from ..convert.repo.manifest import Measured
from ..convert.text import counted

PLOT = "adapt.svg"
BLOCK, HEADING = "adapt", "Trained after the conversion"
FIGURES = {
    "token_cosine": "token cosine",
    "sentence_cosine": "sentence cosine",
    "piece_mrr": "retrieval by passages (MRR)",
    "mlm_loss": "masked-LM loss (nats)",
    "clm_loss": "causal-LM loss (nats)",
    "perplexity": "perplexity",
    "mlm_accuracy": "masked-LM accuracy",
    "clm_accuracy": "causal-LM accuracy",
    "nsp_loss": "next-sentence loss (nats)",
    "nsp_accuracy": "next-sentence accuracy",
    "sop_loss": "sentence-order loss (nats)",
    "sop_accuracy": "sentence-order accuracy",
}
DRAWN = tuple(name for name in FIGURES if name != "perplexity")  # which share an axis


@dataclass(frozen=True, slots=True)
class Adapted:
    """A finished run.

    Attributes:
        output: the folder. record: as the manifest has it. measured: the checks of the new repo, None if they were off.
    """

    output: Path
    record: Mapping[str, Any]
    measured: list[Measured] | None
    findings: list[str]

    def __repr__(self) -> str:
        before, after = self.record["before"][-1], self.record["after"][-1]
        moved = [f"{FIGURES[name]} {before[name]:.4f} to {after[name]:.4f}" for name in FIGURES if name in after]
        steps = counted(self.record["steps"], "step")
        return f"<Adapted {str(self.output)!r}: {steps}; at {after['tokens']} tokens {', '.join(moved)}>"

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": str(self.output),
            **self.record,
            "checks": None if self.measured is None else [asdict(result) for result in self.measured],
            "findings": self.findings,
        }


def copy_repo(repo: Path, folder: Path, manifest: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Puts every file of the repo into `folder`, these values into its weights; returns sha256 of the files it wrote.

    A tensor keeps its place, its file and its dtype; one that was not trained keeps its bytes.
    """
    checkpoint = open_checkpoint(resolve(repo, offline=True))
    unused = state.keys() - checkpoint.tensors.keys()
    if unused:
        raise ValueError(f"trained, but not in any file of the repo: {sorted(unused)[:4]}")
    hashes, weights = {}, checkpoint.files()
    try:
        for name in weights:
            tensors = sorted((t for t in checkpoint.tensors.values() if t.file == name), key=lambda t: t.start)
            file = TensorFile(folder / name, [(t.name, t.dtype, t.shape, t.nbytes) for t in tensors])
            for tensor in tensors:
                if tensor.name in state:
                    values = state[tensor.name].float().contiguous().numpy()
                    file.append(memoryview(from_float32(values, tensor.dtype).data).cast("B"))
                else:
                    for chunk in checkpoint.chunks(tensor.name):
                        file.append(chunk)
            hashes[name] = file.finish()
    finally:
        checkpoint.close()
    for name in manifest["files"]:
        if name not in weights:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repo / name, folder / name)
    return hashes


def with_record(
    manifest: Mapping[str, Any], record: Mapping[str, Any], made: str, trained: Collection[str], *, by: str = "adapt"
) -> dict[str, Any]:
    """The manifest of the new repo: one more entry under `adapted`, and what it measured under `measurements`.

    Args:
        made: effconv's version. trained: names of the trained tensors. by: the command that trained.
    """
    before = manifest["measurements"] if isinstance(manifest.get("measurements"), dict) else {}
    stated = {key: record[key] for key in ("teacher", "objective", "train", "options", "data")}
    entry = {**({} if by == "adapt" else {"by": by}), "effconv": made, **stated}
    if by != "adapt":
        entry |= {"steps": record["steps"], "length": max(record["lengths"])}
    return {
        **manifest,
        "new": [name for name in manifest.get("new", ()) if name not in trained],
        "adapted": [*manifest.get("adapted", ()), entry],
        "measurements": {**before, by: [*before.get(by, ()), dict(record)]},
    }


def add_results(folder: Path, manifest: Mapping[str, Any], card: str) -> str:
    """Draws the plot, and returns the card with a block about the last of the manifest's trainings."""
    record = manifest["measurements"]["adapt"][-1]
    plotted = draw(folder / PLOT, record)
    return with_block(card, BLOCK, block(record, plotted), heading=HEADING)


def block(record: Mapping[str, Any], plotted: bool) -> str:
    """The card's block about a training run."""
    figures = [name for name in FIGURES if any(name in row for row in record["after"])]
    rows = [
        "| tokens | texts | " + " | ".join(f"{FIGURES[name]}, before | after" for name in figures) + " |",
        "|---|---|" + "---|---|" * len(figures),
    ]
    for before, after in zip(record["before"], record["after"], strict=True):
        cells = " | ".join(f"{before[n]:.4f} | {after[n]:.4f}" if n in after else "– | –" for n in figures)
        rows.append(f"| {after['tokens']} | {after['texts']} | {cells} |")
    data, spent = record["data"], record["spent"]
    teacher = f" against its source (`{record['teacher']}`)" if record["teacher"] else ""
    digest = f", sha256 `{data['sha256'][:12]}`" if "sha256" in data else ""
    how = (
        f"Trained{teacher} with the objective `{record['objective']}` (`--train {record['train']}`): "
        f"{counted(record['steps'], 'step')}, {record['tokens']:,} tokens of {', '.join(data['data'])}{digest}, "
        f"{spent['wall_seconds']:,.0f} s ({spent['cpu_seconds']:,.0f} s of CPU time per process, "
        f"{spent['processes']} process{'es' if spent['processes'] > 1 else ''}). "
        f"The state of step {record['best_step']:,} was kept."
    )
    where = (
        f"Measured on {counted(data['heldout_documents'], 'document')} not used in training "
        f"({data['heldout_tokens']:,} tokens, sha256 `{data['heldout_sha256'][:12]}`)."
    )
    if whitening := record.get("whitening"):
        how += (
            f"\n\nAfter training, its embeddings were whitened on {whitening['texts']:,} passages of "
            f"{whitening['tokens']} tokens "
            "of the training text, by the `Dense` layer of the sentence-transformers modules. Loaded without them "
            "(`AutoModel`), the model gives embeddings that are not whitened."
        )
    picture = [f"![loss and score by step]({PLOT})", ""] if plotted else []
    return "\n".join([how, "", where, "", *rows, "", *picture])


def draw(path: Path, record: Mapping[str, Any]) -> bool:
    """Writes loss and held-out score by step as SVG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    from matplotlib.figure import Figure

    history: Sequence[Mapping[str, Any]] = record["history"]
    with matplotlib.rc_context({"svg.hashsalt": "effconv", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        fidelity, losses = figure.subplots(1, 2)
        steps = [entry["step"] for entry in history]
        for i, row in enumerate(history[0]["rows"]):
            for name in DRAWN:
                if name in row:
                    values = [entry["rows"][i][name] for entry in history]
                    fidelity.plot(steps, values, label=f"{FIGURES[name]}, {row['tokens']} tokens", linewidth=1)
        fidelity.set(xlabel="step", title="held-out text")
        fidelity.legend(fontsize=6)
        for name in dict.fromkeys(name for entry in history for name in entry["losses"]):
            points = [(entry["step"], entry["losses"][name]) for entry in history if name in entry["losses"]]
            losses.plot(*zip(*points, strict=True), label=name, marker=".", linewidth=1)
        losses.set(xlabel="step", title="loss", yscale="log")
        losses.legend(fontsize=6)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
