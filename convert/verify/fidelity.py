"""Fidelity: how close a converted model is to its source on the same text.

Token cosine: mean over real tokens of the cosine between last hidden states. Sentence cosine: between their means over
real tokens. Layer error: ‖a − b‖ / ‖b‖ of the hidden states after each layer, the embeddings first. With a masked-LM
head: the mean KL divergence of the token distributions (nats), and both models' loss on
masked tokens (nats a token). Where there is a decoder beside the encoder, the states are the encoder's, and the
divergence is that of the decoder, which is given the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..text import joined, measuring_text, six_digits, special_ends
from ..windows import spread_windows
from .loaded import Loaded, decoder_inputs

BUILTIN_LENGTHS = (128, 256, 512)
BUILTIN_TEXTS = 4
MASKED_SHARE = 0.15


def builtin_fidelity(loaded: Loaded) -> list[dict[str, Any]]:
    """Fidelity on the built-in text at 128, 256 and 512 tokens, as far as both models reach."""
    reach = min(loaded.max_length, int(loaded.manifest["source_max_length"]))
    lengths = [length for length in BUILTIN_LENGTHS if length <= reach] or [reach]
    return fidelity(loaded, measuring_text(), lengths, BUILTIN_TEXTS)


def file_fidelity(loaded: Loaded, files: list[str], lengths: list[int], texts: int) -> list[dict[str, Any]]:
    """Fidelity on the files' text, or on the built-in one, at the lengths that both models reach."""
    text = joined([Path(path) for path in files], "--data") if files else measuring_text()
    reach = min(loaded.max_length, int(loaded.manifest["source_max_length"]))
    return fidelity(loaded, text, [length for length in lengths if length <= reach], texts)


def fidelity(loaded: Loaded, text: str, lengths: Iterable[int], texts: int) -> list[dict[str, Any]]:
    """One entry a length, each over `texts` windows of that many tokens, special tokens included.

    None at all where the repo has no tokenizer (there are tokens of a text only with one), or is a decoder alone, which
    keeps its attention.
    """
    if not (loaded.repo / "tokenizer_config.json").is_file() or loaded.manifest.get("part"):
        return []
    heads = [auto for auto in loaded.autos if auto in ("AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")]
    auto = heads[0] if heads else "AutoModel"
    source, emitted = loaded.source_model(auto), loaded.model(auto) if heads else loaded.base()
    found = []
    for length in lengths:
        windows = cut(loaded.tokenizer, text, length, texts)
        if windows is not None:
            found.append(
                {"tokens": length, "texts": len(windows), **compare(source, emitted, windows, loaded.tokenizer)}
            )
    return found


def cut(tokenizer: Any, text: str, length: int, count: int) -> Tensor | None:
    """Up to `count` windows of `length` tokens (count, length), evenly spread; None for a text too short."""
    body = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return spread_windows(body, length, count, *special_ends(tokenizer))


def compare(source: nn.Module, emitted: nn.Module, ids: Tensor, tokenizer: Any) -> dict[str, Any]:
    """Mean figures of two models over ids (b, t), one text at a time so that memory stays small."""
    rows = [_compare_one(source, emitted, ids[i : i + 1], tokenizer, i) for i in range(len(ids))]
    means = {name: _mean([row[name] for row in rows]) for name in rows[0] if name != "layer_error"}
    layers = zip(*(row["layer_error"] for row in rows), strict=True)
    return {**means, "layer_error": [_mean(values) for values in layers]}


def _mean(figures: Sequence[float]) -> float:
    return six_digits(sum(figures) / len(figures))


@torch.no_grad()
def _compare_one(source: nn.Module, emitted: nn.Module, ids: Tensor, tokenizer: Any, seed: int) -> dict[str, Any]:
    one, other = (model(ids, output_hidden_states=True, **decoder_inputs(model, ids)) for model in (source, emitted))
    states, others = (_token_states(output, ids.shape[1]) for output in (one, other))
    a, b = states[-1], others[-1]
    row = {
        "token_cosine": float(F.cosine_similarity(a, b, dim=-1).mean()),
        "sentence_cosine": float(F.cosine_similarity(a.mean(1), b.mean(1), dim=-1).mean()),
        "layer_error": [float((y - x).norm() / x.norm()) for x, y in zip(states, others, strict=True)],
    }
    decoder = "encoder_hidden_states" in one
    if "logits" in one and one.logits.dim() == 3 and (decoder or tokenizer.mask_token_id is not None):
        row["logit_kl"] = float(
            F.kl_div(other.logits.log_softmax(-1), one.logits.log_softmax(-1), log_target=True, reduction="none")
            .sum(-1)
            .mean()
        )
        if decoder:
            return row
        generator = torch.Generator().manual_seed(seed)
        masked = torch.rand(ids.shape, generator=generator) < MASKED_SHARE
        masked[:, 0] = masked[:, -1] = False
        hidden = ids.masked_fill(masked, tokenizer.mask_token_id)
        row["source_mlm_loss"] = float(F.cross_entropy(source(hidden).logits[masked], ids[masked]))
        row["mlm_loss"] = float(F.cross_entropy(emitted(hidden).logits[masked], ids[masked]))
    return row


def _token_states(output: Any, length: int) -> list[Tensor]:
    """An encoder's hidden states (b, t, e), without global tokens that stand in front of the others."""
    found = output.encoder_hidden_states if "encoder_hidden_states" in output else output.hidden_states
    return [states[:, -length:] for states in found]
