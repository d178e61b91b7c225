"""Running a stock encoder layer by layer, with an eye on its attention: what goes in, comes out, is put instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..convert.options import Progress


@dataclass(frozen=True, slots=True)
class AttentionPaths:
    """Module paths inside one stock layer (a family's entry): the defaults are BERT's."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"


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


class LayerCall:
    """Runs a stock layer and notes q, k, v (b, h, t, d) and the input of its output projection (b, t, w)."""

    def __init__(self, layer: nn.Module, paths: AttentionPaths, heads: int) -> None:
        self.layer, self.paths, self.heads = layer, paths, heads
        self.noted: dict[str, Tensor] = {}

    @property
    def attention_output(self) -> Tensor:
        return self.noted["output"]

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.noted[n].unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        return q, k, v

    def run(self, hidden: Tensor, start: Entry, added: Tensor | None = None) -> Tensor:
        """The layer's output; `added` replaces what the output projection gives."""
        with self._hooks(added):
            out = self.layer(hidden, *start.args, **start.kwargs)
        return out[0] if isinstance(out, tuple) else out

    @contextmanager
    def _hooks(self, added: Tensor | None) -> Iterator[None]:
        handles = []
        for name in ("query", "key", "value"):
            module = self.layer.get_submodule(getattr(self.paths, name))
            handles.append(
                module.register_forward_hook(lambda _m, _i, out, name=name: self.noted.__setitem__(name, out))
            )
        output = self.layer.get_submodule(self.paths.output)

        def note(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            self.noted["output"] = inputs[0]
            return out if added is None else added

        handles.append(output.register_forward_hook(note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
