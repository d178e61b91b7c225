"""`effconv bench MODEL --data TEXTS`: which length, block, sparsity and batch, with the measurements behind it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, UnsupportedError, UsageError
from ..convert.source import TOKENIZER_FILES
from . import choices
from .choices import Candidate, Lengths, Probe
from .machine import machine
from .models import as_lsg
from .options import BenchOptions
from .run import Progress
from .sources import Opened, opened, source_name
from .texts import count_tokens, read_texts
from .whole import Case, Row, measure

PROBE = 2048  # tokens of the longer of two probes
CHECK = 2  # times the tokens of that in the run that the line is checked against


@dataclass(frozen=True)
class Advice:
    """What to convert to, and why.

    Attributes:
        lengths: of the texts. limit: tokens that the source takes. length: the advised one.
        chosen: the probe of the advised candidate. probes: all of them. batch: texts at once.
        memory: bytes there are. command: what makes the advised model.
        check: predicted and measured bytes and seconds of the chosen candidate at a length beyond its probes.
        reasons: a sentence each.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    lengths: Lengths
    limit: int
    length: int
    memory: int
    probes: list[Probe]
    chosen: Probe
    batch: int
    check: dict[str, Any]
    command: str
    reasons: list[str] = field(default_factory=list)
    interrupted: bool = False

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "texts": self.lengths.described(sorted({self.limit, *choices.LENGTHS})),
            "source_limit": self.limit,
            "memory_bytes": self.memory,
            "candidates": [choices.described(probe, self.length, self.memory) for probe in self.probes],
            "advice": {
                "max_length": self.length,
                **choices.described(self.chosen, self.length, self.memory),
                "batch": self.batch,
                "command": self.command,
            },
            "check": self.check,
            "reasons": self.reasons,
        }


def advise(models: Sequence[str], options: BenchOptions, progress: Progress) -> Advice:
    """Reads the texts, measures candidates on this machine, and applies the rules of `choices`.

    Raises:
        EffconvError: texts that cannot be read, a model without a dense source, too little memory for one text.
    """
    if len(models) != 1:
        raise UsageError("advice is for one model", where="MODEL...", hint="name one, and the texts with --data")
    dtypes = options.dtypes()
    if len(dtypes) > 1 or options.batch != "1" or options.mixed or options.with_:
        raise UsageError(
            "advice is for one dtype, and finds the batch itself",
            where="--batch, --dtype, --mixed, --with",
            hint="leave them out, or give one --dtype",
        )
    model = opened(models[0], options)
    if model.dense is None:
        raise UnsupportedError(
            f"{model.name} has no dense source that could become LSG", where=models[0], hint="name a BERT or RoBERTa"
        )
    progress("texts", 0, 0)
    where = ", ".join(options.data)
    texts = read_texts(options.data, column=options.text_column, lines=options.lines)
    counts = count_tokens(texts, tokenizer_of(model), int(model.dense["vocab_size"]), where)
    lengths = Lengths(counts)
    length = choices.needed_length(lengths, options.token_lengths() or choices.LENGTHS)
    memory = options.memory_bytes() or _free(options.device)
    found = choices.candidates(length)
    probed = min(length, PROBE)
    rows: list[Row] = []
    subject = as_lsg(model.name, "LSG, random weights", model.dense, max(length, CHECK * probed), _options(found[0]))
    timing: dict[str, Any] = {
        "rounds": options.rounds, "threads": options.thread_count(), "device": options.device,
        "progress": lambda step: progress(step, 0, 0),
    }  # fmt: skip
    cases = [
        Case(n, 1, dtypes[0], options.train, set=_options(candidate))
        for candidate in found
        for n in (probed // 2, probed)
    ]
    measure([subject], cases, rows, **timing)
    probes = [probe for candidate in found if (probe := probe_of(candidate, rows, probed))]
    chosen = choices.choose(probes, length, memory)
    if chosen is None:
        raise _none_fits(probes, rows, length, memory)
    progress("check", 0, 0)
    tokens = min(length, CHECK * probed) if length > probed else CHECK * probed
    case = Case(min(length, tokens), -(-tokens // length), dtypes[0], options.train, set=_options(chosen.candidate))
    checked: list[Row] = []
    measure([subject], [case], checked, **timing | {"rounds": 1})
    chosen, check = check_of(chosen, checked[-1])
    batch = choices.batch_for(chosen, length, memory)
    if not batch:
        raise _none_fits([chosen], rows, length, memory)
    enough = lengths.covered(model.had) >= choices.COVERED and model.manifest is None
    command = shlex.join(
        ["effconv", "lsg", _convertible(model, models[0]), "--max-len", str(length), *chosen.candidate.flags()]
    )
    settings = {
        "model": model.name, "data": [Path(name).name for name in options.data], "dtype": dtypes[0],
        "run": "training step" if options.train else "forward", "threads": timing["threads"],
        "device": options.device, "rounds": options.rounds, "clock": rows[0].clock,
    }  # fmt: skip
    return Advice(
        machine(), settings, lengths, model.had, length, memory, probes, chosen, batch, check, command,
        reasons(lengths, model.had, length, probes, chosen, batch, memory, check, enough),
    )  # fmt: skip


def tokenizer_of(model: Opened) -> Any:
    """The model's tokenizer.

    Raises:
        BadInputError: it has none.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    names = [name for name in TOKENIZER_FILES if model.source.has(name)]
    if not names:
        raise BadInputError(
            "the model has no tokenizer", where=model.name, hint="lengths are counted in its tokens: add its files"
        )
    for name in names:
        model.source.path(name)
    folder = model.source.path("config.json").parent
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=model.manifest is not None)


def probe_of(candidate: Candidate, rows: Sequence[Row], probed: int) -> Probe | None:
    """A candidate's two rows as a probe; None where one of them failed, or memory is not told here."""
    own = {row.case.length: row for row in rows if dict(row.case.set) == _options(candidate)}
    one, other = own.get(probed // 2), own.get(probed)
    if one is None or other is None or one.spread is None or other.spread is None:
        return None
    if one.working is None or other.working is None or other.peak is None:
        raise UnsupportedError("this system does not tell a process's peak memory", where="--data", hint="use Linux")
    return Probe(
        candidate,
        (probed // 2, probed),
        (one.spread.median, other.spread.median),
        (one.working, other.working),
        other.peak - other.working,
    )


def check_of(chosen: Probe, row: Row) -> tuple[Probe, dict[str, Any]]:
    """The chosen probe, its line corrected where a third point lies above it; and both, predicted and measured."""
    tokens = row.case.length * row.case.batch
    if row.spread is None or row.working is None:
        return chosen, {"tokens": tokens, "failed": row.failed}
    check = {
        "tokens": tokens,
        "predicted_bytes": round(chosen.memory(tokens)),
        "measured_bytes": chosen.held + row.working,
        "predicted_seconds": chosen.time(row.case.length) * row.case.batch,
        "measured_seconds": row.spread.median,
    }
    return choices.corrected(chosen, tokens, row.working), check


def reasons(
    lengths: Lengths,
    limit: int,
    length: int,
    probes: Sequence[Probe],
    chosen: Probe,
    batch: int,
    memory: int,
    check: dict[str, Any],
    enough: bool,
) -> list[str]:
    """Why, a sentence each."""
    found = [
        f"Length {length:,}: texts cut there keep {lengths.covered(length):.1%} of their tokens "
        f"(at {limit:,}, where the source stops, {lengths.covered(limit):.1%})."
    ]
    if lengths.covered(length) < choices.COVERED:
        found.append(f"No allowed length keeps {choices.COVERED:.0%}: give longer ones with --lengths.")
    if enough:
        found.append("The source takes these texts as it is: nothing needs to be converted.")
    fitting = [probe for probe in probes if choices.batch_for(probe, length, memory)]
    quickest = min(fitting, key=lambda probe: probe.time(length))
    found.append(
        f"{chosen.candidate.says}: of what takes at most {choices.WORTH:g} × the time of the fastest "
        f"({quickest.candidate.says}), it reaches most ({chosen.candidate.reach(length):,} of {length:,} tokens)."
    )
    if chosen.candidate.full(length):
        found.append("That is full attention: at this length blocks save too little to give up reach for.")
    share = chosen.memory(batch * length) / memory
    found.append(
        f"Batch {batch}: takes {share:.0%} of the memory, and {choices.HEADROOM:.0%} are kept free"
        + (f"; more than {choices.MOST} is not advised." if batch == choices.MOST else ".")
    )
    if "failed" not in check:
        memory_off, time_off = (
            check[f"measured_{what}"] / check[f"predicted_{what}"] - 1 for what in ("bytes", "seconds")
        )
        found.append(
            f"Checked at {check['tokens']:,} tokens: memory {memory_off:+.0%}, time {time_off:+.0%} against what the "
            "probes predict."
        )
    return found


def _none_fits(probes: Sequence[Probe], rows: Sequence[Row], length: int, memory: int) -> BadInputError:
    if not probes:
        why = next((row.failed for row in rows if row.failed), "nothing was measured")
        return BadInputError(f"no candidate could be measured: {why}", where="MODEL", hint="give shorter --lengths")
    least = min(probe.memory(length) for probe in probes) / (1 - choices.HEADROOM)
    return BadInputError(
        f"one text of {length:,} tokens needs {least / 1e9:.1f} GB, and there are {memory / 1e9:.1f} GB",
        where="--memory",
        hint="give more memory, or shorter --lengths",
    )


def _convertible(model: Opened, named: str) -> str:
    """What `effconv lsg` takes: the source, or an LSG repo itself, which is resized."""
    if model.manifest is None or model.manifest["target"] == "lsg":
        return named
    return source_name(model.manifest)


def _options(candidate: Candidate) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}


def _free(device: str) -> int:
    """Bytes that are free now.

    Raises:
        UsageError: the system does not say so.
    """
    if device == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            pass
    raise UsageError(
        "how much memory there is, this system does not say", where="--memory", hint="such as --memory 16G"
    )
