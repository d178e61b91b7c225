"""`effconv bench`: measures the given models, and the conversion itself."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, EffconvError, UsageError
from ..convert.io.source import Source
from ..convert.options import Progress
from ..convert.verify.against import named_source
from ..data.texts import require_files
from . import conversion
from .choices import Lengths
from .cost import Cost, costs_of_texts, lengths_for, measured_costs
from .findings import Crossover, Fastest, crossovers, fastest
from .machine import machine
from .models import Subject, shape
from .options import BenchOptions
from .sources import Opened, conversion_of, opened, weights_of
from .texts import lengths_of_texts
from .whole import Case, Row, measure

USUAL_LENGTHS = (512, 1024, 2048, 4096)
CONVERSION_RUNS = 3


@dataclass
class BenchReport:
    """The results, filled during the run, so that an interrupt keeps what was measured.

    Attributes:
        machine, settings: where and how. rows: one a model and case.
        conversion: cost of each model's conversion by name, or {"why": ...} if it was not measured.
        subjects: what was measured. texts: lengths of the user's texts, if there are any. special: tokens that the
            tokenizer adds to a text.
        interrupted: whether the run was interrupted.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    conversion: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    converted: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)
    texts: Lengths | None = None
    special: int = 0
    interrupted: bool = False

    @property
    def costs(self) -> list[Cost]:
        """What documents cost: those of the user's lengths, or without texts those of the measured lengths."""
        price = self.settings["price_per_hour"]
        if self.texts is None:
            return measured_costs(self.rows, price)
        return costs_of_texts(self.rows, self.subjects, self.texts, self.special, price)

    @property
    def fastest(self) -> list[Fastest]:
        return fastest(self.rows)

    @property
    def crossovers(self) -> list[Crossover]:
        return crossovers(self.rows, self.converted, self.dense)

    @property
    def undecided(self) -> bool:
        """Whether a comparison had too few rounds for a verdict."""
        return any(found.clear is None for found in self.fastest) or not all(found.enough for found in self.crossovers)

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "rows": [row.described() for row in self.rows],
            "fastest": [found.described() for found in self.fastest],
            "crossovers": [found.described() for found in self.crossovers],
            "conversion": self.conversion,
            "texts": self.texts.described(sorted({s.takes for s in self.subjects if s.takes})) if self.texts else None,
            "costs": [cost.described() for cost in self.costs],
            "interrupted": self.interrupted,
        }


def bench_models(models: Sequence[str], options: BenchOptions, progress: Progress) -> BenchReport:
    """Measures models side by side.

    Raises:
        EffconvError: a model that cannot be found or loaded, options that make no sense. An interrupt raises nothing:
            the report has `interrupted`.
    """
    require_files(options.data)
    dtypes = options.dtypes()
    found = [opened(model, options) for model in models]
    texts, special = lengths_of_texts(found, options, progress) if options.data else (None, 0)
    lengths = options.token_lengths() or (
        lengths_for(texts, limits(found, options)) if texts else default_lengths(found)
    )
    subjects = chosen(found, max(lengths), options)
    made = [model for model in found if model.manifest is not None and options.conversion and not options.data]
    conversions = {model.name: conversion_planned(model, options) for model in made}
    if options.against is not None and not conversions:
        raise UsageError(
            "none of these models was converted by effconv",
            where=f"--against {options.against}",
            hint="leave out --against: it names the source of a converted model",
        )
    cases = [
        Case(length, batch, dtype, options.train, options.mixed)
        for dtype, batch, length in itertools.product(dtypes, options.batches(), lengths)
    ]
    settings = {
        "lengths": lengths, "batch": options.batches(), "dtype": dtypes,
        "run": "training step" if options.train else "forward", "mixed": options.mixed,
        "threads": options.thread_count(), "device": options.device, "rounds": options.rounds,
        "data": [Path(name).name for name in options.data], "price_per_hour": options.price_per_hour,
    }  # fmt: skip
    named = [subject.name for subject in subjects[: len(found)]]
    report = BenchReport(machine(), settings, subjects=subjects, texts=texts, special=special)
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
            loaded=lambda subject, answer: require_loaded(subject, answer) if subject.name in named else None,
        )
        for name, planned in conversions.items():
            progress(f"conversion of {name}", 0, 0)
            report.conversion[name] = conversion_cost(planned)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def default_lengths(models: Sequence[Opened]) -> list[int]:
    """Doubled from 512 to 4,096, as far as a converted model among them reaches (all of them, if none does)."""
    reaches = [model.subject.reach for model in models if model.subject and model.subject.reach]
    reach = max(reaches, default=USUAL_LENGTHS[-1])
    return [length for length in USUAL_LENGTHS if length <= reach] or [reach]


def limits(models: Sequence[Opened], options: BenchOptions) -> list[int | None]:
    """Tokens of a text that each model takes, the dense source among them."""
    found = [model.at(model.had).takes for model in models]
    sources = [model.had for model in models if model.manifest is not None and model.dense is not None]
    return found + (sources[:1] if options.source else [])


def chosen(models: Sequence[Opened], length: int, options: BenchOptions) -> list[Subject]:
    """The named models, the dense source of the first that has one, and peers of its size; each name once."""
    subjects = [model.at(length) for model in models]
    base = next((model for model in models if model.dense is not None), None)
    if options.source and base is not None and base.subject is not None:
        known = any(subject.dense for subject in subjects)
        if not known:  # nobody named it
            name = f"{named_source(base.manifest or {})} (source)"
            subjects.append(Opened(name, base.source, None, base.dense, base.had).at(length))
    shapes = options.shapes()
    if shapes and (base is None or base.dense is None):
        raise UsageError(
            "none of these models has a dense source, which sets the size of the --with models",
            where="--with",
            hint="add a converted BERT or RoBERTa, or a dense model",
        )
    if base is not None and base.dense is not None:
        subjects += [shape(kind, base.dense, length) for kind in shapes]
    names: dict[str, int] = {}
    unique = []
    for subject in subjects:
        count = names[subject.name] = names.get(subject.name, 0) + 1
        unique.append(subject if count == 1 else _renamed(subject, f"{subject.name} ({count})"))
    return unique


def require_loaded(subject: Subject, answer: Mapping[str, Any]) -> None:
    """Raises BadInputError where a model cannot be loaded at all, before others are measured."""
    if "failed" in answer:
        raise BadInputError(
            f"cannot load the model: {answer['failed']}",
            where=subject.name,
            hint="check it with effconv verify, or give a model that transformers knows",
        )


def conversion_planned(model: Opened, options: BenchOptions) -> tuple[Source, list[str], list[Path]] | EffconvError:
    """The source of a converted model, the words of its conversion and the source's weights; or why there is none.

    Raises:
        EffconvError: the source that the user named cannot be used.
    """
    try:
        source, command = conversion_of(model, options)
        return source, command, weights_of(source)
    except EffconvError as error:
        if options.against is not None:
            raise
        return error


def conversion_cost(planned: tuple[Source, list[str], list[Path]] | EffconvError) -> dict[str, Any]:
    """The cost of a conversion compared with `cp`, `sync` and `sha256sum` of the weights, or why it was not run."""
    try:
        if isinstance(planned, EffconvError):
            raise planned
        source, command, weights = planned
        assert source.folder is not None
        with tempfile.TemporaryDirectory(prefix="effconv-bench-") as name:
            cost = conversion.measure(source.folder, weights, command, CONVERSION_RUNS, Path(name))
    except EffconvError as error:
        return {"why": error.what + (f" ({error.hint})" if error.hint else "")}
    return {"command": " ".join(["effconv", command[0], source.name, *command[1:], "--no-verify"]), **cost.described()}


def _renamed(subject: Subject, name: str) -> Subject:
    from dataclasses import replace

    return replace(subject, name=name)
