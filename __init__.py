"""effconv converts pretrained text encoders into efficient ones and checks the result against the source.

    import effconv
    result = effconv.convert("bert-base-uncased", "lsg", max_length=4096, output="lsg-bert")
    effconv.verify("lsg-bert", against="bert-base-uncased")

Names are imported on first use, which keeps `import effconv` fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import layers
    from .api import (
        adapt,
        adopt,
        bench,
        convert,
        embed,
        eval,
        export,
        fidelity,
        finetune,
        inspect,
        load,
        new,
        pieces,
        plan,
        prepare,
        pretrain,
        push_to_hub,
        retrieval,
        verify,
    )
    from .convert.errors import EffconvError
    from .convert.repo.card import add_to_card
    from .eight_bits import int8
    from .hub.refresh import refresh
    from .lsgify.inmemory import lsgify

__all__ = [
    "EffconvError",
    "adapt",
    "add_to_card",
    "adopt",
    "bench",
    "convert",
    "embed",
    "eval",
    "export",
    "fidelity",
    "finetune",
    "inspect",
    "int8",
    "layers",
    "load",
    "lsgify",
    "new",
    "pieces",
    "plan",
    "prepare",
    "pretrain",
    "push_to_hub",
    "refresh",
    "retrieval",
    "verify",
]

_HOMES = {
    "EffconvError": "convert.errors",
    "add_to_card": "convert.repo.card",
    "fidelity": "api",
    "inspect": "api",
    "int8": "eight_bits",
    "load": "api",
    "pieces": "api",
    "plan": "api",
    "prepare": "api",
    "push_to_hub": "api",
    "refresh": "hub.refresh",
    "retrieval": "api",
    "verify": "api",
}
_MODULES = (
    "adapt",
    "adopt",
    "bench",
    "convert",
    "embed",
    "eval",
    "export",
    "finetune",
    "layers",
    "lsgify",
    "new",
    "pretrain",
)  # all but layers are also callable


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
