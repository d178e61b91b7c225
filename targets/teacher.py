"""The source as a teacher: its stock model, and what passes through each of its self-attentions, whole or by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.errors import BadInputError, listing
from ..convert.families.grammar import Config, Family, number
from ..convert.io.tokenizer import tokenizer_in
from ..convert.options import Progress

THREADS = 2  # fixed: another number of threads may sum in another order, and a fit shall repeat bit for bit


@contextmanager
def fixed_threads() -> Iterator[None]:
    """A fit's number of threads, for a block or a decorated function; afterwards the caller's number is set again."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    found = tokenizer_in(folder)
    if found.references:
        raise _no_tokenizer(folder, f"has Python code of its own ({', '.join(found.code or found.references)})")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder) if found.exists else None
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
        hint="put the files of a tokenizer of transformers next to config.json",
    )


def attention_sites(model: nn.Module, family: Family, config: Config) -> list[AttentionSite]:
    """Every self-attention that has parameters of its own, in the order of the layers, by the family's paths."""
    sites = []
    for path in family.layer_paths(config):
        attention = model.get_submodule(f"{path}.{family.code.attention_path}")
        query, key, value = (getattr(attention, name) for name in family.code.projections)
        output = model.get_submodule(f"{path}.{family.output_projection}")
        sites.append(AttentionSite(path, query, key, value, output, number(config, family.num_heads)))
    return sites


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """One run of a self-attention, as its modules have it.

    Attributes:
        inputs: (b, t, w) what the projections get.
        query, key, value: (b, t, h·d) what they give.
        attended: (b, t, h·d) what the output projection is fed. output: (b, t, w) what it gives.
    """

    heads: int
    inputs: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attended: Tensor
    output: Tensor

    def by_head(self) -> tuple[Tensor, ...]:
        """Query, key, value and what they attended to, (b, h, t, d) float32 each."""
        parts = (self.query, self.key, self.value, self.attended)
        return tuple(x.detach().float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)


Receive = Callable[[AttentionRun], Tensor | None]


@contextmanager
def watch(watches: Iterable[tuple[AttentionSite, Receive]]) -> Iterator[None]:
    """Calls each site's function whenever the site has run; a tensor that it returns takes the place of the output.

    Hooks on the four projections see the same thing in every family and on every transformers version, whatever the
    attention between them is called.
    """
    with ExitStack() as hooks:
        for site, receive in watches:
            seen: dict[str, Tensor] = {}
            for name in ("query", "key", "value"):
                hooks.callback(getattr(site, name).register_forward_hook(_noting(name, seen)).remove)
            hooks.callback(site.output.register_forward_hook(_ending(site, seen, receive)).remove)
        yield


def _noting(name: str, seen: dict[str, Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update({"inputs": args[0], name: output})

    return hook


def _ending(site: AttentionSite, seen: dict[str, Tensor], receive: Receive) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        run = AttentionRun(site.heads, **seen, attended=args[0], output=output)
        seen.clear()
        return receive(run)

    return hook


@dataclass(frozen=True, slots=True)
class TextSample:
    """A batch of token ids (b, t) and its mask (b, t) bool, or None where every token is real."""

    input_ids: Tensor
    mask: Tensor | None = None


@dataclass
class Counter:
    """Reports progress, one step after the other."""

    progress: Progress | None
    total: int
    done: int = 0

    def step(self, what: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(what, self.done, self.total)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the stock base model hands to its first layer; later layers take the same beside their hidden states."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Reached(Exception):
    pass


def entry_of(teacher: nn.Module, first: nn.Module, batch: TextSample, report: Counter) -> Entry:
    """Runs the teacher up to its first layer."""
    found: list[Entry] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            found.append(Entry(args[0], args[1:], kwargs))
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            found.append(Entry(kwargs["hidden_states"], (), rest))
        raise _Reached

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        teacher(batch.input_ids, attention_mask=None if batch.mask is None else batch.mask.long())
    except _Reached:
        pass
    finally:
        handle.remove()
    report.step("embeddings")
    return found[0]


def run_layer(
    layer: nn.Module, site: AttentionSite, hidden: Tensor, start: Entry, output: Tensor | None = None
) -> tuple[Tensor, AttentionRun]:
    """A stock layer's output, and the run of its attention; `output` replaces what its output projection gives."""
    runs: list[AttentionRun] = []

    def receive(run: AttentionRun) -> Tensor | None:
        runs.append(run)
        return output

    with watch([(site, receive)]):
        out = layer(hidden, *start.args, **start.kwargs)
    return out[0] if isinstance(out, tuple) else out, runs[0]
