"""Lengths of a user's texts, in tokens of the model to measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..convert.io.tokenizer import tokenizer_of
from ..convert.options import Progress
from ..data.texts import count_tokens, read_texts
from .choices import Lengths
from .options import BenchOptions
from .sources import Opened


def lengths_of_texts(models: Sequence[Opened], options: BenchOptions, progress: Progress) -> tuple[Lengths, int]:
    """Lengths of the texts of `--data`, by the tokenizer of the first model, and the tokens that it adds to a text.

    Raises:
        EffconvError: a text cannot be read, or there is no tokenizer.
    """
    progress("texts", 0, 0)
    model = models[0]
    texts = read_texts(options.data, column=options.text_column, lines=options.lines)
    tokenizer = load_tokenizer(model, options.trust_remote_code)
    words = int((model.dense or model.source.config)["vocab_size"])
    counts = count_tokens(texts, tokenizer, words, ", ".join(options.data))
    return Lengths(counts), int(tokenizer.num_special_tokens_to_add())


def load_tokenizer(model: Opened, trust_remote_code: bool) -> Any:
    """The model's tokenizer.

    Raises:
        BadInputError: it has none.
        UsageError: it has code of its own that may not run.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    found = tokenizer_of(model.source)
    if not found.exists:
        raise BadInputError(
            "the model has no tokenizer",
            where=model.name,
            hint="add the tokenizer's files: text lengths are counted in its tokens",
        )
    if found.references and not trust_remote_code:
        raise UsageError(
            f"the tokenizer of {model.name} has Python code of its own",
            where=model.name,
            hint="if you trust the code, pass --trust-remote-code to run it",
        )
    for name in found.files:
        model.source.path(name)
    folder = model.source.path("config.json").parent
    trusted = trust_remote_code or model.manifest is not None  # effconv's own code
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
