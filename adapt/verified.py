"""The checks of a repo after a training, and what they leave in its manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..convert.options import Progress
from ..convert.repo.manifest import Measured
from ..convert.target import Target
from ..convert.verify.run import require_passed, run_checks


def verified(
    folder: Path,
    target: Target,
    manifest: dict[str, Any],
    *,
    source: Path | None,
    verify: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> list[Measured] | None:
    """Runs the target's checks and puts their results under the manifest's `measurements`. None if they are off.

    Args:
        source: to compare with. Without it no fidelity is kept: the measured one is of other weights.

    Raises:
        CheckFailedError: a check failed.
    """
    if not verify:
        manifest["measurements"] |= {"checks": "not run", "fidelity": []}
        return None
    progress("verify", 0, 0)
    measured, others = run_checks(
        folder,
        target,
        manifest,
        source=source,
        progress=lambda name: progress(f"verify: {name}", 0, 0),
        trust_remote_code=trust_remote_code,
    )
    require_passed(measured, target, "the training is kept: pass --resume --no-verify to write the repo without checks")
    kept = others if source is not None else {**others, "fidelity": []}
    manifest["measurements"] |= {"checks": [asdict(result) for result in measured], **kept}
    return measured
