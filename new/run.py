"""Makes a repo with random weights: options, tokenizer, plan, files, checks. All or nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..convert.families.activations import require_activation
from ..convert.families.grammar import shape_of
from ..convert.io.checkpoint import Checkpoint
from ..convert.io.dtypes import BY_NAME, Array
from ..convert.io.source import resolve
from ..convert.io.staging import check_apart, check_output, output_errors
from ..convert.io.tokenizer import SpecialTokens, special_tokens
from ..convert.ops import New
from ..convert.options import Progress, asked_by, flag_of
from ..convert.prepare import Prepared, plan_tensors
from ..convert.run import Result, absolute, make_repo
from ..convert.target import Context, Rule, Scratch, Target
from ..targets.registry import CREATABLE, TARGETS, target_named
from .config import Asked, family_named, head_for, preset_named, stock_config
from .families import STARTS, Start
from .options import NewOptions
from .tokenizer import FoundTokenizer, find_tokenizer


def new_repo(
    command: str,
    options: NewOptions,
    given: Mapping[str, Any],
    progress: Progress = lambda step, done, total: None,
) -> Result:
    """Makes a repo with random weights.

    Args:
        command: name of the target, as its command has it. given: the target's own options that were given.

    Returns:
        The result, as of a conversion. When this returns, the output folder is complete. If it raises, there is none.
    """
    with asked_by(f"new {command}", command, {"--max-len": "--length"}):
        return _made(command, options, given, progress)


def _made(command: str, options: NewOptions, given: Mapping[str, Any], progress: Progress) -> Result:
    begin = time.monotonic()
    progress("plan", 0, 0)
    asked, own, usual = ask(command, options, given)
    output = absolute(options.output or Path(_folder(asked)))
    with output_errors(output):
        check_output(output, overwrite=options.overwrite, of_models=True)
    with tempfile.TemporaryDirectory(prefix="effconv-") as temporary:
        with _set_named(options):
            ready = prepared(asked, own, usual, Path(temporary))
        with output_errors(output):
            check_apart(ready.source.folder, output)
        return make_repo(ready, output, progress, begin)


@contextmanager
def _set_named(options: NewOptions) -> Iterator[None]:
    """Lets an error about a field of config.json that was given with `--set` name that option."""
    try:
        yield
    except BadInputError as error:
        named = [name for name in options.further_fields() if re.search(rf"\b{name}\b", f"{error.what} {error.where}")]
        if named and error.where.startswith("config.json"):
            error.where = ", ".join(f"--set {name}" for name in named)
            if "config.json" in error.hint:
                error.hint = "give another value, or leave out --set"
        raise


def ask(command: str, options: NewOptions, given: Mapping[str, Any]) -> tuple[Asked, Any, dict[str, Any]]:
    """The model that is asked for, the target's options, and those that a new model of this preset has by default.

    Raises:
        EffconvError: an option is invalid, or nothing of the kind can be made.
    """
    name, preset = preset_named(command, options.like)
    kind = TARGETS[command].options
    length = options.length or preset.length
    variant = scratch_of(target_named(command, kind(**_variant({**preset.options, **given}))))
    usual = {**variant.defaults, **preset.options}
    own = kind(**{**usual, **given, "max_length": length})
    target = target_named(command, own)
    idle = sorted(flag_of(field) for field in dataclasses.fields(kind) if field.name in given.keys() & {*variant.idle})
    if idle:
        raise UsageError(
            f"{', '.join(idle)} says how a source is taken over, and a new model has none",
            where=f"effconv new {command}",
            hint="leave it out",
        )
    family = family_named(target, options.family or preset.family or scratch_of(target).family)
    causal = options.causal or (preset.causal and options.architecture is None)
    head = head_for(family, target, options, causal, preset.head)
    return Asked(target, name, preset, family, STARTS[family.name], length, head, causal, options), own, usual


def _variant(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which a command chooses between its targets: others may be invalid without the usual ones."""
    return {name: value for name, value in options.items() if name == "groups"}


def scratch_of(target: Target) -> Scratch:
    """How the target's new models begin.

    Raises:
        UsageError: it has none.
    """
    if target.scratch is None:
        raise UsageError(
            f"{target.asked_for} makes no model with random weights",
            where="effconv new",
            hint="use one of " + ", ".join(CREATABLE),
        )
    return target.scratch


def prepared(asked: Asked, own: Any, usual: Mapping[str, Any], folder: Path) -> Prepared:
    """The plan of a new model, whose source is a folder with a config and a tokenizer.

    Args:
        folder: an empty one, which must stay until the repo is written.
    """
    options, family, target = asked.options, asked.family, asked.target
    tokenizer = _tokenizer(asked)
    tokens, vocab = SpecialTokens(), asked.options.vocab or asked.preset.vocab or 0
    if tokenizer is not None:
        tokenizer.copy_to(folder)
        stated = json.dumps({"model_type": family.code.model_type, **tokenizer.config})
        (folder / "config.json").write_text(stated, encoding="utf-8")
        tokens = special_tokens(resolve(folder), family)
        vocab = _vocab(tokenizer, folder, options)
    if family.code.after_padding and tokenizer is not None and tokens.pad is None:
        raise UsageError(
            f"the tokenizer has no padding token, and positions of {family.name} begin behind its id",
            where="--tokenizer",
            hint="use --family bert, or a tokenizer with a padding token",
        )
    config = stock_config(asked, vocab, tokens)
    require_activation(config)
    written = {**config, **(tokenizer.config if tokenizer else {})}
    (folder / "config.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    source = replace(resolve(folder), name=_name(asked))
    config = dict(family.read_config(config))
    own = target.resolve_options(own, config)
    checkpoint = Checkpoint((), source)
    settings = options.settings
    dtype = BY_NAME[settings.dtype] if settings.dtype else "F32"
    target = replace(target, rules=lambda context: starting_rules(target, asked.start, context, dtype))
    context, plan = plan_tensors(checkpoint, target, own, family, asked.head, config, tokens, settings, scratch=True)
    random = {
        "command": _command(asked),
        "like": asked.name,
        "sizes_from": asked.preset.source,
        "options": dict(usual),
        **({"tokenizer": tokenizer.described()} if tokenizer else {}),
    }
    return Prepared(source, target, settings, checkpoint, context, plan, random)


@dataclass(frozen=True, slots=True)
class Words(New):
    """Word embeddings whose row of the padding token is zero, as in the stock models: it is not trained."""

    padding: int = 0

    def apply(self, *inputs: Array) -> Array:
        table = New.apply(self, *inputs)
        table.data[self.padding] = 0
        return table


def starting_rules(target: Target, start: Start, context: Context, dtype: str) -> Sequence[Rule]:
    """The rules of a new model: the target's, and the family's where a tensor is drawn in another way than most."""
    rules = {rule.dst: rule for rule in scratch_of(target).rules(context)}
    config = context.config
    usual = float(config.get("initializer_range", config.get("init_std", 0.02)))
    padding = config.get("pad_token_id") if start.padding else None
    for weight in (*context.emits.weights(context.emitted, context.emitted_head), *target.weights(context)):
        if weight.name in rules or weight.init != "normal":
            continue
        std, size = start.std(weight.name, config), shape_of(weight, context.emitted)
        if weight.name == context.emits.words and isinstance(padding, int) and 0 <= padding < size[0]:
            op: New = Words(weight.name, size, "normal", usual if std is None else std, context.seed, dtype, padding)
        elif std is not None:
            op = New(weight.name, size, "normal", std, context.seed, dtype)
        else:
            continue
        rules[weight.name] = Rule((), weight.name, op, f"normal, of standard deviation {op.std:.3g}")
    return list(rules.values())


def _tokenizer(asked: Asked) -> FoundTokenizer | None:
    options = asked.options
    if options.tokenizer is None:
        if options.vocab or asked.preset.vocab:
            return None
        published = asked.preset.tokenizer
        raise UsageError(
            "a new model needs a tokenizer",
            where="--tokenizer",
            hint="give a folder or a Hub id"
            + (f", such as {published}, with which it was published" if published else " of your choice")
            + ", or pass --vocab N for a model without a tokenizer",
        )
    return find_tokenizer(
        options.tokenizer,
        asked.family,
        revision=options.revision,
        token=options.token,
        offline=options.offline,
    )


def _vocab(tokenizer: FoundTokenizer, folder: Path, options: NewOptions) -> int:
    """Rows of the word embeddings."""
    size = tokenizer.size(folder, trust_remote_code=options.trust_remote_code)
    if options.vocab is not None and options.vocab < size:
        raise UsageError(
            f"the tokenizer has {size:,} tokens, and the vocabulary shall have {options.vocab:,}",
            where="--vocab",
            hint=f"give at least {size}, or leave out --vocab",
        )
    return options.vocab or size


def _name(asked: Asked) -> str:
    """What the model is called where a conversion has the name of its source."""
    family = asked.family.name
    return f"{family}-{asked.name}"


def _folder(asked: Asked) -> str:
    target, name = asked.target.asked_for.partition(" ")[0], _name(asked)
    target = asked.target.name if target == "new" else target
    return "-".join([*([] if name.startswith(f"{target}-") else [target]), name, str(asked.length)])


def _command(asked: Asked) -> list[str]:
    """The options of the command, beside the target's own, that make this model again; the tokenizer comes apart."""
    options, left_out = asked.options, {"output", "token", "offline", "overwrite", "verify", "keep_failed", "tokenizer"}
    parts: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in left_out or value == field.default:
            continue
        for item in value if isinstance(value, tuple) else [value]:
            parts += [flag_of(field)] if item is True else [flag_of(field), str(item)]
    return parts
