"""Every family with every head: converted, loaded, run at 4,096 tokens, trained a step, saved and loaded again.

    python tests/support/matrix.py    (make matrix)

makes tiny sources, runs all of it and writes the table into docs/reference/families.md. The tests of the families run
the same cells.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from places import ROOT, SUPPORT

if __name__ == "__main__":  # as a script it has only its own folder on the path, and there may be an effconv elsewhere
    sys.path.insert(0, str(Path(__file__).parent))

from environments import stranger
from lsg_goldens import convert

from effconv.convert.families.registry import FAMILIES
from effconv.convert.repo.card_blocks import with_block
from effconv.lsgify.target import LSG
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
    """What is wrong with each job, by what was tried ("" where nothing is), from a fresh process."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(WORKER), str(folder / "jobs.json")]
    run = subprocess.run(command, capture_output=True, text=True, env=stranger(folder), check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, str]]) -> str:
    """The table in Markdown: yes where all was done, what failed where not, – where the family has no such head."""
    autos = [auto for auto in COLUMNS if any(head.auto == auto for f in LSG.families for head in FAMILIES[f].heads)]
    lines = ["| family | " + " | ".join(COLUMNS[auto] for auto in autos) + " |", "|---" * (len(autos) + 1) + "|"]
    for family in LSG.families:
        heads = {head.auto: head.suffix for head in FAMILIES[family].heads}
        cells = []
        for auto in autos:
            if auto not in heads:
                cells.append("–")
                continue
            found = results[name_of(family, heads[auto])]
            failed = [what for what, why in found.items() if why]
            cells.append(f"fails: {', '.join(failed)}" if failed else "yes")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        jobs = [make_job(Path(name), *cell) for cell in CELLS]
        made = table(run_jobs(jobs, Path(name)))
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), "matrix", made), encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
