"""`accelerate launch -m effconv.pretrain REPO ...`: the command, in every process."""

from __future__ import annotations

import sys

from ..cli import main

if __name__ == "__main__":
    sys.argv = ["effconv", "pretrain", *sys.argv[1:]]
    main()
