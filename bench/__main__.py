"""`python -m effconv.bench`, which is `make bench`: every measurement, one after the other."""

from __future__ import annotations

import os
import platform

from . import bigs, conversion, layers, lsg, mixed, startup


def main() -> None:
    """Prints the machine, then each measurement as it is made."""
    print(f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    startup.main()
    layers.main()
    lsg.main([])
    mixed.main()
    bigs.main()
    conversion.main()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
