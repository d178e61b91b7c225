"""The examples of a training: of texts, made while training, or of folders that `effconv prepare` wrote."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..convert.io.tensorfile import file_sha256
from ..data.pretraining import arrays
from .options import PretrainOptions

Example = Mapping[str, Any]


@dataclass
class Examples:
    """The examples of a training.

    Attributes:
        train: those of an epoch, the same for the same epoch. heldout: those that are never trained on.
        record: for the manifest: names, digests, counts. findings: what is worth telling.
    """

    train: Callable[[int], Iterator[Example]]
    heldout: list[Example]
    record: dict[str, Any]
    findings: list[str] = field(default_factory=list)

    def count(self) -> int:
        """Examples of the first epoch, counted by making them."""
        return sum(1 for _ in self.train(0))


def read_examples(options: PretrainOptions, objective: Any, tokenizer: Any, length: int) -> Examples:
    """Opens the data and takes the held-out examples from it.

    Args:
        length: tokens of an example, at most.

    Raises:
        BadInputError: no examples, a prepared folder that does not fit, or text that the tokenizer does not know.
    """
    from ..data.prepared import is_prepared

    prepared = [name for name in options.data if is_prepared(name)]
    if prepared and len(prepared) < len(options.data):
        raise UsageError(
            "prepared folders and texts cannot be mixed", where="--data", hint="prepare the texts too: effconv prepare"
        )
    text = replace(options.text_options(length), objective=objective)
    made = _stored(options, objective, tokenizer, length) if prepared else _made(options, text, tokenizer)
    if not made.heldout:
        raise BadInputError(
            "there is no held-out example to evaluate on",
            where="--heldout, --heldout-share",
            hint=("prepare the text again" if prepared else "give more text")
            + " with a larger --heldout-share, or give other text with --heldout",
        )
    if next(made.train(0), None) is None:
        raise BadInputError("there is no example to train on", where="--data", hint="give more text")
    return made


def _made(options: PretrainOptions, text: Any, tokenizer: Any) -> Examples:
    def train(epoch: int) -> Iterator[Example]:
        return arrays(options.data, tokenizer, text, epoch=epoch, token=options.token)

    if options.heldout:
        apart = _apart(options, text, tokenizer, text.length)
    else:
        apart = arrays(options.data, tokenizer, replace(text, shuffle=0), part="heldout", token=options.token)
    heldout = list(itertools.islice(apart, options.heldout_examples))
    return Examples(train, heldout, _record(options, heldout, _digest(options.data)))


def _stored(options: PretrainOptions, objective: Any, tokenizer: Any, length: int) -> Examples:
    from ..data.prepared import prepared_examples, read_record

    folders = [Path(name) for name in options.data]
    for folder in folders:
        _require_fitting(folder, tokenizer, objective, length)

    def train(epoch: int) -> Iterator[Example]:
        return itertools.chain.from_iterable(
            prepared_examples(folder, shuffle=options.shuffle, seed=options.seed, epoch=epoch) for folder in folders
        )

    if options.heldout:
        text = replace(options.text_options(length), objective=objective)
        apart = _apart(options, text, tokenizer, length)
    else:
        apart = itertools.chain.from_iterable(prepared_examples(folder, part="heldout") for folder in folders)
    heldout = list(itertools.islice(apart, options.heldout_examples))
    digest = hashlib.sha256("".join(file_sha256(folder / "effconv-data.json") for folder in folders).encode())
    record = _record(options, heldout, digest.hexdigest())
    return Examples(train, heldout, {**record, "prepared": [read_record(folder) for folder in folders]})


def _apart(options: PretrainOptions, text: Any, tokenizer: Any, length: int) -> Iterator[Example]:
    """The examples of `--heldout`, all of whose documents are held out."""
    from ..data.prepared import is_prepared, prepared_examples

    same = {Path(name).absolute() for name in options.heldout} & {Path(name).absolute() for name in options.data}
    if same:
        raise UsageError(
            f"{sorted(same)[0]} is given to train on and to evaluate on",
            where="--heldout",
            hint="give other text to evaluate on",
        )
    texts = [name for name in options.heldout if not is_prepared(name)]
    for name in options.heldout:
        if name not in texts:
            _require_fitting(Path(name), tokenizer, text.objective, length)
            held = list(prepared_examples(Path(name), part="heldout"))
            yield from held or prepared_examples(Path(name))
    if texts:
        asked = replace(text, shuffle=0)
        yield from arrays(texts, tokenizer, asked, token=options.token, where="--heldout")


def _require_fitting(folder: Path, tokenizer: Any, objective: str, length: int) -> None:
    from ..data.layouts import tokenizer_digest
    from ..data.prepared import require_fitting

    require_fitting(folder, tokenizer_digest(tokenizer), objective=objective, length=length)


def _record(options: PretrainOptions, heldout: Sequence[Example], digest: str | None) -> dict[str, Any]:
    def named(names: Sequence[str]) -> list[str]:
        return [Path(name).name if Path(name).exists() else name for name in names]

    return {
        "data": named(options.data),
        **({"sha256": digest} if digest else {}),
        "heldout": named(options.heldout) or "documents of the data",
        "heldout_examples": len(heldout),
        "heldout_tokens": sum(len(example["input_ids"]) for example in heldout),
        "heldout_sha256": hashlib.sha256(
            b"".join(str(list(map(int, example["input_ids"]))).encode() for example in heldout)
        ).hexdigest(),
    }


def _digest(names: Sequence[str]) -> str | None:
    """One digest of files; None where a dataset is among them."""
    if not all(Path(name).is_file() for name in names):
        return None
    return hashlib.sha256("".join(file_sha256(Path(name)) for name in names).encode()).hexdigest()
