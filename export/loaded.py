"""A repo's model as it is exported: loaded in float32, with the modules of sentence-transformers behind it, if any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..convert.errors import BadInputError, UnsupportedError
from ..convert.io.tokenizer import tokenizer_in
from ..convert.repo.own_modules import average_of
from ..convert.repo.sentence import MODULES, foreign_types

TOKENS, SENTENCE = "last_hidden_state", "sentence_embedding"


class Exported(nn.Module):
    """What a graph computes: from ids, mask and maybe segments to the outputs named in `outputs`, in order.

    Args:
        model: the transformers model.
        modules: of sentence-transformers, behind the model's.
        outputs: names of the outputs.
    """

    def __init__(self, model: Any, modules: Sequence[nn.Module], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.modules_behind, self.outputs = model, nn.ModuleList(modules), tuple(outputs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = dict(self.model(input_ids=input_ids, attention_mask=attention_mask, **segments, return_dict=True))
        if self.modules_behind:
            features = {"token_embeddings": found[TOKENS], "attention_mask": attention_mask, "input_ids": input_ids}
            for module in self.modules_behind:
                features = module(features)
            found.update({name: features[name] for name in ("token_embeddings", SENTENCE) if name in features})
        return tuple(found[name] for name in self.outputs)


def load(repo: Path, manifest: Mapping[str, Any], *, trust_remote_code: bool) -> Exported:
    """The repo's model under its own head, in float32 and eval mode.

    Raises:
        BadInputError: a tensor of the model is not in the weights.
        UnsupportedError: its modules are code of the source that may not run, or sentence-transformers is missing.
    """
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if (repo / MODULES).is_file():
        return _sentence_encoder(repo, trust_remote_code)
    auto = getattr(transformers, manifest["auto"])
    model, info = auto.from_pretrained(repo, trust_remote_code=True, output_loading_info=True, dtype=torch.float32)
    missing = sorted(name for name in info["missing_keys"] if "pooler." not in name)
    if missing or info["mismatched_keys"]:
        raise BadInputError(
            f"the weights do not fill the model: {', '.join([*missing, *map(str, info['mismatched_keys'])][:4])}",
            where=str(repo),
            hint="compare the repo with its manifest: effconv verify",
        )
    return Exported(model.eval(), (), _outputs(model.eval(), without_pooler=bool(info["missing_keys"])))


def _sentence_encoder(repo: Path, trust_remote_code: bool) -> Exported:
    foreign = foreign_types(json.loads((repo / MODULES).read_text(encoding="utf-8")))
    if average_of(repo) is not None:
        raise UnsupportedError(
            "the repo embeds documents by pieces, which sentence-transformers cuts, not a graph",
            where=str(repo),
            hint="export the repo from before effconv pieces",
        )
    if foreign and not trust_remote_code:
        raise UnsupportedError(
            f"modules.json names Python code of the source: {', '.join(foreign)}",
            where=str(repo),
            hint="if you trust it, allow it to run with --trust-remote-code",
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UnsupportedError(
            "the repo is a sentence encoder, and its modules are loaded by sentence-transformers, which is missing",
            where=str(repo / MODULES),
            hint="pip install 'effconv[sentence]'",
        ) from None
    encoder = SentenceTransformer(str(repo), trust_remote_code=True, device="cpu", local_files_only=True)
    first, *behind = list(encoder.float().eval())
    named = Exported(first.auto_model, behind, (SENTENCE,))
    sample = torch.full((1, 2), 5), torch.ones((1, 2), dtype=torch.long)
    try:
        with torch.no_grad():
            named(*sample)
    except KeyError:  # a late-interaction encoder: a vector for each token, behind a dense layer
        return Exported(first.auto_model, behind, ("token_embeddings",))
    return Exported(first.auto_model, behind, (TOKENS, SENTENCE))


def _outputs(model: Any, *, without_pooler: bool) -> list[str]:
    """Names of the tensors that the model returns."""
    ids = torch.full((1, 1, 2) if "MultipleChoice" in type(model).__name__ else (1, 2), 5)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    return [
        name
        for name, value in found.items()
        if isinstance(value, Tensor) and not (without_pooler and name == "pooler_output")
    ]


def takes_segments(model: Any, tokenizer: Any) -> bool:
    """Whether the graph has the input `token_type_ids`: where the tokenizer gives them, or the model has several."""
    if tokenizer is not None:
        return "token_type_ids" in tokenizer.model_input_names
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1


def tokenizer_of(repo: Path, *, trust_remote_code: bool) -> Any:
    """The repo's tokenizer, None where it has none or it may not or cannot be loaded here."""
    found = tokenizer_in(repo)
    if not found.exists or (found.references and not trust_remote_code):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=True)  # its own, else as allowed
    except ImportError:
        return None
