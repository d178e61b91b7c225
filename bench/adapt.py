"""What `effconv adapt` wins back: fidelity on a test text before and after, beside controls that have no attention.

`python -m effconv.bench.adapt SOURCE TRAIN TEST [--only NAME ...] [--budget 10m] [--texts 32]` converts SOURCE to each
target, trains it on TRAIN for the budget (CPU time of this process, one thread), and prints a line of a table for each,
as it is made. TEST is never trained on; what was chosen was chosen on held-out documents of TRAIN.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import adapt, convert, fidelity
from ..convert.families import family_of
from ..convert.fidelity import cut

LENGTHS = (128, 512)


@dataclass(frozen=True)
class Case:
    """A row: the target with its options, and what `adapt` is told beyond its defaults."""

    target: str
    options: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = False


CASES = {
    "linformer, 128 rows": Case("linformer", {"max_length": 512, "proj_dim": 128}),
    "lambda": Case("lambda", {"max_length": 512}, calibrated=True),
    "transnormer t2": Case("transnormer", {"max_length": 512}, calibrated=True),
    "lsg, block 32": Case("lsg", {"max_length": 4096, "block_size": 32, "sparse_block_size": 32}),
}
CONTROLS = ("attention zeroed", "uniform attention")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m effconv.bench.adapt", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*CONTROLS, *CASES], default=[*CONTROLS, *CASES])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="keep the repos here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| token / sentence cosine | " + " | ".join(f"{n}, before | after" for n in LENGTHS) + " | steps, CPU s |\n"
        "|---|" + "---|---|" * len(LENGTHS) + "---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="effconv-bench-") as temporary:
        folder = asked.folder or Path(temporary)
        for name in asked.only:
            if name in CONTROLS:
                rows = control(asked.source, asked.test, name, asked.texts)
                print(f"| {name} | " + " | ".join(f"{figures(row)} | –" for row in rows) + " | – |", flush=True)
                continue
            before, after, record = trained(CASES[name], folder, asked)
            cells = " | ".join(f"{figures(a)} | {figures(b)}" for a, b in zip(before, after, strict=True))
            print(f"| {name} | {cells} | {record['steps']}, {record['spent']['cpu_seconds']:.0f} |", flush=True)


def trained(
    case: Case, folder: Path, asked: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Mapping[str, Any]]:
    """Fidelity before and after, and the record of the training."""
    repo, output = folder / case.target, folder / f"{case.target}-adapted"
    fitted = {"calibrate": (asked.train,)} if case.calibrated else {}
    convert(asked.source, case.target, output=repo, verify=False, overwrite=True, **case.options, **fitted)
    torch.set_num_threads(1)  # a calibration sets its own
    result = adapt(
        repo, teacher=asked.source, data=asked.train, output=output, budget=asked.budget, budget_clock="cpu",
        batch_tokens=asked.batch_tokens, verify=False, overwrite=True, **case.training,
    )  # fmt: skip
    before, after = (
        fidelity(place, against=asked.source, data=[asked.test], lengths=LENGTHS, texts=asked.texts)
        for place in (repo, output)
    )
    return before, after, result.record


def control(source: Path, test: Path, name: str, texts: int) -> list[dict[str, Any]]:
    """Fidelity of the source itself when its attention gives nothing, or the mean of all values."""
    import transformers

    model = transformers.AutoModel.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rows = []
    for length in LENGTHS:
        windows = cut(tokenizer, test.read_text(encoding="utf-8"), length, texts)
        assert windows is not None
        pairs = []
        with torch.no_grad():
            for ids in windows.split(1):
                wanted = model(ids).last_hidden_state
                with without_attention(model, uniform=name == CONTROLS[1]):
                    pairs.append((model(ids).last_hidden_state, wanted))
        rows.append(
            {
                "token_cosine": mean(F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs),
                "sentence_cosine": mean(F.cosine_similarity(a.mean(1), b.mean(1), dim=-1) for a, b in pairs),
            }
        )
    return rows


@contextmanager
def without_attention(model: nn.Module, *, uniform: bool) -> Any:
    """Every output projection of the stock model gets zeros, or each text's mean value."""
    family = family_of(model.config.to_dict(), None)
    values: dict[int, Tensor] = {}
    handles = []
    for path in family.layer_paths(model.config.to_dict()):
        layer = model.get_submodule(path)
        projection = layer.get_submodule(f"{family.code.attention_path}.{family.code.projections[2]}")

        def keep(_module: object, _args: object, output: Tensor, key: int = id(layer)) -> None:
            values[key] = output.mean(1, keepdim=True).expand_as(output)

        def replace(_module: object, args: tuple[Tensor, ...], key: int = id(layer)) -> tuple[Tensor, ...]:
            return (values[key] if uniform else torch.zeros_like(args[0]),)

        handles += [
            projection.register_forward_hook(keep),
            layer.get_submodule(family.output_projection).register_forward_pre_hook(replace),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def figures(row: Mapping[str, Any]) -> str:
    return f"{row['token_cosine']:.4f} / {row['sentence_cosine']:.4f}"


def mean(values: Any) -> float:
    found: Sequence[float] = [float(value) for value in values]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
