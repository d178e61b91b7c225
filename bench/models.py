"""What is measured: a `Subject` says as data which model it is; `build` makes it, in the process that runs it.

Contract: time and memory depend on shapes, not on the values of weights, so a stock model is built from its config
with random weights, and nothing but a config.json is fetched for it. A repo that effconv made is loaded with its
weights, for some targets skip what is zero in them (a Linformer's matrices before they are trained).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..convert.errors import UsageError
from ..convert.families.grammar import Family
from ..convert.families.registry import FAMILIES
from .options import INT8, SHAPES

MODERNBERT_PUBLISHED = {768: (22, 12, 1152), 1024: (28, 16, 2624)}  # width: layers, heads, inner width
FEED_FORWARD_GLU = 1.5  # ModernBERT's inner width over its width, where the published sizes do not say


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure.

    Attributes:
        name: as it is shown. what: what it is, a few words.
        config: fields of a stock model's config, which is built with random weights; {} for a folder.
        folder: of a model that is loaded with its weights; "" for a config.
        own_code: whether its code runs (of a repo that effconv made and that is what its manifest says, or because the
            user said so).
        lsg: options with which the stock model is turned into LSG, None where it is not.
        reach: tokens that it takes, None where nothing says so.
        converted: whether a conversion made it. dense: whether it has full attention in every layer.
        had: tokens that it takes without the positions that were added for the measurement; None where none were.
    """

    name: str
    what: str
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    own_code: bool = False
    lsg: Mapping[str, Any] | None = None
    reach: int | None = None
    converted: bool = False
    dense: bool = False
    had: int | None = None

    @property
    def takes(self) -> int | None:
        """Tokens of a user's text that it takes at once."""
        return self.reach if self.had is None else self.had

    def described(self) -> dict[str, Any]:
        return asdict(self)


def stretched(name: str, config: Mapping[str, Any], length: int, had: int) -> Subject:
    """A dense model of a family that effconv knows, which had `had` positions, with as many as `length` asks for.

    How the table grows (tiled, interpolated) changes its values alone.
    """
    family = FAMILIES[str(config["model_type"])]
    fields = _stock(config) | {"max_position_embeddings": max(length, had) + family.special_positions(config)}
    extended = length > had and family.positions
    what = "dense (SDPA), random weights" + (f", positions extended from {had:,}" if extended else "")
    return Subject(name, what, fields, reach=max(length, had), dense=True, had=had)


def as_lsg(name: str, what: str, config: Mapping[str, Any], length: int, options: Mapping[str, Any]) -> Subject:
    """The same model as LSG of `length` tokens, with options of `effconv lsg`."""
    return Subject(name, what, _stock(config), lsg={**options, "max_length": length}, reach=length, converted=True)


def shape(kind: str, config: Mapping[str, Any], length: int) -> Subject:
    """A Longformer, BigBird or ModernBERT of the size of a dense model, with its own published attention.

    ModernBERT is deep and narrow: where it was published at the source's width, it has that size; else the source's
    layers and heads.

    Raises:
        UsageError: no such kind.
    """
    family = FAMILIES[str(config["model_type"])]
    width, heads, layers, inner = size_of(family, config)
    size: dict[str, Any] = {
        "hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": inner,
        "vocab_size": int(config["vocab_size"]),
    }  # fmt: skip
    if kind == "longformer":
        fields = {**size, "attention_window": 512, "max_position_embeddings": length + 2}
        return Subject("Longformer", "window 512, random weights", {"model_type": kind, **fields}, reach=length)
    if kind == "bigbird":
        fields = {**size, "block_size": 64, "num_random_blocks": 3, "max_position_embeddings": length}
        what = "block 64, 3 random blocks, random weights"
        return Subject("BigBird", what, {"model_type": "big_bird", **fields}, reach=length)
    if kind == "modernbert":
        what = f"{layers} layers, random weights"
        if width in MODERNBERT_PUBLISHED:
            layers, heads, inner = MODERNBERT_PUBLISHED[width]
            what = f"{layers} layers as published at this width, random weights"
        else:
            inner = round(width * FEED_FORWARD_GLU)
        fields = size | {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
        fields |= {"max_position_embeddings": max(length, 8192)}
        small = {
            f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")
        }  # its own are beyond some tables
        return Subject("ModernBERT", what, {"model_type": kind, **fields, **small}, reach=max(length, 8192))
    raise UsageError(f"unknown shape {kind!r}", where="--with", hint="use some of " + ", ".join(SHAPES))


def size_of(family: Family, config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Width, heads, layers and inner width of a model of the family."""
    width, heads, inner = (int(config[name]) for name in (family.hidden_size, family.num_heads, family.inner_size))
    return width, heads, len(family.layer_paths(config)), inner


def _stock(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("auto_map", "architectures", "dtype")}


def build(subject: Mapping[str, Any], dtype: str) -> Any:
    """The encoder of a described `Subject`, on the CPU, in eval mode: no head, for heads differ from model to model.

    Args:
        dtype: of the weights; "int8" for float32 with 8-bit dense layers.
    """
    import torch
    import transformers

    kind = torch.float32 if dtype == INT8 else getattr(torch, dtype)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    if subject["folder"]:
        config = transformers.AutoConfig.from_pretrained(subject["folder"], trust_remote_code=subject["own_code"])
        auto = transformers.AutoModel
        if subject["own_code"] and "AutoModel" not in config.auto_map:
            auto = getattr(transformers, next(iter(config.auto_map.keys() - {"AutoConfig", "AutoTokenizer"})))
        model = auto.from_pretrained(subject["folder"], trust_remote_code=subject["own_code"], dtype=kind)
    else:
        fields = dict(subject["config"])
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        family = FAMILIES.get(config.model_type)
        auto = getattr(transformers, family.stock_auto("AutoModel") if family else "AutoModel")
        model = auto.from_config(config, dtype=kind)
    if subject["lsg"] is not None:
        from types import SimpleNamespace

        from ..lsgify.inmemory import lsgify

        tokens = SimpleNamespace(bos_token_id=0, cls_token_id=0, mask_token_id=0, sep_token_id=0, pad_token_id=0)
        model = lsgify(model, tokens, **subject["lsg"])
    model = model.base_model
    model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
    if dtype == INT8:
        from ..eight_bits import int8

        return int8(model)
    return model
