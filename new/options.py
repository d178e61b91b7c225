"""Options of `effconv new`, beside the target's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..convert.errors import UsageError
from ..convert.options import DTypeName, Settings, option

HUB = "Hub"
SIZES = "Sizes (each overrides --like)"
USUAL = {  # sizes of BERT base, as examples in errors
    "length": 512, "layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "embedding": 128, "vocab": 30522,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewOptions:
    """What a new model is, beside its attention."""

    like: str | None = option(
        None,
        "Sizes, or a published model: NAMES. [default: FIRST]",
        short="--preset",
    )
    family: str | None = option(
        None, "Family of the model, such as roberta: all of it but the attention. [default: bert]"
    )
    length: int | None = option(None, "Maximum input length in tokens. [default: the preset's, 512 for most]")
    tokenizer: str | None = option(
        None, "Tokenizer: a folder or a Hub id. Needed, unless --vocab makes a model without a tokenizer."
    )
    causal: bool = option(False, "Make a decoder, in which no token sees a later one, with a language-model head.")
    architecture: str | None = option(
        None, "Head of the new model, such as ForPreTraining. [default: ForMaskedLM where the family has it]"
    )
    output: Path | None = option(
        None, "Output folder. [default: TARGET-FAMILY-LIKE-LENGTH in the current folder]", short="-o"
    )
    seed: int = option(123, "Random seed. It alone decides every weight.")
    layers: int | None = option(None, "Number of layers.", panel=SIZES)
    hidden: int | None = option(None, "Hidden size. The feed-forward size is scaled with it.", panel=SIZES)
    heads: int | None = option(None, "Attention heads per layer.", panel=SIZES)
    intermediate: int | None = option(None, "Feed-forward size.", panel=SIZES)
    embedding: int | None = option(None, "Size of the embeddings, in families where it may differ.", panel=SIZES)
    vocab: int | None = option(
        None, "Size of the vocabulary, at least the tokenizer's. [default: the tokenizer's]", panel=SIZES
    )
    set: tuple[str, ...] = option(
        (),
        'Any other field of config.json, such as hidden_dropout_prob=0 or hidden_act="relu". Can be repeated.',
        panel=SIZES,
        metavar="FIELD=VALUE",
    )
    dtype: DTypeName | None = option(None, "Type of the weights. [default: float32]")
    max_shard_size: str = option("5GB", "Maximum size of one weights file, such as 500MB.")
    overwrite: bool = option(False, "Replace a non-empty output folder, after the new one is complete.")
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it is saved.")
    keep_failed: bool = option(False, "Keep a repo that fails its checks as OUTPUT.failed, for inspection.")
    revision: str | None = option(None, "Branch, tag or commit of the tokenizer on the Hub. [default: main]", panel=HUB)
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel=HUB)
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel=HUB)
    trust_remote_code: bool = option(
        False,
        "Allow the Python code of the tokenizer to run in the checks.",
        panel="Dangerous: only for tokenizers you trust",
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every invalid size."""
        given: object = self.set  # Python users may give one field, or a mapping
        if isinstance(given, dict):
            given = tuple(f"{name}={json.dumps(value)}" for name, value in given.items())
        object.__setattr__(self, "set", (given,) if isinstance(given, str) else tuple(given))  # type: ignore[arg-type]
        for name, usual in USUAL.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(
                    f"--{name} must be a positive integer, got {value!r}",
                    where=f"--{name}",
                    hint=f"give a number such as {usual}",
                )

    @property
    def settings(self) -> Settings:
        """The options that a conversion has too."""
        shared = {field.name for field in fields(Settings)} & {field.name for field in fields(self)}
        return Settings(**{name: getattr(self, name) for name in shared})

    def further_fields(self) -> dict[str, Any]:
        """`--set` as fields of the config: JSON values, and words as they stand."""
        found: dict[str, Any] = {}
        for item in self.set:
            name, equals, text = item.partition("=")
            if not equals or not name.strip():
                raise UsageError(
                    f"{item!r} is not a field and a value",
                    where="--set",
                    hint="give a field and a value, such as initializer_range=0.02",
                )
            try:
                found[name.strip()] = json.loads(text)
            except ValueError:
                found[name.strip()] = text
        return found
