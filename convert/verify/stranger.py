"""The fresh process that checks a repo: reads a job from stdin, loads the repo, prints results as JSON.

Run as `python -m effconv.convert.verify.stranger` by `verify.run_checks`, never by hand.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import BadInputError
from .loaded import DoesNotApply, Loaded
from .run import NOT_FINITE, PREFIX
from .token_checks import RECORD


def run_check(loaded: Loaded, check: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one check. An exception in the repo's code is a failed check."""
    module, _, function = check["function"].partition(":")
    result = {"name": check["name"], "says": check["says"], "tolerance": check["tolerance"]}
    try:
        value, details = getattr(importlib.import_module(module), function)(loaded)
    except DoesNotApply as reason:
        return {**result, "passed": None, "value": None, "why": f"does not apply: {reason}", "details": {}}
    except Exception as error:
        return {
            **result,
            "passed": False,
            "value": None,
            "why": str(error)[:900] if type(error) is AssertionError else f"{type(error).__name__}: {str(error)[:600]}",
            "details": {},
        }
    if check["tolerance"] is None:
        return {**result, "passed": True, "value": None, "why": "", "details": details}
    passed = value <= check["tolerance"]  # False for NaN
    why = "" if passed else f"differs by {value:.3g}, the tolerance is {check['tolerance']:g}"
    return {**result, "passed": passed, "value": value, "why": why, "details": details}


def gives_nan(result: Mapping[str, Any]) -> bool:
    """Whether a check failed because an output is NaN or infinite."""
    return "NaN" in result["why"] or (result["value"] is not None and not math.isfinite(result["value"]))


def main() -> None:
    """Runs the job on stdin."""
    job = json.load(sys.stdin)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    source = Path(job["source"]) if job["source"] else None
    loaded = Loaded(Path(job["repo"]), source, job["manifest"], job["trust_remote_code"])
    results = []
    for check in job["checks"]:
        _say({"begins": check["name"]})
        results.append(run_check(loaded, check))
    fidelity = []
    failed = [result for result in results if result["passed"] is False]
    undefined = [result for result in failed if gives_nan(result)]
    if undefined and (names := loaded.not_finite()):
        for result in undefined:
            result["details"][NOT_FINITE] = names
    if loaded.manifest.get("dense_source", True) and source and not failed:
        from .fidelity import builtin_fidelity, file_fidelity

        _say({"begins": "fidelity"})
        try:
            fidelity = file_fidelity(loaded, **job["fidelity"]) if "fidelity" in job else builtin_fidelity(loaded)
        except BadInputError as error:  # the user's text
            return _say({"refused": {"what": error.what, "where": error.where, "hint": error.hint}})
        except DoesNotApply as reason:  # a tokenizer that does not load here
            if "fidelity" in job:
                return _say({"refused": {"what": str(reason), "where": str(loaded.repo), "hint": ""}})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = [result["details"].pop("record") for result in results if "record" in result["details"]]
    records = {RECORD: found[0]} if found else {}
    return _say({"checks": results, "fidelity": fidelity, "versions": versions, "records": records})


def _say(message: Mapping[str, Any]) -> None:
    print(f"\n{PREFIX}{json.dumps(message)}", flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is said; to take torch and transformers down module by module would keep the user waiting
