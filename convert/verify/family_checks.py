"""Checks that a repo's code and tensors are complete for its source's family, apart from the attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.registry import FAMILIES
from .checks import beyond_rounding, compare_with_source, padded_ids
from .loaded import Loaded, decoder_inputs, difference, outputs

LONGEST_DENSE = 512  # tokens: attention put back is quadratic


class DenseAttention(nn.Module):
    """Plain softmax attention in the place of a target's: softmax(q kᵀ / √d) v (arXiv 1706.03762, equation 1)."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """The context (b, h, t, d) of q, k and v (b, h, t, d).

        Args:
            mask: bool (b, t), True for what may be seen.
            bias: added to scores, (h, 2 R + 2): column R + D is for a key D tokens behind its row (lsg_score_bias.py).
        """
        tokens = q.shape[2]
        seen = torch.ones((1, 1, tokens, tokens), dtype=torch.bool)
        if self.causal:
            seen = seen.tril()
        if mask is not None:
            seen = seen & mask[:, None, None, :]
        if bias is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        added = bias_of_distances(bias, torch.arange(tokens)[:, None], torch.arange(tokens))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.where(seen, added, -math.inf))


def bias_of_distances(bias: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """The bias (h, ...) of keys for rows, by positions that broadcast; the last column is not for distances."""
    reach = bias.shape[1] // 2 - 1
    return bias[:, (keys - rows).clamp(-reach, reach) + reach]


def stock_attention_equals_source(
    loaded: Loaded, fitted: Sequence[str] = (), **overrides: Any
) -> tuple[float, dict[str, Any]]:
    """With plain softmax attention put back, every head gives the source's outputs.

    A target replaces how q, k and v are mixed, and nothing else. A family whose attention has more to it (a bias from
    positions, another scale) does not equal its source then, and neither does a repo with other embeddings, layers or
    heads. Tensors that the target fits anew, and an interpolated position table, are the source's for this comparison.

    Args:
        fitted: names, in the base model, of the source's tensors that the target fitted anew.
        overrides: fields of the config that switch off what the target adds to the tokens.
    """
    restored: list[str] = []

    def put_back(emitted: nn.Module, dense: nn.Module) -> None:
        restored[:] = put_back_attention(loaded, emitted, dense, fitted)

    longest = min(LONGEST_DENSE, loaded.max_length, int(loaded.manifest["source_max_length"]))
    value, details = compare_with_source(loaded, min(64, longest), put_back, **overrides)
    if loaded.manifest.get("part"):  # of which the source has no base model alone, and which keeps its attention
        return value, {**details, "restored": restored}
    whole = _whole_length(loaded, longest, put_back, overrides)
    found = math.nan if math.isnan(value) or math.isnan(whole) else max(value, whole)
    return found, {**details, "longest": longest, "restored": restored}


def put_back_attention(loaded: Loaded, emitted: Any, dense: Any, fitted: Sequence[str] = ()) -> list[str]:
    """Gives the emitted model plain softmax attention, and the source's tensors where the target made others of them.

    Args:
        emitted, dense: the repo's model and its source's, with the same head.
        fitted: names, in the base model, of the source's tensors that the target fitted anew.

    Returns:
        The names of the tensors that are the source's now.
    """
    manifest = loaded.manifest
    family = FAMILIES[manifest["family"]]
    dtype = manifest["settings"].get("dtype")
    if dtype:  # what was cast cannot be cast back: then the source is cast as well
        for parameter in dense.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    ours, theirs = (dict(_tensors(model.base_model)) for model in (emitted, dense))
    for name in fitted:
        ours[name].data.copy_(theirs[name])
    interpolated = manifest["options"].get("positions", "repeat") != "repeat"
    tables = [name for name in (family.positions, family.decoder_positions) if name in ours and name in theirs]
    for name in tables if interpolated else ():
        rows = min(len(ours[name]), len(theirs[name]))
        ours[name].data[:rows] = theirs[name][:rows]
    for attention in _attentions(emitted):
        attention.mix = DenseAttention(causal=bool(getattr(loaded.config, "is_decoder", False)))
    return [*fitted, *(tables if interpolated else ())]


def every_tensor_read(
    loaded: Loaded, tokens: int = 64, exempt: Mapping[str, str] | None = None
) -> tuple[None, dict[str, Any]]:
    """Every floating-point tensor of the weights takes part in an output of some head that the repo has code for.

    A tensor with a gradient that is not zero does. Each other one is filled with NaN, and some output must be NaN then.
    (A change of its values proves nothing: softmax ignores a shift of all keys, so that a key's bias moves no output.)

    Args:
        tokens: a length that uses every tensor; a target whose tensors need a longer input gives its own.
        exempt: reasons by the end of a tensor's name.

    Raises:
        AssertionError: with the tensors that nothing reads.
    """
    wanted = dict.fromkeys(loaded.stored_floats())
    carried = set(loaded.manifest.get("carried", ()))
    autos = [loaded.auto, *(auto for auto in loaded.autos if auto != loaded.auto)]
    unread, known = set(wanted), set[str]()
    for auto in autos:
        if not unread or (auto != loaded.auto and not unread & carried):
            break
        model = loaded.model(auto)
        named = {_stored_name(name, model.base_model_prefix, wanted): tensor for name, tensor in _tensors(model)}
        known |= named.keys()
        tensors = {name: tensor for name, tensor in named.items() if name in unread}
        unread -= _read(loaded, model, auto, tensors, min(tokens, loaded.max_length))
    excused = {name: _reason(name, exempt or {}, carried - known) for name in sorted(unread)}
    faults = [name for name, why in excused.items() if not why]
    if faults:
        shown = ", ".join(faults[:4]) + (f" and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise AssertionError(f"no output depends on {len(faults)} of {len(wanted)} tensors: {shown}")
    return None, {"tensors": len(wanted), "tokens": min(tokens, loaded.max_length), "exempt": excused}


def runs_at_full_length(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Runs the embeddings and the first layer on an input of the maximum length: no table may be too short.

    Raises:
        AssertionError: where that fails.
    """
    model = loaded.model()
    base = model.base_model
    _keep_first_layer(base)
    ids, _ = padded_ids(loaded, [loaded.max_length])
    try:
        result = outputs(base, "AutoModel", ids, None)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(
            f"an input of {loaded.max_length:,} tokens, the maximum length, does not run: {error}"
        ) from None
    if not all(bool(torch.isfinite(value).all()) for value in result.values()):
        raise AssertionError(f"an input of {loaded.max_length:,} tokens gives NaN or infinite values")
    return None, {"tokens": loaded.max_length}


def _attentions(model: nn.Module) -> list[nn.Module]:
    """The modules that hold a target's attention as `mix`."""
    return [module for module in model.modules() if isinstance(getattr(module, "mix", None), nn.Module)]


def _whole_length(
    loaded: Loaded, longest: int, put_back: Callable[[nn.Module, nn.Module], None], overrides: Mapping[str, Any]
) -> float:
    """The base model's difference over a text as long as both take: every row of the position table that they share."""
    dense, emitted = loaded.source_model("AutoModel"), loaded.base(**overrides)
    put_back(emitted, dense)
    ids, _ = padded_ids(loaded, [longest])

    def differ() -> float:
        got, wanted = (outputs(model, "AutoModel", ids, None)["last_hidden_state"] for model in (emitted, dense))
        return difference(got, wanted)

    return beyond_rounding(differ, emitted, dense)[0]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers by each of their names."""
    for name, tensor in itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    ):
        if tensor.is_floating_point():
            yield name, tensor


def _read(loaded: Loaded, model: nn.Module, auto: str, tensors: Mapping[str, Tensor], tokens: int) -> set[str]:
    """The names of the tensors that an output of the model depends on."""
    inputs = _inputs(loaded, model, auto, tokens)
    by_gradient = _with_gradient(model, inputs)
    for further in _in_each_language(model, inputs):
        by_gradient |= _with_gradient(model, further)
    found = {name for name, tensor in tensors.items() if id(tensor) in by_gradient}
    return found | {name for name, tensor in tensors.items() if name not in found and _reaches(model, inputs, tensor)}


def _inputs(loaded: Loaded, model: Any, auto: str, tokens: int) -> dict[str, Tensor]:
    ids, _ = padded_ids(loaded, [tokens])
    ids = ids[None] if auto == "AutoModelForMultipleChoice" else ids
    inputs = {"input_ids": ids, **decoder_inputs(model, ids)}
    if getattr(model.config, "add_cross_attention", False) or loaded.manifest.get("part"):
        generator = torch.Generator().manual_seed(0)
        inputs["encoder_hidden_states"] = torch.randn((1, 7, model.config.hidden_size), generator=generator)
    return inputs


def _in_each_language(model: Any, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A few tokens in each language that the model has tensors for, where a text says its language (X-MOD)."""
    if "lang_ids" in getattr(model.base_model, "embedding_inputs", ()):
        few = {**inputs, "input_ids": inputs["input_ids"][..., :8]}
        for language in range(len(model.config.languages)):
            yield {**few, "lang_ids": torch.tensor([language])}


def _with_gradient(model: nn.Module, inputs: Mapping[str, Tensor]) -> set[int]:
    """Ids of the parameters with a gradient that is not zero; each gradient is let go at once, to save memory."""
    found: set[int] = set()

    def note(parameter: Tensor) -> None:
        if parameter.grad is not None and bool(parameter.grad.count_nonzero()):
            found.add(id(parameter))
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(note) for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        results = [value for value in _floats(model(**inputs)) if value.requires_grad]
        # Weighted at random: the plain sum of what a norm puts out has no gradient.
        total = sum((value * torch.randn(value.shape, generator=generator)).sum() for value in results)
        if isinstance(total, Tensor):
            total.backward()
    for handle in handles:
        handle.remove()
    return found


def _reaches(model: nn.Module, inputs: Mapping[str, Tensor], tensor: Tensor) -> bool:
    """Whether NaN in the tensor reaches an output; the tensor is as it was afterwards."""
    kept = tensor.detach().clone()
    tensor.data.fill_(math.nan)
    try:
        with torch.no_grad():
            return any(bool(torch.isnan(value).any()) for value in _floats(model(**inputs)))
    finally:
        tensor.data.copy_(kept)


def _floats(result: Any) -> Iterable[Tensor]:
    """The floating-point tensors among a model's outputs, those in tuples too."""
    for value in result.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Tensor) and item.is_floating_point():
                yield item


def _stored_name(name: str, prefix: str, stored: Mapping[str, Any]) -> str:
    """A tensor of a loaded model as the weights file names it: a base model may have been stored with its prefix."""
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in stored:
            return candidate
    return name


def _reason(name: str, exempt: Mapping[str, str], without_code: set[str]) -> str:
    """Why nothing needs to read a tensor; "" where it must be read."""
    if name in without_code:
        return "kept for a class that this repo has no code for"
    return next((why for end, why in exempt.items() if name.endswith(end)), "")


def _keep_first_layer(base: nn.Module) -> None:
    """Lets the first layer of each stack run alone: what goes into a table does not depend on the layers."""
    ordered = [module for module in base.modules() if callable(getattr(module, "order", None))]
    for module in ordered:
        module.order = _first_of(module.order)  # type: ignore[assignment, arg-type]
    inside = {id(child) for module in ordered for child in module.modules()}
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) > 1 and id(child) not in inside:
                setattr(module, name, child[:1])


def _first_of(order: Callable[[], Iterable[nn.Module]]) -> Callable[[], Iterable[nn.Module]]:
    return lambda: itertools.islice(order(), 1)
