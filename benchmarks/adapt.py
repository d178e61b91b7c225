"""What `effconv adapt` wins back: fidelity on a test text before and after, beside controls that have no attention.

`python -m benchmarks.adapt SOURCE TRAIN TEST [--only NAME ...] [--budget 580s] [--folder FOLDER]` converts SOURCE to
each target, trains it on TRAIN for the budget (CPU time of this process, one thread), and prints a line of a table for
each length, as it is made; then how well long documents are found, where a target takes them. TEST is never trained on
(docs/how-to/adapt.md says what was chosen by it). With --folder the repos are kept, and what stands there from the
same options is measured and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effconv.adapt.models import load_pair
from effconv.adapt.recipes import phases_of
from effconv.adapt.retrieval import retrieval
from effconv.adapt.teacher import lesson
from effconv.api import adapt, convert, fidelity
from effconv.convert.families.selection import family_of
from effconv.convert.verify.fidelity import cut
from effconv.targets.teacher import AttentionRun, AttentionSite, Receive, attention_sites, watch

SHORT, LONG = (128, 512), (512, 1024)
RETRIEVAL: dict[str, Any] = {
    "documents": 1000,
    "tokens": 2048,
    "with_": "truncation,chunk-mean,chunk-max",
}  # as many documents as the text has: fewer tell models apart by luck


@dataclass(frozen=True)
class Case:
    """A target with its options, what `adapt` is told beyond its defaults, and the lengths that are measured.

    `goal` names the trained repo, where a target is trained in more than one way.
    """

    target: str
    options: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    lengths: tuple[int, ...] = SHORT
    retrieval: bool = False
    goal: str = "adapted"


LSG = {"max_length": 4096, "block_size": 32, "sparse_block_size": 32}
MIXED = {"objective": "attention:.4,hidden+sentence:.6", "lengths": "128,512"}
BUDGET = "580s"
CASES = {
    "linformer, 128 rows": Case("linformer", {"max_length": 512, "proj_dim": 128}),
    "lambda": Case("lambda", {"max_length": 512}, MIXED, calibrated=True),
    "transnormer t2": Case("transnormer", {"max_length": 512}, {"budget": "250s"}, calibrated=True),
    "lsg, block 32": Case(
        "lsg",
        LSG,
        {
            "objective": "hidden+sentence",
            "learning_rate": 3e-5,
            "lengths": "128,512,1024",
            "batch_tokens": 2048,
            "budget": "130s",
            "evaluate_every": 1000,
        },
        lengths=LONG,
        retrieval=True,
    ),
    "lsg, block 32, to be found": Case(
        "lsg",
        LSG,
        {
            "objective": "contrastive",
            "learning_rate": 3e-5,
            "lengths": "1024,2048",
            "batch_tokens": 2048,
            "budget": "540s",  # whitening takes the rest
            "whiten": True,
        },
        lengths=LONG,
        retrieval=True,
        goal="contrastive",
    ),
}
CONTROLS = ("attention zeroed", "uniform attention")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*CONTROLS, *CASES], default=[*CONTROLS, *CASES])
    parser.add_argument("--budget", help="CPU time of each training, in place of its own")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="keep the repos here, and use those that are here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    long: dict[Path, None] = {}  # repos whose documents are to be found, in order
    print("| token / sentence cosine | tokens | before | after | steps, CPU s |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="effconv-bench-") as temporary:
        folder = asked.folder or Path(temporary)
        for name in asked.only:
            if name in CONTROLS:
                for row in control(asked.source, asked.test, name, asked.texts):
                    print(f"| {name} | {row['tokens']} | {figures(row)} | – | – |", flush=True)
                continue
            case = CASES[name]
            repo, output, record = trained(case, folder, asked)
            seconds = record["spent"]["cpu_seconds"] + record.get("whitening", {}).get("cpu_seconds", 0)
            spent = f"{record['steps']}, {seconds:.0f}"
            for length in case.lengths:
                before, after = (closeness(place, asked, length) for place in (repo, output))
                print(f"| {name} | {length} | {figures(before)} | {figures(after)} | {spent} |", flush=True)
            if case.retrieval:
                long |= {repo: None, output: None}
        if long:
            found = retrieval([*long], against=asked.source, data=[asked.test], **RETRIEVAL)
            counts = "{documents} documents, {queries} queries".format(**found["task"])
            print(f"\n| {counts} | R@1 | MRR | over chunk average |\n|---|---|---|---|")
            for row in found["rows"]:
                over = f"{row['over_chunk_average']:+.3f} ± {row['over_chunk_average_error']:.3f}"
                print(f"| {row['documents']} | {row['r@1']:.3f} | {row['mrr']:.3f} | {over} |", flush=True)


def trained(case: Case, folder: Path, asked: argparse.Namespace) -> tuple[Path, Path, Mapping[str, Any]]:
    """The repo, the trained one, and the record of its training."""
    repo, output = folder / case.target, folder / f"{case.target}-{case.goal}"
    training = {"batch_tokens": asked.batch_tokens, "budget": BUDGET, "budget_clock": "cpu", **case.training}
    training |= {"budget": asked.budget} if asked.budget else {}
    try:
        (record,) = json.loads((output / "effconv.json").read_text(encoding="utf-8"))["measurements"]["adapt"]
        if all(record["options"][name] == value for name, value in training.items()):
            return repo, output, record
    except (OSError, ValueError, KeyError):
        pass  # nothing there, or nothing of this kind: it is made
    fitted: dict[str, Any] = {"calibrate": (asked.train,)} if case.calibrated else {}
    convert(asked.source, case.target, output=repo, verify=False, overwrite=True, **case.options, **fitted)
    result = adapt(
        repo,
        teacher=asked.source,
        data=asked.train,
        output=output,
        verify=False,
        overwrite=True,
        watch=show,
        **training,
    )
    return repo, output, result.record


def show(tick: Any) -> None:
    """A look at the held-out text, on stderr."""
    if tick.evaluated:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in tick.losses.items())
        print(f"step {tick.step}: {losses}; held-out score {tick.score:.4f}", file=sys.stderr, flush=True)


def closeness(repo: Path, asked: argparse.Namespace, length: int) -> Mapping[str, Any]:
    """Token and sentence cosine to the source, which is run on windows where it takes no text of this length."""
    manifest = json.loads((repo / "effconv.json").read_text(encoding="utf-8"))
    if length <= manifest["source_max_length"]:
        (row,) = fidelity(repo, against=asked.source, data=[asked.test], lengths=(length,), texts=asked.texts)
        return row
    pair = load_pair(repo, asked.source, manifest, phases_of("hidden"), trust_remote_code=False)
    pair.student.eval()
    windows = cut(pair.tokenizer, asked.test.read_text(encoding="utf-8"), length, asked.texts)
    assert windows is not None
    with torch.no_grad():
        return cosines(
            [(pair.student(ids).last_hidden_state, lesson(pair, ids).states[-1]) for ids in windows.split(1)]
        )


def control(source: Path, test: Path, name: str, texts: int) -> list[dict[str, Any]]:
    """Fidelity of the source itself when its attention gives nothing, or the mean of all values."""
    import transformers

    model = transformers.AutoModel.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rows = []
    for length in SHORT:
        windows = cut(tokenizer, test.read_text(encoding="utf-8"), length, texts)
        assert windows is not None
        pairs = []
        with torch.no_grad():
            for ids in windows.split(1):
                wanted = model(ids).last_hidden_state
                with without_attention(model, uniform=name == CONTROLS[1]):
                    pairs.append((model(ids).last_hidden_state, wanted))
        rows.append({"tokens": length, **cosines(pairs)})
    return rows


@contextmanager
def without_attention(model: Any, *, uniform: bool) -> Any:
    """Every output projection of the stock model is fed zeros, or each text's mean value."""
    config = model.config.to_dict()

    def instead(site: AttentionSite) -> Receive:
        def receive(run: AttentionRun) -> Tensor:
            fed = run.value.mean(1, keepdim=True).expand_as(run.value) if uniform else torch.zeros_like(run.attended)
            return site.output.forward(fed)  # not a call, which the hook would see

        return receive

    with watch([(site, instead(site)) for site in attention_sites(model, family_of(config, None), config)]):
        yield


def cosines(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of the last states (1, t, w) of one text after the other."""
    return {
        "token_cosine": mean(F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs),
        "sentence_cosine": mean(F.cosine_similarity(a.mean(1), b.mean(1), dim=-1) for a, b in pairs),
    }


def figures(row: Mapping[str, Any]) -> str:
    return f"{row['token_cosine']:.4f} / {row['sentence_cosine']:.4f}"


def mean(values: Any) -> float:
    found: Sequence[float] = [float(value) for value in values]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
