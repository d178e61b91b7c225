"""Checks before a training run, from manifest, config.json and file names, before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..convert.errors import UnsupportedError, UsageError
from ..convert.families.registry import FAMILIES
from ..convert.io.tokenizer import require_tokenizer
from ..convert.options import flag_of, require_sound
from ..convert.repo.manifest import config_of
from ..convert.target import Target
from ..data.files import has_columns, require_files
from .logits import kind_of_logits
from .options import AdaptOptions
from .recipes import Phase


def require_data(options: AdaptOptions) -> None:
    """Raises UsageError or BadInputError if there is no text, or a file cannot be read."""
    if not options.data:
        raise UsageError("no text to train on", where="--data", hint="give text, JSONL or parquet files, or a dataset")
    require_files(options.data, "--data")
    require_files(options.heldout, "--heldout")
    names = (*options.data, *options.heldout)
    if options.text_column != "text" and not any(has_columns(name) for name in names):
        raise UsageError(
            f"--text-column {options.text_column} has no effect: text files have no columns",
            where="--text-column",
            hint="leave out --text-column, or give JSONL, CSV or parquet files, or a dataset",
        )


def require_objectives(
    folder: Path,
    manifest: Mapping[str, Any],
    target: Target,
    phases: Sequence[Phase],
    train: str,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Raises UnsupportedError for an objective that the repo cannot have, BadInputError where it has no tokenizer.

    UsageError where global tokens are to be trained that the repo does not use, or its tokenizer has code of its own
    that may not run.
    """
    require_tokenizer(folder, trust_remote_code=trust_remote_code)
    objectives = {objective for phase in phases for objective in phase.objectives}
    config = config_of(folder)
    if train in ("globals", "new") and config.get("num_global_tokens") == 0:
        raise UsageError(
            "nothing to train: the repo uses no global tokens (num_global_tokens is 0)",
            where=f"--train {train}",
            hint="pass --train attention or --train all",
        )
    if "mlm" in objectives and "AutoModelForMaskedLM" not in (manifest["auto"], *manifest["heads"]):
        raise UnsupportedError(
            "the repo has no masked-LM head",
            where="--objective mlm",
            hint="convert with --architecture ForMaskedLM, or pass --objective hidden with the source as --teacher",
        )
    if "mlm" in objectives and config.get("is_decoder"):
        raise UnsupportedError(
            "mlm needs an encoder, and the repo is a decoder (causal attention)",
            where="--objective mlm",
            hint="pass --objective hidden or logits, with the source as --teacher",
        )
    if "logits" in objectives and "mlm" not in objectives:
        if manifest["auto"] == "AutoModel":
            raise UnsupportedError(
                "the repo is a base model: it has no logits", where="--objective logits", hint="pass --objective hidden"
            )
        if not kind_of_logits(manifest["auto"], config, manifest["family"]):
            raise UnsupportedError(
                f"{manifest['architecture']} has no logits that can be compared with the source's",
                where="--objective logits",
                hint="pass --objective hidden",
            )
    if "attention" not in objectives:
        return
    if config.get("num_global_tokens"):
        raise UnsupportedError(
            "the repo has global tokens, and the objective attention has no teacher outputs for them",
            where="--objective attention",
            hint="pass --objective hidden, which compares only the tokens of the text",
        )
    if manifest["family"] not in FAMILIES or target.emits is not None:
        raise UnsupportedError(
            f"a {manifest['target']} repo has no attention to compare with the source's",
            where="--objective attention",
            hint="pass --objective hidden",
        )


def require_effect(options: AdaptOptions, phases: Sequence[Phase]) -> None:
    """Raises UsageError for options without effect in these phases."""
    objectives = {objective for phase in phases for objective in phase.objectives}
    usual = {field.name: field.default for field in fields(options)}
    faults = [
        f"{flag_of(field)} applies only with {needs}"
        for field in fields(options)
        for needs, acts in (
            ("--objective mlm", field.name not in ("mask_share", "whole_words") or "mlm" in objectives),
            (
                "--objective contrastive or --whiten",
                field.name != "piece_tokens" or "contrastive" in objectives or options.whiten,
            ),
            ("--budget", field.name != "budget_clock" or options.budget is not None),
            (
                "objectives that compare with the source (all but mlm)",
                field.name != "teacher" or any(phase.needs_teacher for phase in phases),
            ),
        )
        if not acts and getattr(options, field.name) != usual[field.name]
    ]
    require_sound("adapt", faults)
