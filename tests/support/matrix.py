"""Every family with every head: converted, loaded, run at 4,096 tokens, trained a step, saved and loaded again.

    python tests/support/matrix.py              (make matrix)
    python tests/support/matrix.py FAMILY...    runs these families only and keeps the other rows

makes tiny sources, runs all of it and writes the table into docs/reference/families.md. The tests of the families run
the same cells. The page's table of families and targets is written too: it follows from the registry.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from places import ROOT, SUPPORT

if __name__ == "__main__":  # as a script it has only its own folder on the path, and there may be an effconv elsewhere
    sys.path.insert(0, str(Path(__file__).parent))

from environments import strangers_output
from lsg_goldens import convert

from effconv.convert.families.registry import ENCODER_DECODERS, FAMILIES
from effconv.convert.repo.card_blocks import blocks, with_block
from effconv.lsgify.target import LSG
from effconv.targets.registry import ROWS, TARGETS
from tiny import save_tiny

WORKER = SUPPORT / "verify_worker.py"
PAGE = ROOT / "docs" / "reference" / "families.md"
LENGTH = 4096
BLOCKS = {"block_size": 16, "sparse_block_size": 16}
COLUMNS = {
    "AutoModel": "base",
    "AutoModelForMaskedLM": "masked LM",
    "AutoModelForPreTraining": "pretraining",
    "AutoModelForCausalLM": "causal LM",
    "AutoModelForSeq2SeqLM": "generation",
    "AutoModelForNextSentencePrediction": "next sentence",
    "AutoModelForSequenceClassification": "sequence",
    "AutoModelForTokenClassification": "token",
    "AutoModelForQuestionAnswering": "question",
    "AutoModelForMultipleChoice": "choice",
}
CELLS = [(family, head.suffix) for family in LSG.families for head in FAMILIES[family].heads]


def name_of(family: str, head: str, variant: str = "plain") -> str:
    return f"{family}-{head}-{variant}"


def make_job(folder: Path, family: str, head: str, variant: str = "plain", **config: object) -> dict:
    """A tiny source, converted by the command line, as a job of the worker."""
    name = name_of(family, head, variant)
    source = save_tiny(folder / "sources" / name, family, head, **config)
    repo = convert(source, folder / name, LENGTH, BLOCKS)
    return {"name": name, "repo": str(repo), "source": str(source), "case": f"{repo}.safetensors"}


def run_jobs(jobs: list[dict], folder: Path) -> dict[str, dict[str, str]]:
    """What is wrong with each job, by what was tried ("" where nothing is), from a process of its own."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return json.loads(strangers_output(WORKER, folder / "jobs.json", folder=folder).splitlines()[-1])


def table(rows: dict[str, str]) -> str:
    """The table in Markdown, of the rows by family."""
    autos = _autos()
    head = ["| family | " + " | ".join(COLUMNS[auto] for auto in autos) + " |", "|---" * (len(autos) + 1) + "|"]
    return "\n".join([*head, *(rows[family] for family in LSG.families)])


def rows(results: dict[str, dict[str, str]], families: Sequence[str] = LSG.families) -> dict[str, str]:
    """A row for each family: yes where all was done, what failed where not, – where the family has no such head."""
    made = {}
    for family in families:
        heads = {head.auto: head.suffix for head in FAMILIES[family].heads}
        cells = []
        for auto in _autos():
            if auto not in heads:
                cells.append("–")
                continue
            found = results[name_of(family, heads[auto])]
            failed = [what for what, why in found.items() if why]
            cells.append(f"fails: {', '.join(failed)}" if failed else "yes")
        made[family] = f"| {family} | " + " | ".join(cells) + " |"
    return made


def targets_table() -> str:
    """Which target takes what, in Markdown: families that the same targets take share a row."""
    targets = [TARGETS[name] for name, row in ROWS.items() if row.options and TARGETS[name].brings is None]

    def line(what: str, cells: Iterable[str | bool]) -> str:
        words = (cell if isinstance(cell, str) else "yes" if cell else "no" for cell in cells)
        return "| " + " | ".join([what, *words]) + " |"

    lines = [line("family", (target.code.class_prefix for target in targets)), "|---" * (len(targets) + 1) + "|"]
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name in FAMILIES:
        key = (name in ENCODER_DECODERS, *(name in target.families for target in targets))
        groups.setdefault(key, []).append(name)
    for (decoder, *taken), names in groups.items():
        end = ": the encoder, with `generate()` as before" if decoder else ""
        lines.append(line(", ".join(names) + end, taken))
        if any(head.causal for name in names for head in FAMILIES[name].heads) and not decoder:
            causal = (target.causal and some for target, some in zip(targets, taken, strict=True))
            lines.append(line("decoders of these (`is_decoder`)", causal))
    for again in targets:
        if again.accepts_converted:
            what = f"{again.code.class_prefix} models, published ones and effconv's own"
            lines.append(line(what, ("upgraded, resized" if target is again else "no" for target in targets)))
    return "\n".join(lines)


def _autos() -> list[str]:
    return [auto for auto in COLUMNS if any(head.auto == auto for f in LSG.families for head in FAMILIES[f].heads)]


def main(families: Sequence[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    kept = {line.split("|")[1].strip(): line for line in blocks(text)["matrix"].splitlines()} if families else {}
    families = families or LSG.families
    with tempfile.TemporaryDirectory() as name:
        jobs = [make_job(Path(name), *cell) for cell in CELLS if cell[0] in families]
        made = table({**kept, **rows(run_jobs(jobs, Path(name)), families)})
    text = with_block(with_block(text, "matrix", made), "targets", targets_table())
    PAGE.write_text(text, encoding="utf-8")
    print(targets_table(), made, sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
