"""`effconv bench`: models as they are named → rows, what they say, and what the conversion itself cost."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, EffconvError, UsageError
from . import conversion
from .findings import Crossover, Fastest, crossovers, fastest
from .machine import machine
from .models import Subject, shape
from .options import BenchOptions
from .sources import Opened, conversion_of, opened, source_name, weights_of
from .whole import Case, Row, measure

USUAL_LENGTHS = (512, 1024, 2048, 4096)
CONVERSION_RUNS = 3

Progress = Callable[[str, int, int], None]


@dataclass
class BenchReport:
    """What was measured; filled as it is, so that an interrupt leaves what there was.

    Attributes:
        machine, settings: where and how. rows: one a model and case.
        conversion: cost of each model's conversion by name, or {"why": ...} where it was not measured.
        interrupted: whether somebody stopped it.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    conversion: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    converted: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def fastest(self) -> list[Fastest]:
        return fastest(self.rows)

    @property
    def crossovers(self) -> list[Crossover]:
        return crossovers(self.rows, self.converted, self.dense)

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "rows": [row.described() for row in self.rows],
            "fastest": [found.described() for found in self.fastest],
            "crossovers": [found.described() for found in self.crossovers],
            "conversion": self.conversion,
            "interrupted": self.interrupted,
        }


def bench_models(models: Sequence[str], options: BenchOptions, progress: Progress) -> BenchReport:
    """Measures models side by side.

    Raises:
        EffconvError: a model that cannot be found or loaded, options that make no sense. An interrupt raises nothing:
            the report says so.
    """
    found = [opened(model, options) for model in models]
    lengths = options.token_lengths() or default_lengths(found)
    subjects = chosen(found, max(lengths), options)
    cases = [
        Case(length, batch, dtype, options.train, options.mixed)
        for dtype, batch, length in itertools.product(options.dtypes(), options.batches(), lengths)
    ]
    settings = {
        "lengths": lengths, "batch": options.batches(), "dtype": options.dtypes(),
        "run": "training step" if options.train else "forward", "mixed": options.mixed,
        "threads": options.thread_count(), "device": options.device, "rounds": options.rounds,
    }  # fmt: skip
    report = BenchReport(machine(), settings)
    report.converted = [subject.name for subject in subjects if subject.converted]
    report.dense = [subject.name for subject in subjects if subject.dense]
    try:
        measure(
            subjects,
            cases,
            report.rows,
            rounds=options.rounds,
            threads=options.thread_count(),
            device=options.device,
            progress=lambda step: progress(step, 0, 0),
        )
        require_loaded(report.rows, [model.name for model in found])
        if options.conversion:
            for model in found:
                if model.manifest is not None or len(found) == 1:
                    progress(f"conversion of {model.name}", 0, 0)
                    report.conversion[model.name] = conversion_cost(model, options)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def default_lengths(models: Sequence[Opened]) -> list[int]:
    """Doubled from 512 to 4,096, as far as a converted model among them reaches (all of them, if none does)."""
    reaches = [model.subject.reach for model in models if model.subject and model.subject.reach]
    reach = max(reaches, default=USUAL_LENGTHS[-1])
    return [length for length in USUAL_LENGTHS if length <= reach] or [reach]


def chosen(models: Sequence[Opened], length: int, options: BenchOptions) -> list[Subject]:
    """The named models, the dense source of the first that has one, and peers of its size; each name once."""
    subjects = [model.at(length) for model in models]
    base = next((model for model in models if model.dense is not None), None)
    if options.source and base is not None and base.subject is not None:
        known = any(subject.dense for subject in subjects)
        if not known:  # nobody named it
            name = f"{source_name(base.manifest or {})} (source)"
            subjects.append(Opened(name, base.source, None, base.dense, base.had).at(length))
    shapes = options.shapes()
    if shapes and (base is None or base.dense is None):
        raise UsageError(
            "no named model has a dense source, whose size the others would take",
            where="--with",
            hint="name a converted BERT or RoBERTa, or the dense model",
        )
    if base is not None and base.dense is not None:
        subjects += [shape(kind, base.dense, length) for kind in shapes]
    names: dict[str, int] = {}
    unique = []
    for subject in subjects:
        count = names[subject.name] = names.get(subject.name, 0) + 1
        unique.append(subject if count == 1 else _renamed(subject, f"{subject.name} ({count})"))
    return unique


def require_loaded(rows: Sequence[Row], named: Sequence[str]) -> None:
    """Raises BadInputError where a model that the user named could not be loaded at all."""
    for row in rows:
        if row.model in named and row.failed.startswith("cannot be loaded"):
            raise BadInputError(
                f"the model {row.failed}",
                where=row.model,
                hint="check it with effconv verify, or give a model that transformers knows",
            )


def conversion_cost(model: Opened, options: BenchOptions) -> dict[str, Any]:
    """What the model's conversion costs beside `cp`, `sync` and `sha256sum` of the source's weights; or why not."""
    try:
        source, command = conversion_of(model, options)
        weights = weights_of(source)
        assert source.folder is not None
        with tempfile.TemporaryDirectory(prefix="effconv-bench-") as name:
            cost = conversion.measure(source.folder, weights, command, CONVERSION_RUNS, Path(name))
    except EffconvError as error:
        return {"why": error.what + (f" ({error.hint})" if error.hint else "")}
    return {"command": " ".join(["effconv", command[0], source.name, *command[1:], "--no-verify"]), **cost.described()}


def _renamed(subject: Subject, name: str) -> Subject:
    from dataclasses import replace

    return replace(subject, name=name)
