"""The source as a teacher: its stock model, and what passes through each of its self-attentions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.errors import BadInputError, listing
from ..convert.families.grammar import Config, number
from ..convert.io.tokenizer import has_tokenizer
from ..convert.target import Context

THREADS = 2  # fixed: another number of threads may sum in another order, and a fit shall repeat bit for bit


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One self-attention of the encoder: its projections (the output one is fed the heads' outputs side by side).

    ALBERT's shared layer is one site that runs several times a forward; its runs are pooled.
    """

    name: str
    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int


def load_teacher(folder: Path, config: Config) -> tuple[Any, Any]:
    """The stock base model of a source, in float32 and eval mode, and its tokenizer.

    Args:
        config: of the source, as the conversion takes it: a decoder where a causal head was asked for.

    Raises:
        BadInputError: no tokenizer that loads, or weights that are not finite.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder) if has_tokenizer(folder) else None
    except Exception as error:  # each tokenizer class fails in its own way where files are missing or damaged
        raise _no_tokenizer(folder, f"cannot be loaded ({type(error).__name__}: {error})") from None
    if tokenizer is None:
        raise _no_tokenizer(folder, "is missing")
    causal = {"is_decoder": True} if config.get("is_decoder") else {}
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **causal)
    unsound = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if unsound:
        raise BadInputError(
            f"the source's weights hold NaN or infinite values:\n{listing(unsound)}",
            where="the source's weights",
            hint="use another checkpoint",
        )
    return model.eval(), tokenizer


def _no_tokenizer(folder: Path, why: str) -> BadInputError:
    return BadInputError(
        f"the source's tokenizer {why}, but fitting on text needs it",
        where=str(folder),
        hint="put the tokenizer's files next to config.json",
    )


def attention_sites(model: nn.Module, context: Context) -> list[AttentionSite]:
    """Every self-attention that has parameters of its own, in the order of the layers, by the family's paths."""
    family = context.family
    sites = []
    for path in family.layer_paths(context.config):
        attention = model.get_submodule(f"{path}.{family.code.attention_path}")
        query, key, value = (getattr(attention, name) for name in family.code.projections)
        output = model.get_submodule(f"{path}.{family.output_projection}")
        sites.append(AttentionSite(path, query, key, value, output, number(context.config, family.num_heads)))
    return sites


@contextmanager
def watch(site: AttentionSite, want: Sequence[str], receive: Callable[..., None]) -> Iterator[None]:
    """Call `receive(**{q, k, v, y})`, each (b, h, t, d), whenever the site has run.

    y is what the output projection is fed. Hooks on the four projections see the same thing in every family and on
    every transformers version, whatever the attention between them is called.
    """
    seen: dict[str, Tensor] = {}

    def split(x: Tensor) -> Tensor:
        return x.detach().float().unflatten(-1, (site.heads, -1)).transpose(1, 2)

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            seen[name] = split(output)

        return hook

    def before_output(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["y"] = split(args[0])
        receive(**{name: seen[name] for name in want})
        seen.clear()

    modules = {"q": site.query, "k": site.key, "v": site.value}
    handles = [modules[name].register_forward_hook(after(name)) for name in want if name != "y"]
    handles.append(site.output.register_forward_pre_hook(before_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_all(watches: Sequence[tuple[AttentionSite, Sequence[str], Callable[..., None]]]) -> Iterator[None]:
    """`watch` for several sites at once."""
    if not watches:
        yield
        return
    with watch(*watches[0]), watch_all(watches[1:]):
        yield
