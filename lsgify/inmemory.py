"""`effconv.lsgify(model, tokenizer, ...)`: the conversion of `effconv lsg` for a model that is already loaded.

The same plan and the same emitted code; tensors come from the model's state dict and go into a new model.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..convert.execute import as_array
from ..convert.families.grammar import Family
from ..convert.families.selection import head_of
from ..convert.io.checkpoint import Checkpoint, Tensor
from ..convert.io.dtypes import BY_NAME, Array
from ..convert.io.source import Source
from ..convert.io.tokenizer import SpecialTokens
from ..convert.options import Settings
from ..convert.prepare import plan_tensors, settle
from ..convert.repo.modelcode import render
from .options import LSGOptions
from .target import LSG


def lsgify(
    model: nn.Module, tokenizer: Any = None, *, seed: int = 123, in_place: bool = False, **options: Any
) -> nn.Module:
    """Converts a loaded model to LSG. Returns a new model unless `in_place` is set.

    Args:
        model: a transformers model of a supported family, with or without a head.
        tokenizer: its tokenizer. The global tokens are initialised from its mask token, and its `model_max_length` is
            set to the new length; pass `copy.deepcopy(tokenizer)` to keep the original unchanged. Without a tokenizer,
            set `tokenizer.model_max_length` yourself.
        seed: random seed for new tensors.
        in_place: change the model itself and return it. Unchanged parameters stay the same objects, so an
            optimizer that holds them stays valid. The base model and its layers are new objects, without hooks.
        options: as for `effconv lsg`: max_length=4096, block_size=128, sparsity_type="norm", num_global_tokens=1, ...

    Returns:
        The model of the emitted class (LSGBertForMaskedLM and so on), on the same device, in the same dtype and mode.
        `save_pretrained` also writes its code files, so the folder loads with `trust_remote_code=True`.

    Raises:
        EffconvError: an unsupported family or invalid options, as for `effconv lsg`.
    """
    import transformers

    dense: Any = model.config
    config = json.loads(dense.to_json_string(use_diff=False))
    stock = type(model).__module__.startswith("transformers.")  # whatever code the config of its folder names
    family, config, chosen = settle(LSG, LSGOptions(**options), config, own_code=stock)
    head, unknown = head_of({"architectures": [type(model).__name__]}, family, target=LSG.name)
    checkpoint = _MemoryCheckpoint(model.state_dict())
    context, plan = plan_tensors(
        checkpoint, LSG, chosen, family, head, config, _tokens(tokenizer, family), Settings(seed=seed), unknown
    )
    with tempfile.TemporaryDirectory(prefix="effconv-") as folder:
        heads = {head.suffix: head.auto for head in family.heads}
        for name, text in render(family.code, LSG.code, heads).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        (Path(folder) / "config.json").write_text(json.dumps(dict(context.emitted)), encoding="utf-8")
        emitted = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        auto = getattr(transformers, head.auto)
        result = auto.from_config(emitted, trust_remote_code=True, dtype=model.dtype)
    result.config.name_or_path = ""
    if result.config.is_encoder_decoder and getattr(model, "generation_config", None) is not None:
        result.generation_config = copy.deepcopy(model.generation_config)
    # A file of a base model may name its tensors as a head's does, and from_pretrained takes both; the model does not.
    prefix = f"{context.emits.prefix}." if head.suffix == "Model" else ""
    arrays = {row.target.removeprefix(prefix): as_array(checkpoint, row) for row in plan.rows if row.target}
    missing, unexpected = result.load_state_dict({name: _torch(array) for name, array in arrays.items()}, strict=False)
    tied = {name for name in missing if name.endswith(tuple(family.tied_weights(head)))}
    if set(missing) - tied or unexpected:
        raise AssertionError(f"the plan does not match the model: {sorted(set(missing) - tied)} {unexpected}")
    if tokenizer is not None:
        tokenizer.model_max_length = int(context.options.max_length)
    made: nn.Module = result.to(model.device).train(model.training)
    return _become(model, made) if in_place else made


def _become(model: nn.Module, result: nn.Module) -> nn.Module:
    """The model as `result`, with its own parameters wherever both have one of the same name and the same bits."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in list(result.named_parameters(remove_duplicate=False)):
        if name in own and own[name].dtype == parameter.dtype and torch.equal(own[name], parameter):
            parent, _, last = name.rpartition(".")
            setattr(result.get_submodule(parent), last, own[name])
    model.__class__ = type(result)
    model.__dict__ = result.__dict__
    return model


class _MemoryCheckpoint(Checkpoint):
    """A checkpoint whose tensors are those of a state dict."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        types = {name: str(value.dtype).removeprefix("torch.") for name, value in self._state.items()}
        names = ((name, BY_NAME.get(types[name], "I64"), value) for name, value in self._state.items())
        source = Source(name="the model in memory", files=(), fetch=Path)
        super().__init__((Tensor(name, dtype, tuple(value.shape), "memory") for name, dtype, value in names), source)

    def read(self, name: str) -> Array:
        value, dtype = self._state[name], self.tensors[name].dtype
        return Array(value.view(torch.int16).numpy().view("<u2") if dtype == "BF16" else value.numpy(), dtype)


def _torch(array: Array) -> torch.Tensor:
    data = array.data.copy()
    return torch.from_numpy(data.view("<i2")).view(torch.bfloat16) if array.dtype == "BF16" else torch.from_numpy(data)


def _tokens(tokenizer: Any, family: Family) -> SpecialTokens:
    if tokenizer is None:
        return SpecialTokens()
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "mask", "sep", "pad")}
    for name, token in family.stand_ins.items():
        if ids[name] is None:
            ids[name] = tokenizer.get_vocab().get(token)
    return SpecialTokens(**ids)
