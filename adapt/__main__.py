"""`accelerate launch -m effconv.adapt REPO ...`: the command, once a process."""

from __future__ import annotations

import sys

from ..cli import main

if __name__ == "__main__":
    sys.argv = ["effconv", "adapt", *sys.argv[1:]]
    main()
