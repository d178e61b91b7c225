"""A converted repo and its source as models, loaded as any user would, for checks and measurements."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..families.registry import FAMILIES
from ..io.dtypes import FLOATS
from ..io.tokenizer import tokenizer_in
from ..io.tokenizer_classes import FILE

SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # what reads its models


class DoesNotApply(Exception):
    """Raised by a check that does not apply, with the reason."""


class Loaded:
    """A repo and its source, loaded on demand, in float32 and eval mode.

    Attributes:
        repo: folder of the repo. source: folder of the dense source, or None.
        manifest: the repo's manifest.
        trust_remote_code: whether the source may run its own Python code.
    """

    def __init__(self, repo: Path, source: Path | None, manifest: Mapping[str, Any], trust_remote_code: bool) -> None:
        self.repo, self.source, self.manifest = repo, source, manifest
        self.trust_remote_code = trust_remote_code

    @cached_property
    def config(self) -> Any:
        return transformers.AutoConfig.from_pretrained(self.repo, trust_remote_code=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The repo's tokenizer.

        Raises:
            DoesNotApply: its Python code came with the source and may not run, or it needs a package that is missing.
        """
        self.require_trusted_tokenizer()
        try:
            return transformers.AutoTokenizer.from_pretrained(self.repo, trust_remote_code=True)
        except Exception as error:
            why = why_not_here(self.repo, error)
            if why:
                raise DoesNotApply(f"the tokenizer does not load here: {why}") from None
            raise

    def require_trusted_tokenizer(self) -> None:
        """Raises DoesNotApply where loading the tokenizer would run code of the source that nobody allowed."""
        found = tokenizer_in(self.repo)
        if found.references and not self.trust_remote_code:
            raise DoesNotApply(
                f"the tokenizer is Python code of the source ({', '.join(found.code or found.references)}), which runs "
                "only with --trust-remote-code"
            )

    @property
    def auto(self) -> str:
        """The Auto class of the architecture that the repo was made for."""
        named = self.manifest["architecture"]
        if not hasattr(self.config, "auto_map"):  # a stock model
            return str(self.manifest["auto"])
        for auto, reference in self.config.auto_map.items():
            if reference.rpartition(".")[2] == named:
                return str(auto)
        raise ValueError(f"auto_map has no class {named}")

    @property
    def autos(self) -> list[str]:
        """The Auto classes of every head that came with the source; none where it was a base model without a pooler."""
        return list(self.manifest["heads"])

    def model(self, auto: str | None = None, folder: Path | None = None, **overrides: Any) -> PreTrainedModel:
        """The repo's model under an Auto class; `overrides` are config fields. Missing tensors are an error."""
        model, info = getattr(transformers, auto or self.auto).from_pretrained(
            folder or self.repo, trust_remote_code=True, output_loading_info=True, dtype=torch.float32, **overrides
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            missing, mismatched = sorted(info["missing_keys"])[:4], list(info["mismatched_keys"])[:4]
            raise ValueError(f"tensors not loaded: missing {missing}, of another shape {mismatched}")
        unexpected = set(info["unexpected_keys"]) - set(self.manifest.get("carried", ()))
        if unexpected and (auto or self.auto) == self.auto:
            raise ValueError(f"tensors that the model does not use: {sorted(unexpected)[:4]}")
        evaluating: PreTrainedModel = model.eval()
        return evaluating

    def base(self, **overrides: Any) -> nn.Module:
        """The base model inside the repo's own architecture; a pooler that the source lacks is random in it."""
        return self.model(**overrides).base_model

    def source_model(self, auto: str) -> nn.Module:
        """The dense source under an Auto class; of one that was converted before, the dense model of its weights."""
        asked = self.manifest.get("source_config", {})  # fields that the conversion was asked to change
        before: dict[str, Any] = {}
        if "upgraded" in self.manifest and self.source is not None:  # whose own code, if it still loads, is not run
            dense = {key: value for key, value in self.dense_fields().items() if key != "model_type"}
            before = {"config": transformers.AutoConfig.for_model(self.manifest["family"], **{**dense, **asked})}
        family = FAMILIES.get(self.manifest["family"])
        read = getattr(transformers, family.stock_auto(auto) if family else auto).from_pretrained
        options = {
            "trust_remote_code": self.trust_remote_code and not before,
            "dtype": torch.float32,
            "output_loading_info": True,
            **(before or asked),
        }
        model, info = read(self.source, **options)
        if self.manifest.get("part") and info["missing_keys"]:
            # The stock decoder does not find the embeddings that a whole model stores once for all of its parts.
            model = read(self.source, key_mapping={r"^(model\.)?shared\.": "model.decoder.embed_tokens."}, **options)[0]
        evaluating: nn.Module = model.eval()
        return evaluating

    def dense_fields(self) -> dict[str, Any]:
        """config.json of a source that was converted before, as that of the dense model of its weights."""
        assert self.source is not None
        fields = json.loads((self.source / "config.json").read_text(encoding="utf-8"))
        return {
            **{key: value for key, value in fields.items() if key != "auto_map"},
            "model_type": self.manifest["family"],
        }

    def stored_floats(self) -> list[str]:
        """Names of the floating-point tensors in the repo's weights files, as they are stored."""
        names = []
        for path in sorted(self.repo.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names += [name for name in file.keys() if file.get_slice(name).get_dtype() in FLOATS]  # noqa: SIM118
        return names

    def not_finite(self) -> list[str]:
        """Names of the stored tensors with NaN or infinite values."""
        names = []
        for path in sorted(self.repo.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if file.get_slice(name).get_dtype() in FLOATS and not bool(file.get_tensor(name).isfinite().all()):
                        names.append(name)
        return names

    @property
    def max_length(self) -> int:
        return int(self.manifest["max_length"])


def why_not_here(folder: Path, error: Exception) -> str:
    """The missing package because of which a tokenizer cannot be loaded; "" where the error has another cause.

    For a sentencepiece model, transformers names tiktoken or nothing at all.
    """
    found = tokenizer_in(folder).vocabulary
    if FILE not in found and any(name.endswith((".model", ".spm")) for name in found):
        missing = [name for name, module in SENTENCEPIECE.items() if not _installed(module)]
        if missing:
            return f"it needs {' and '.join(missing)} (pip install {' '.join(missing)})"
    lines = str(error).strip().splitlines()
    return (lines or [type(error).__name__])[0].strip() if isinstance(error, ImportError) else ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def outputs(model: nn.Module, auto: str, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Every output tensor by name: logits, hidden states, pooled outputs.

    `ids` (b, t) are read by encoder and decoder where there are two; for multiple choice they are b choices.
    """
    if auto == "AutoModelForMultipleChoice":
        ids, mask = ids[None], None if mask is None else mask[None]
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, **decoder_inputs(model, ids))
    return {name: value.float() for name, value in result.items() if isinstance(value, Tensor)}


def decoder_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """The decoder inputs of an encoder-decoder model that reads `ids`: the same ids."""
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def difference(got: Tensor, wanted: Tensor, real: Tensor | None = None) -> float:
    """Max |a - b| / max(1, max |b|), over real tokens (`real` (b, t)) where the output has a row a token."""
    if real is not None and got.dim() >= 2 and got.shape[:2] == real.shape:
        got, wanted = got[real], wanted[real]
    if not bool(torch.isfinite(got).all()):
        return float("nan") if bool(torch.isfinite(wanted).all()) else float("inf")
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1)) if got.numel() else 0.0
