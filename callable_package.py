"""Makes a subpackage callable: `effconv.convert(...)` is an API function although `effconv/convert/` is a package."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that can be called: it calls the API function named in its `__api__` as `module:function`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, function = str(self.__api__).partition(":")
        return getattr(importlib.import_module(module), function)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Makes the package of that name, which has an `__api__`, a `CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
