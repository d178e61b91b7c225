"""Checks shared by all targets. Each takes a `Loaded` and returns the largest difference and details."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .loaded import Loaded, difference, outputs

ROUNDING = 1e-5  # beyond it, two forms in float32 are compared in float64 as well


def padding_changes_nothing(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Padding a batch must not change a text's outputs: short and long texts, with and without unpadding."""
    model = loaded.model("AutoModel") if "AutoModel" in loaded.autos else loaded.model()
    auto = "AutoModel" if "AutoModel" in loaded.autos else loaded.auto
    found = []
    pairs = [(real, mate) for real, mate in ((5, 60), (70, 300), (300, 700)) if mate <= loaded.max_length]
    for real, mate in pairs or [(max(loaded.max_length // 3, 2), loaded.max_length)]:
        ids, mask = padded_ids(loaded, (real, mate))
        alone = outputs(model, auto, ids[:1, :real], None)
        for model.config.unpad_inputs in (True, False):
            beside = outputs(model, auto, ids, mask)
            for name, value in alone.items():
                row = beside[name][:1]
                rows_of_tokens = row.dim() > 2 or row.shape[-1] == mate  # an encoder's may have global ones in front
                found.append(difference(row[:, : value.shape[1]] if rows_of_tokens else row, value))
    return worst_of(found), {"lengths": [list(pair) for pair in pairs]}


def saved_again_equal(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Saves the model with save_pretrained, including its code files, and loads it again.

    Every parameter and buffer must be bit-identical. Outputs must agree within the tolerance: the matrix library picks
    its kernel by the address of the weights, which affects the last bit of a sum.

    Raises:
        AssertionError: a tensor differs, or only one of the two models has it.
    """
    model = loaded.model()
    ids, _ = padded_ids(loaded, [min(64, loaded.max_length)])
    before = outputs(model, loaded.auto, ids, None)
    with tempfile.TemporaryDirectory(prefix="effconv-") as folder:
        model.save_pretrained(folder)
        again = loaded.model(folder=Path(folder))
        compared, differing = compare_tensors(model, again)
        after = outputs(again, loaded.auto, ids, None)
    if differing:
        raise AssertionError(f"{len(differing)} tensors differ after saving and loading: {', '.join(differing[:4])}")
    return worst_of(difference(after[name], before[name]) for name in before), {"tensors": compared}


def compare_tensors(one: nn.Module, other: nn.Module) -> tuple[int, list[str]]:
    """How many parameters and buffers were compared, and the names of those that are not the same bit for bit."""
    left, right = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (one, other))
    differing = sorted(left.keys() ^ right.keys())
    differing += [name for name in left.keys() & right.keys() if not same_bits(left[name], right[name])]
    return len(left), differing


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes; NaN equals NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    left, right = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return bool(torch.equal(left, right))


def compare_with_source(
    loaded: Loaded,
    longest: int,
    prepare: Callable[[nn.Module, nn.Module], None] = lambda emitted, dense: None,
    **overrides: Any,
) -> tuple[float, dict[str, Any]]:
    """Compares the repo's outputs with its source's, on every head, with and without a mask.

    A source without any complete head is compared by its last hidden states.

    Args:
        longest: length up to which the two are equal, in tokens. Shorter if one of them takes fewer.
        prepare: called with the emitted and the dense model of each head before they run.
        overrides: config fields for the comparison.
    """
    longest = min(longest, loaded.max_length, int(loaded.manifest["source_max_length"]))
    ids, mask = padded_ids(loaded, (longest, max(longest // 2, 1), min(3, longest)))
    heads: dict[str, float] = {}
    rounding: dict[str, float] = {}
    for auto in loaded.autos or ["AutoModel"]:
        dense = loaded.source_model(auto)
        emitted = loaded.model(auto, **overrides) if loaded.autos else loaded.base(**overrides)
        prepare(emitted, dense)
        calls = count_calls(emitted)

        def differ(emitted: nn.Module = emitted, dense: nn.Module = dense, auto: str = auto) -> float:
            return worst_of(
                difference(got[name], value, mask.bool() if visible is mask else torch.ones_like(mask).bool())
                for visible in (mask, None)
                for got in [outputs(emitted, auto, ids, visible)]
                for name, value in outputs(dense, auto, ids, visible).items()
                if loaded.autos or name == "last_hidden_state"
            )

        heads[auto], in_float32 = beyond_rounding(differ, emitted, dense)
        if in_float32:
            rounding[auto] = in_float32
        if not calls and not loaded.manifest.get("part"):
            raise AssertionError(
                "the efficient attention was never called: the model still uses the source's attention"
            )
    details = {"heads": heads, "tokens": longest}
    return worst_of(heads.values()), details | ({"in_float32": rounding} if rounding else {})


def beyond_rounding(differ: Callable[[], float], *models: nn.Module) -> tuple[float, float]:
    """What two models differ by, in float64 where float32 differs by more than a few layers' rounding; else 0 with it.

    A fault differs in float64 too; the rounding of a deep model does not.

    Args:
        differ: measures it. models: those that it runs; they are in float64 afterwards where that was needed.

    Returns:
        The difference, and that of float32 where float64 had the word (0 where not).
    """
    found = differ()
    if found <= ROUNDING or math.isnan(found):
        return found, 0.0
    for model in models:
        model.double()
    return differ(), found


def random_ids(loaded: Loaded, batch: int, length: int) -> Tensor:
    """Token ids (batch, length) from a fixed seed, without the special tokens at the start of the vocabulary."""
    vocabulary = loaded.config.vocab_size
    generator = torch.Generator().manual_seed(length)
    return torch.randint(min(10, vocabulary - 1), vocabulary, (batch, length), generator=generator)


def padded_ids(loaded: Loaded, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Random texts of these lengths, padded on the right: ids and mask, both (b, t).

    Where an encoder has a decoder, each ends with the end-of-sequence token, which its classifiers look for.
    """
    ids = random_ids(loaded, len(lengths), max(lengths))
    mask = torch.ones_like(ids)
    for row, real in enumerate(lengths):
        mask[row, real:] = 0
        ids[row, real:] = pad_id(loaded)
        if loaded.config.is_encoder_decoder:
            ids[row, real - 1] = loaded.config.eos_token_id
    return ids, mask


def pad_id(loaded: Loaded) -> int:
    pad = loaded.config.pad_token_id
    return pad if isinstance(pad, int) else 0


def worst_of(differences: Iterable[float]) -> float:
    """The largest difference; NaN where one is NaN, which max() would lose."""
    found = list(differences)
    return math.nan if any(math.isnan(value) for value in found) else max(found, default=0.0)


def attentions_of(model: nn.Module) -> list[nn.Module]:
    """The attention modules of the emitted code, in the order of the layers."""
    return [module for name, module in model.named_modules() if name.endswith(".mix")]


def count_calls(model: nn.Module) -> list[int]:
    """A list that grows by one entry at each call of an emitted attention module."""
    calls: list[int] = []
    for index, attention in enumerate(attentions_of(model)):
        attention.register_forward_hook(lambda *_, index=index: calls.append(index))
    return calls
