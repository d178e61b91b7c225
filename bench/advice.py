"""`effconv bench MODEL --data TEXTS`: whether to convert, and to which length, block size, sparsity and batch size."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, EffconvError, UnsupportedError, UsageError
from ..convert.options import Progress
from ..convert.verify.against import named_source
from ..data.texts import require_files
from . import choices
from .choices import Advised, Candidate, Lengths, Probe
from .cost import Cost, costs_of_texts, read
from .machine import machine
from .models import as_lsg, stretched
from .options import SHORTEST, BenchOptions
from .reasons import none_needed, reasons
from .sources import Opened, opened
from .texts import lengths_of_texts
from .timing import clock_name
from .whole import Case, Row, measure

PROBE = 2048  # tokens of the longer of two probes
CHECK = 2  # times the tokens of that in the run that the line is checked against


@dataclass(frozen=True)
class Advice:
    """The recommended conversion, with reasons.

    Attributes:
        lengths: of the texts. limit: maximum length of the source in tokens.
        advised: None if the source already takes these texts.
        reasons: a sentence each. costs: of these texts, with the source and with the advised conversion.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    lengths: Lengths
    limit: int
    advised: Advised | None
    reasons: list[str] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    interrupted: bool = False

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        found = {
            "machine": self.machine,
            "settings": self.settings,
            "texts": self.lengths.described(sorted({self.limit, *choices.LENGTHS})),
            "source_limit": self.limit,
            "conversion_needed": self.lengths.covered(self.limit) < choices.COVERED,
            "advice": None,
            "reasons": self.reasons,
        }
        if (advised := self.advised) is None:
            return found
        length, memory = advised.length, advised.memory
        return found | {
            "memory_bytes": memory,
            "candidates": [choices.described(probe, length, memory) for probe in advised.probes],
            "advice": {
                "max_length": length,
                **choices.described(advised.chosen, length, memory),
                "batch": advised.batch,
                "command": advised.command,
            },
            "check": advised.check,
            "costs": [cost.described() for cost in self.costs],
        }


def advise(models: Sequence[str], options: BenchOptions, progress: Progress) -> Advice:
    """Reads the texts; where the source does not take them, measures candidates and applies the rules of `choices`.

    Raises:
        EffconvError: a text cannot be read, the model cannot be converted, or there is not enough memory for one text.
    """
    if len(models) != 1:
        raise UsageError(
            f"--data needs exactly one model, got {', '.join(models)}",
            where="MODEL...",
            hint="name one model, then existing text files after --data",
        )
    if len(options.dtypes()) > 1 or options.batch != "1" or options.mixed or options.with_:
        raise UsageError(
            "--data needs one dtype, and chooses the batch size itself",
            where="--batch, --dtype, --mixed, --with",
            hint="leave out these options, or add --no-advice to compare models as they are",
        )
    memory = options.memory_bytes() or _free(options.device)
    require_files(options.data)
    model = opened(models[0], options)
    if model.dense is None:
        raise UnsupportedError(
            f"{model.name} cannot be converted to LSG",
            where=models[0],
            hint="name a model that effconv lsg accepts, such as BERT or RoBERTa",
        )
    lengths, special = lengths_of_texts([model], options, progress)
    settings = {
        "model": model.name, "data": [Path(name).name for name in options.data], "dtype": options.dtypes()[0],
        "run": "training step" if options.train else "forward", "threads": options.thread_count(),
        "device": options.device, "rounds": options.rounds, "price_per_hour": options.price_per_hour,
        "clock": clock_name(options.thread_count() if options.device == "cpu" else 0),
    }  # fmt: skip
    asked = options.token_lengths()
    source = model.name if model.manifest is None else named_source(model.manifest)
    length = choices.needed_length(lengths, asked or choices.LENGTHS)
    if lengths.covered(model.had) >= choices.COVERED and (asked is None or length <= model.had):
        return Advice(machine(), settings, lengths, model.had, None, none_needed(lengths, model.had, source))
    advised = _advised(model, models[0], length, memory, options, progress)
    said = reasons(lengths, model.had, advised)
    costs = _costs(model, source, advised, lengths, special, options, progress)
    return Advice(machine(), settings, lengths, model.had, advised, said, costs)


def _costs(
    model: Opened,
    source: str,
    advised: Advised,
    lengths: Lengths,
    special: int,
    options: BenchOptions,
    progress: Progress,
) -> list[Cost]:
    """What the texts cost with the source, measured at its length and half of it, and with the advised conversion."""
    assert model.dense is not None
    dense = stretched(f"{source} (source)", model.dense, model.had, model.had)
    sizes = sorted({max(SHORTEST, model.had // 2), max(SHORTEST, model.had)})
    cases = [Case(n, 1, options.dtypes()[0], options.train, named="cost of the source") for n in sizes]
    rows: list[Row] = []
    measure([dense], cases, rows, **_timing(options, progress))
    found = costs_of_texts(rows, [dense], lengths, special, options.price_per_hour)
    probe = advised.chosen
    case, times = replace(cases[-1], length=probe.lengths[1]), np.vectorize(probe.time, otypes=[float])
    name = f"LSG, {probe.candidate.says(advised.length)} (advised)".replace("LSG, LSG", "LSG")
    ours = read(name, case, times, lengths, advised.length, special, options.price_per_hour, probe.lengths)
    return [*found, *ours]


def _advised(model: Opened, named: str, length: int, memory: int, options: BenchOptions, progress: Progress) -> Advised:
    """Probes every candidate at two lengths, chooses, and checks the chosen one at a third."""
    assert model.dense is not None
    found, probed, (dtype,) = choices.candidates(length), min(length, PROBE), options.dtypes()
    rows: list[Row] = []
    subject = as_lsg(model.name, "LSG, random weights", model.dense, max(length, CHECK * probed), _options(found[0]))
    timing = _timing(options, progress)
    timing["loaded"] = lambda subject, answer: require_room(answer, memory, options.device)
    names = [f"{candidate.says(length)} ({i} of {len(found)})" for i, candidate in enumerate(found, 1)]
    cases = [
        Case(n, 1, dtype, options.train, set=_options(candidate), named=name)
        for candidate, name in zip(found, names, strict=True)
        for n in (probed // 2, probed)
    ]

    def require_hope(case: Case) -> None:
        if case is cases[1] and (first := probe_of(found[0], rows, probed)) and choices.hopeless(first, length, memory):
            raise _none_fits([first], rows, length, memory)

    measure([subject], cases, rows, **timing, measured=require_hope)
    probes = [probe for candidate in found if (probe := probe_of(candidate, rows, probed))]
    chosen = choices.choose(probes, length, memory)
    if chosen is None:
        raise _none_fits(probes, rows, length, memory)
    tokens = min(length, CHECK * probed) if length > probed else CHECK * probed
    says, fields = f"check of {chosen.candidate.says(length)}", _options(chosen.candidate)
    case = Case(min(length, tokens), -(-tokens // length), dtype, options.train, set=fields, named=says)
    checked: list[Row] = []
    measure([subject], [case], checked, **timing)
    chosen, check = check_of(chosen, checked[-1])
    batch = choices.batch_for(chosen, length, memory)
    if not batch:
        raise _none_fits([chosen], rows, length, memory)
    command = ["effconv", "lsg", _convertible(model, named), "--max-len", str(length), *chosen.candidate.flags()]
    return Advised(length, memory, probes, chosen, batch, check, shlex.join(command))


def _timing(options: BenchOptions, progress: Progress) -> dict[str, Any]:
    """Arguments of `measure` that the options say."""
    return {
        "rounds": options.rounds, "threads": options.thread_count(), "device": options.device,
        "progress": lambda step: progress(step, 0, 0),
    }  # fmt: skip


def require_room(answer: Mapping[str, Any], memory: int, device: str) -> None:
    """Raises before anything is run if the loaded model fills the memory, or the system does not report memory.

    Args:
        answer: what the process says of the model that it has loaded.
    """
    if device != "cpu" or "failed" in answer:
        return
    held = answer["resident"]
    if held is None:
        raise UnsupportedError(
            "this system does not report the peak memory of a process", where="--data", hint="use Linux"
        )
    room = (1 - choices.HEADROOM) * memory
    if held >= room:
        raise UsageError(
            f"{_size(memory)} is not enough memory: the loaded model alone needs {_size(held)}, and "
            f"{choices.HEADROOM:.0%} is kept free",
            where="--memory",
            hint=f"give more than {_size(held / (1 - choices.HEADROOM))}, or leave out --memory to use all free memory",
        )


def probe_of(candidate: Candidate, rows: Sequence[Row], probed: int) -> Probe | None:
    """A candidate's two rows as a probe; None if one of them failed, or the system does not report memory."""
    own = {row.case.length: row for row in rows if dict(row.case.set) == _options(candidate)}
    one, other = own.get(probed // 2), own.get(probed)
    if one is None or other is None or one.spread is None or other.spread is None:
        return None
    if one.working is None or other.working is None or other.peak is None:
        return None
    return Probe(
        candidate,
        (probed // 2, probed),
        (one.spread.median, other.spread.median),
        (one.working, other.working),
        other.peak - other.working,
        (other.spread.low, other.spread.high),
    )


def check_of(chosen: Probe, row: Row) -> tuple[Probe, dict[str, Any]]:
    """The chosen probe, its line corrected where a third point lies above it; and both, predicted and measured."""
    tokens = row.case.length * row.case.batch
    if row.spread is None or row.working is None:
        return chosen, {"tokens": tokens, "failed": row.failed}
    predicted = chosen.time(row.case.length) * row.case.batch
    least, most = (predicted * value / chosen.seconds[1] for value in chosen.spread)
    check = {
        "tokens": tokens,
        "predicted_bytes": round(chosen.memory(tokens)),
        "measured_bytes": chosen.held + row.working,
        "predicted_seconds": predicted,
        "predicted_spread": [least, most],
        "measured_seconds": row.spread.median,
        "measured_spread": [row.spread.low, row.spread.high],
        "within_spread": row.spread.low <= most and least <= row.spread.high if len(row.seconds) > 1 else None,
    }
    return choices.corrected(chosen, tokens, row.working), check


def _none_fits(probes: Sequence[Probe], rows: Sequence[Row], length: int, memory: int) -> EffconvError:
    if not probes:
        why = next((row.failed for row in rows if row.failed), "nothing was measured")
        return BadInputError(f"no candidate could be measured: {why}", where="MODEL", hint="give shorter --lengths")
    probe = min(probes, key=lambda probe: probe.memory(length))
    least = probe.memory(length) / (1 - choices.HEADROOM)
    return UsageError(
        f"{_size(memory)} is not enough memory: one text of {length:,} tokens needs {_size(least)}, including "
        f"{_size(probe.held)} for the loaded model",
        where="--memory",
        hint=f"give {_size(least)} or more, or shorter --lengths",
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _convertible(model: Opened, named: str) -> str:
    """What `effconv lsg` takes: the source, or an LSG repo itself, which is resized."""
    if model.manifest is None or model.manifest["target"] == "lsg":
        return named
    return named_source(model.manifest)


def _options(candidate: Candidate) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}


def _free(device: str) -> int:
    """Bytes that are free now.

    Raises:
        UsageError: the system does not say so.
    """
    if device == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            pass
    else:
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                f"no device {device} on this machine",
                where=f"--device {device}",
                hint="leave out --device to measure on the CPU",
            )
    raise UsageError(
        "this system does not report its free memory" if device == "cpu" else f"--device {device} needs --memory",
        where="--memory",
        hint="give the memory available to the model, such as --memory 16G",
    )
