"""`ChunkEncoder`: several vectors a text from one pass of a sentence-transformers model (late chunking).

Everything behind the encoder (pooling, dense layers, normalisation) is the repo's own modules of sentence-transformers,
run on the states of each chunk in place of those of the whole text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError, UnsupportedError, UsageError, memory_ran_out
from ..convert.repo.manifest import NAME, check_hashes, read_manifest
from ..convert.repo.own_modules import PIECES
from ..convert.repo.sentence import modules_of
from ..convert.text import counted, special_ends
from .chunks import Bounds, Pass, cut, passes
from .device import require_device
from .loadable import require_loadable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

T = TypeVar("T")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # as SentenceTransformer.encode_document looks for them
OF_ONE_TOKEN = ("cls", "lasttoken")  # pooling modes that take a special token's state


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of a text.

    Attributes:
        start, end: characters in the text, None where the tokenizer cannot tell. tokens: without special ones.
    """

    start: int | None
    end: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A text as tokens.

    Attributes:
        ids: of the text. prompt: of what is put before it. offsets: characters of each token, if known. chunks: as cut.
    """

    ids: list[int]
    prompt: list[int]
    offsets: list[Bounds] | None
    chunks: list[Bounds] = field(default_factory=list)


class ChunkEncoder:
    """Embeds texts chunk by chunk: each vector is pooled from states that saw the whole text.

    Args:
        model: folder of a repo that effconv made (compared with its manifest before its code runs), any other folder or
            Hub id that sentence-transformers loads, or a loaded SentenceTransformer.
        trust_remote_code: let Python code run that came with another model than effconv's, or with its source.
        device: where it runs, as SentenceTransformer takes it.
        **others: further arguments of SentenceTransformer.

    Attributes:
        model: the SentenceTransformer.

    Raises:
        EffconvError: sentence-transformers is not installed, or the model is not made of an encoder and pooling.
    """

    encoders: tuple[str, ...] = ("Transformer",)  # the first module of a model

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        if isinstance(model, (str, os.PathLike)):
            self.model = load_model(model, trust_remote_code, device=device, **others)
        else:
            self.model = model
        kinds = [type(module).__name__ for module in self.model]
        if PIECES in kinds and PIECES not in self.encoders:
            raise UnsupportedError(
                "the model embeds documents by pieces, and its queries are whitened",
                where="modules.json",
                hint="use effconv.embed.PieceEncoder, or the model from before effconv pieces",
            )
        if len(kinds) < 2 or kinds[0] not in self.encoders or kinds[1] != "Pooling":
            raise UnsupportedError(
                f"the model is made of {', '.join(kinds)}; an encoder (Transformer) and Pooling must come first",
                where="modules.json",
                hint="use a SentenceTransformer model with one encoder",
            )
        self.tokenizer: Any = self.model.tokenizer
        self._prefix, self._suffix = special_ends(self.tokenizer)
        modes = _modes(self.model[1])
        self._own_ends = any(mode in OF_ONE_TOKEN for mode in modes)
        if self._own_ends and len(modes) > 1:
            raise UnsupportedError(
                f"the pooling joins {', '.join(modes)}",
                where="1_Pooling/config.json",
                hint="chunks need a model with one pooling mode",
            )

    @property
    def max_seq_length(self) -> int:
        """Tokens that the model takes, special ones included."""
        return int(self.model.max_seq_length or self.tokenizer.model_max_length)

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        chunk_tokens: int | None = 512,
        batch_size: int = 8,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embeds texts, one vector a chunk.

        A text is cut into the fewest chunks of at most `chunk_tokens` tokens, all nearly equally long (`chunks` says
        where). A text that is longer than the model is read in windows that overlap by half; nothing is cut off. A text
        of one chunk gets the vector that `SentenceTransformer.encode_document` gives.

        Args:
            sentences: a text, or several.
            chunk_tokens: tokens of a chunk, special tokens not counted. None: one chunk a text.
            batch_size: runs of the model at once.
            prompt: put before every text, as SentenceTransformer does. By default the model's prompt for documents.
            prompt_name: one of the model's prompts, in its place.
            normalize_embeddings: vectors of length 1, whether or not the model normalises.
            convert_to_tensor: tensors in place of arrays.

        Returns:
            One array (chunks, width) float32 a text, in a list; of a single text, the array.

        Raises:
            UsageError: chunks of this size do not fit into the model.
        """
        if isinstance(sentences, str):
            return self.encode(
                [sentences],
                chunk_tokens=chunk_tokens,
                batch_size=batch_size,
                prompt=prompt,
                prompt_name=prompt_name,
                normalize_embeddings=normalize_embeddings,
                convert_to_tensor=convert_to_tensor,
            )[0]
        lead = self._prompt(prompt, prompt_name)
        texts = [self._cut(self._read(text, lead), chunk_tokens) for text in sentences]
        vectors = self._in_batches(texts, batch_size, self._embed)
        if normalize_embeddings:
            vectors = [F.normalize(rows, dim=-1) for rows in vectors]
        return vectors if convert_to_tensor else [np.asarray(rows.float().cpu()) for rows in vectors]

    encode_document = encode

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`SentenceTransformer.encode_query`: one vector a query, to compare with the vectors of chunks."""
        return self.model.encode_query(sentences, **options)  # type: ignore[arg-type]

    def chunks(self, sentences: str | Sequence[str], chunk_tokens: int | None = 512) -> list[Any]:
        """Where `encode` cuts: a list of `Chunk` a text; of a single text, its list."""
        if isinstance(sentences, str):
            return self.chunks([sentences], chunk_tokens)[0]  # type: ignore[no-any-return]
        texts = [self._cut(self._read(text, self._prompt(None, None)), chunk_tokens) for text in sentences]
        return [[_chunk(text, *bounds) for bounds in text.chunks] for text in texts]

    def whole(self, sentences: Sequence[str]) -> list[Chunk]:
        """Each text as one chunk, whatever the model takes."""
        texts = [self._read(text, self._prompt(None, None)) for text in sentences]
        return [_chunk(text, 0, len(text.ids)) for text in texts]

    @torch.no_grad()
    def _in_batches(self, texts: list[Text], size: int, embed: Callable[[list[Text], int], list[T]]) -> list[T]:
        """What `embed` gives for each text: texts of like lengths together, in the order in which they were given."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        found: dict[int, T] = {}
        self.model.eval()
        for begin in range(0, len(order), size):
            several = order[begin : begin + size]
            found |= zip(several, embed([texts[i] for i in several], size), strict=True)
        return [found[i] for i in range(len(texts))]

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """The prompt, as SentenceTransformer.encode_document chooses it."""
        prompts = self.model.prompts or {}
        if prompt is not None:
            return prompt
        if name is not None and name not in prompts:
            raise UsageError(
                f"the model has no prompt {name!r}",
                where="prompt_name",
                hint=f"its prompts: {', '.join(prompts) or 'none'}",
            )
        name = name or next((one for one in DOCUMENT_PROMPTS if one in prompts), self.model.default_prompt_name)
        return str(prompts.get(name or "") or "")

    def _read(self, text: str, prompt: str) -> Text:
        """A text's tokens. Like sentence-transformers, without white space around it."""
        whole = (prompt + text).strip()
        lead = len(prompt) - (len(prompt + text) - len((prompt + text).lstrip()))  # characters before the text in it
        if getattr(self.model[0], "do_lower_case", False):
            whole = whole.lower()
        found = self.tokenizer(
            whole,
            add_special_tokens=False,
            truncation=False,
            verbose=False,
            return_offsets_mapping=bool(self.tokenizer.is_fast),
        )
        ids, offsets = list(found["input_ids"]), found.get("offset_mapping")
        first = 0
        if prompt.strip():
            ends = prompt.strip()
            if offsets is None:
                first = len(self.tokenizer(ends, add_special_tokens=False, verbose=False)["input_ids"])
            else:
                first = sum(end <= len(ends) for _, end in offsets)
        if offsets is not None:
            offsets = [(max(begin - lead, 0), end - lead) for begin, end in offsets[first:]]
        return Text(ids[first:], ids[:first], offsets)

    def _cut(self, text: Text, size: int | None) -> Text:
        """The text with its chunks."""
        room = self.max_seq_length - len(self._prefix) - len(self._suffix) - len(text.prompt)
        if size is not None and not 1 <= size <= (room if self._own_ends else size):
            raise UsageError(
                f"chunks of {size} tokens do not fit into the {self.max_seq_length} tokens that the model takes with "
                f"special tokens around each chunk"
                if size > 0
                else f"a chunk has at least 1 token, got {size}",
                where="chunk_tokens",
                hint=f"give 1 to {room}",
            )
        if size is None and self._own_ends:
            size = room  # a longer text has more chunks
        return replace(text, chunks=cut(len(text.ids), size or max(len(text.ids), 1)))

    def _embed(self, texts: list[Text], batch_size: int) -> list[Tensor]:
        """The vectors (chunks, w) of each text."""
        planned = [(i, run) for i, text in enumerate(texts) for run in self._passes(text)]
        parts: dict[tuple[int, int], list[Tensor]] = {}
        for begin in range(0, len(planned), batch_size):
            batch = planned[begin : begin + batch_size]
            states = self._states([run.ids for _, run in batch])
            for (i, run), rows in zip(batch, states, strict=True):
                for chunk, first, behind in run.takes:
                    parts.setdefault((i, chunk), []).append(rows[first:behind])
        return [
            self._pooled([torch.cat(parts[i, chunk]) for chunk in range(len(text.chunks))])
            for i, text in enumerate(texts)
        ]

    def _passes(self, text: Text) -> list[Pass]:
        prefix = [*self._prefix, *text.prompt]
        skipped = 0 if getattr(self.model[1], "include_prompt", True) or not text.prompt else len(prefix)
        return passes(
            text.ids,
            text.chunks,
            prefix,
            self._suffix,
            self.max_seq_length,
            own_ends=self._own_ends,
            skipped=skipped,
        )

    def _states(self, runs: list[list[int]]) -> Tensor:
        """States (b, t, w) of ids that are padded to one length."""
        longest, padding = max(map(len, runs)), self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*run, *[padding] * (longest - len(run))] for run in runs], device=self.model.device)
        mask = torch.tensor([[int(i < len(run)) for i in range(longest)] for run in runs], device=self.model.device)
        states: Tensor = self.model[0]({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
        return states

    def _pooled(self, chunks: list[Tensor]) -> Tensor:
        """Vectors (c, w) of the states (n_i, w) of chunks: by the modules behind the encoder."""
        states = torch.nn.utils.rnn.pad_sequence(chunks, batch_first=True)
        lengths = torch.tensor([len(rows) for rows in chunks], device=states.device)
        mask = (torch.arange(states.shape[1], device=states.device) < lengths[:, None]).long()
        features: dict[str, Any] = {"token_embeddings": states, "attention_mask": mask}
        for module in list(self.model)[1:]:
            features = module(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors


def load_model(
    model: str | os.PathLike[str], trusted: bool, *, where: str = "effconv embed", **others: Any
) -> SentenceTransformer:
    """Loads a model of sentence-transformers; a repo that effconv made is compared with its manifest first.

    Args:
        trusted: let Python code run that came with another model than effconv's, or with its source.
        where: the command, for errors.
        **others: further arguments of SentenceTransformer.

    Raises:
        EffconvError: sentence-transformers is not installed, there is no such folder, files differ from the manifest,
            or the model has code that must not run.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            "the package sentence-transformers is not installed",
            where=where,
            hint="pip install 'effconv[sentence]'",
        ) from None
    require_device(others.get("device"))
    folder = Path(os.path.expanduser(model))
    local, allowed = folder.is_dir(), trusted
    if (folder / NAME).is_file():
        require_loadable(folder, trust_remote_code=trusted)
        check_hashes(folder, read_manifest(folder))
        allowed = True  # its code is what the manifest says
    elif local:
        require_loadable(folder, trust_remote_code=True)  # sentence-transformers refuses its code, see below
    elif folder.exists() or folder.is_absolute():
        raise BadInputError("no such folder", where=str(model), hint="give a folder with a model")
    given = {name: value for name, value in others.items() if value}
    try:
        loaded = SentenceTransformer(str(folder if local else model), trust_remote_code=allowed, **given)
    except Exception as error:  # any: files and code of others are read
        if memory_ran_out(f"{type(error).__name__}: {error}"):
            raise
        if not allowed and isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise UsageError(
                "the model comes with Python code, which effconv does not run unasked",
                where=str(model),
                hint="read the code; if you trust it, pass --trust-remote-code to run it",
            ) from None
        said = (str(error).strip().splitlines() or [""])[0]
        raise BadInputError(
            f"sentence-transformers cannot load the model ({type(error).__name__}: {said})",
            where=str(model),
            hint="compare its config.json with its weights, or download the model again"
            if local
            else "check the id, and the network",
        ) from error
    if local and not (folder / NAME).is_file():
        _require_complete(loaded, folder)
    return loaded


def _require_complete(model: SentenceTransformer, folder: Path) -> None:
    """Raises BadInputError for weights that lack tensors, in whose place transformers puts random numbers."""
    from transformers import PreTrainedModel

    encoder: Any = getattr(model[0], "auto_model", None)  # with another backend, such as onnx, none of transformers
    place = folder / str((modules_of(folder) or [{}])[0].get("path") or "")
    if (
        not isinstance(encoder, PreTrainedModel)
        or not (place / "config.json").is_file()
        or (place / "adapter_config.json").is_file()
    ):
        return
    # sentence-transformers does not pass on what transformers found missing, so the weights are read once more.
    read: Any = type(encoder).from_pretrained  # whose types know nothing of the second value
    _, found = read(place, config=encoder.config, output_loading_info=True)
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # which no vector is made of
    if missing:
        raise BadInputError(
            f"the weights lack {counted(len(missing), 'tensor')} of the model, such as {missing[0]}",
            where=str(place),
            hint="download the model again, or train it: without them it would embed with random numbers",
        )


def _modes(pooling: Any) -> tuple[str, ...]:
    """The pooling modes, in either version of sentence-transformers."""
    modes = getattr(pooling, "pooling_mode", None)
    if modes is None:
        return tuple(pooling.get_pooling_mode_str().split("+"))
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _chunk(text: Text, begin: int, end: int) -> Chunk:
    """Tokens `begin` to `end` of a text, and where they stand in it."""
    if text.offsets is None:
        return Chunk(None, None, end - begin)
    first, last = (text.offsets[begin][0], text.offsets[end - 1][1]) if end > begin else (0, 0)
    return Chunk(first, last, end - begin)
