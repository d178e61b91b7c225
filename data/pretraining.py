"""Texts as examples of pretraining: masked and causal language modelling, with sentence pairs where they are asked for.

Contract: examples come as a stream, and memory does not grow with the texts. The same texts, tokenizer, options and
epoch give the same examples. Every draw is from Python's `random.Random`, one for each document of pairs and one for
each other stream, seeded with the words in `_random`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Literal

import numpy as np

from ..convert.errors import BadInputError
from ..convert.text import check_tokens
from .documents import Tokens, encoded
from .layouts import BARE, Example, pair_layout, require_mask_token, separator_id, single_layout
from .masking import mask_tokens
from .packing import packed
from .pairs import Document, documents_of, nsp_pairs, sop_pairs, with_pool
from .pretraining_options import PretrainingOptions
from .sentences import Stream, read_sentences

AT_ONCE = 1_000  # sentences that are tokenized together
AT_ONCE_CHARACTERS = 1 << 18
LOOKED_AT = 100_000  # tokens of which the share of unknown ones is taken
HASHED = 8  # sentences whose hash says whether a document is held out

Part = Literal["train", "heldout"]


def pretraining_examples(
    names: Sequence[str],
    tokenizer: Any,
    options: PretrainingOptions,
    *,
    part: Part = "train",
    epoch: int = 0,
    token: str | None = None,
) -> Iterator[Example]:
    """The examples of files and datasets of text, as dicts of lists.

    Args:
        names: text files, files with columns, or datasets of the Hub.
        part: `heldout` for the documents that `options.heldout_share` keeps apart, `train` for the others.
        epoch: other lengths, pairs, masks and order for each.

    Yields:
        `input_ids`, `token_type_ids` and `special_tokens_mask`, a list each; `word_starts` with `whole_words` and
        dynamic masks; `labels` with static masks; `next_sentence_label` for pairs.

    Raises:
        BadInputError: the texts or the tokenizer cannot be used.
    """
    for example in arrays(names, tokenizer, options, part=part, epoch=epoch, token=token):
        yield {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in example.items()}


def arrays(
    names: Sequence[str],
    tokenizer: Any,
    options: PretrainingOptions,
    *,
    part: Part = "train",
    epoch: int = 0,
    token: str | None = None,
    read: Callable[[str], None] | None = None,
    where: str = "--data",
) -> Iterator[Example]:
    """As `pretraining_examples`, as dicts of arrays. `read` is called with each line when it is read."""
    require_mask_token(tokenizer, options.objective)
    place = where if part == "train" else f"{where}, the documents held out"
    for copy in range(epoch * options.copies, (epoch + 1) * options.copies):
        texts = read_sentences(names, options, token=token, where=where, read=read)
        stream = tokenized(chosen(texts, options.heldout_share, part), tokenizer, options, place)
        made = _pairs if options.pairs else _packed
        examples = made(stream, tokenizer, options, copy, place)
        if options.masks == "static":
            examples = _masked(examples, tokenizer, options, copy)
        yield from shuffled(examples, options.shuffle, _random(options.seed, copy, "order"))


def chosen(stream: Stream, share: float, part: Part) -> Stream:
    """The documents of a part. The hash of its first sentences says which part a document belongs to."""
    if not share:
        yield from stream if part == "train" else ()
        return
    while beginning := list(
        itertools.takewhile(lambda sentence: sentence is not None, itertools.islice(stream, HASHED))
    ):
        digest = hashlib.sha256("\n".join(map(str, beginning)).encode("utf-8", "surrogatepass")).digest()
        apart = int.from_bytes(digest[:8], "big") < share * 2**64
        whole = len(beginning) < HASHED
        rest = () if whole else itertools.takewhile(lambda sentence: sentence is not None, stream)
        if apart == (part == "heldout"):
            yield from beginning
            yield from rest
            yield None
        else:
            for _ in rest:
                pass


def tokenized(
    stream: Iterable[str | None], tokenizer: Any, options: PretrainingOptions, where: str
) -> Iterator[Tokens | None]:
    """The tokens of each sentence, and None after each document.

    Raises:
        BadInputError: most of the text is unknown to the tokenizer.
    """
    words = options.whole_words and options.objective != "clm"
    looked: list[int] | None = []
    for batch in _batches(stream):
        found = iter(encoded([text for text in batch if text is not None], tokenizer, words=words))
        for text in batch:
            tokens = None if text is None else next(found)
            if tokens is not None and looked is not None:
                looked += tokens[:, 0].tolist()
            yield tokens
        if looked is not None and len(looked) >= LOOKED_AT:
            check_tokens(looked, tokenizer, len(tokenizer), where)
            looked = None
    if looked:
        check_tokens(looked, tokenizer, len(tokenizer), where)


def shuffled(examples: Iterable[Any], size: int, random: Random) -> Iterator[Any]:
    """The examples in another order. `size` of them are held: each new one takes the place of a random one."""
    held: list[Any] = []
    for example in examples:
        if len(held) < size:
            held.append(example)
        elif size:
            place = random.randrange(size)
            held[place], example = example, held[place]
            yield example
        else:
            yield example
    random.shuffle(held)
    yield from held


def _packed(
    stream: Iterable[Tokens | None], tokenizer: Any, options: PretrainingOptions, copy: int, where: str
) -> Iterator[Example]:
    layout = BARE if options.objective == "clm" else single_layout(tokenizer)
    size = options.length - layout.count
    if options.overlap >= size:
        raise BadInputError(
            f"an overlap of {options.overlap} tokens leaves nothing new in an example of {size}",
            where="--overlap",
            hint="give a smaller one, such as a quarter of --length",
        )
    texts = packed(
        stream,
        size,
        across=options.across_documents,
        separator=separator_id(tokenizer, options.separator_token) if options.across_documents else None,
        overlap=options.overlap,
        short_share=options.short,
        shortest=options.shortest,
        random=_random(options.seed, copy, "lengths"),
    )
    words = _with_words(options)
    for text in texts:
        yield layout.example(text, words=words)


def _pairs(
    stream: Iterable[Tokens | None], tokenizer: Any, options: PretrainingOptions, copy: int, where: str
) -> Iterator[Example]:
    layout = pair_layout(tokenizer)
    size = options.length - layout.count
    words, short = _with_words(options), (options.short, options.shortest)
    documents = documents_of(stream)
    made = seen = False

    def counted() -> Iterator[Document]:
        nonlocal seen
        for document in documents:
            seen = True
            yield document

    if options.objective == "mlm+nsp":
        pairs = _of_pools(counted(), size, options, copy, where)
    else:
        pairs = itertools.chain.from_iterable(
            sop_pairs(one, size, *short, _random(options.seed, copy, one.number)) for one in counted()
        )
    for a, b, label in pairs:
        made = True
        yield layout.example(a, b, words=words) | {"next_sentence_label": label}
    if seen and not made:
        raise BadInputError(
            "no document has two sentences, so there is no pair",
            where=where,
            hint="find sentences in lines with --sentences split, or choose another end of documents with --documents",
        )


def _of_pools(
    documents: Iterable[Document], size: int, options: PretrainingOptions, copy: int, where: str
) -> Iterator[tuple[Tokens, Tokens, int]]:
    for document, pool in with_pool(documents, options.buffer):
        if len(pool) < 2:
            raise BadInputError(
                "the text is a single document, so there is no other one to take a random text from",
                where=where,
                hint="mlm+nsp needs two documents. Say what ends a document with --documents, or use mlm+sop",
            )
        random = _random(options.seed, copy, document.number)
        yield from nsp_pairs(document, pool, size, options.short, options.shortest, random)


def _masked(examples: Iterable[Example], tokenizer: Any, options: PretrainingOptions, copy: int) -> Iterator[Example]:
    random = np.random.default_rng([options.seed, copy])
    vocabulary = len(tokenizer)
    for example in examples:
        begins = example.pop("word_starts", None)
        masked, labels = mask_tokens(
            example["input_ids"][None],
            example["special_tokens_mask"],
            None if begins is None else begins[None],
            share=options.mask_share,
            mask_id=tokenizer.mask_token_id,
            vocabulary=vocabulary,
            random=random,
            whole_words=options.whole_words,
            most=options.max_predictions,
        )
        yield example | {"input_ids": masked[0], "labels": labels[0]}


def _with_words(options: PretrainingOptions) -> bool:
    return options.whole_words and options.objective != "clm"


def _batches(stream: Iterable[str | None]) -> Iterator[list[str | None]]:
    batch: list[str | None] = []
    characters = 0
    for text in stream:
        batch.append(text)
        characters += len(text or "")
        if len(batch) >= AT_ONCE or characters >= AT_ONCE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _random(seed: int, copy: int, what: int | str) -> Random:
    """Of a document (by its number) or of what else is drawn, the same on every machine."""
    return Random(f"effconv {seed} {copy} {what}")
