"""Lets a subpackage be called: `effconv.convert(...)` is a function of the API, and `effconv/convert/` a folder.

`help(effconv.convert)` and `inspect.signature(effconv.convert)` show that function. It is imported when it is first
called or looked at, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


# A package whose call is the API function named in its `__api__`, as `module:function`.
class CallablePackage(ModuleType):  # noqa: D101 - its `__doc__` is a property
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self)(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The function's docstring, with its signature as the first line: pydoc shows no signature of a module."""
        function = _function(self)
        return f"{function.__name__}{inspect.signature(function)}\n\n{inspect.getdoc(function)}"


def _function(package: ModuleType) -> Callable[..., Any]:
    module, _, function = str(package.__api__).partition(":")
    named: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return named


def make_callable(package: str) -> None:
    """Makes the package of that name, which has an `__api__`, a `CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
