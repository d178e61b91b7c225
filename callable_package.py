"""Lets a subpackage be called: `effconv.convert(...)` is a function of the API, and `effconv/convert/` a folder."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is the API function named in its `__api__`, as `module:function`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, function = str(self.__api__).partition(":")
        return getattr(importlib.import_module(module), function)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Turns the package of that name, which has an `__api__`, into a `CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
