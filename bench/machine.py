"""A description of the machine, shown with every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def machine() -> dict[str, Any]:
    """The processor's name, the cores that this process may use, the system, and versions of what computes."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers")},
    }


def processor() -> str:
    """Its name, as the system has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described(found: dict[str, Any]) -> str:
    """One line."""
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers") if found[name])
    return f"{found['processor']}, {found['cores']} hardware threads; Python {found['python']}, {versions}"


def _version(package: str) -> str | None:
    try:
        return version(package)  # without importing it
    except PackageNotFoundError:
        return None
