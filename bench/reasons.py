"""Why an advice is what it is: a sentence each, from lengths of texts and measurements. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import choices
from .choices import Advised, Lengths

QUALITY = (
    "This is advice on speed and memory, not on quality: effconv fidelity measures how close the converted model stays "
    "to its source, and effconv adapt wins quality back."
)


def none_needed(lengths: Lengths, limit: int, source: str) -> list[str]:
    """Why nothing is to be converted, a sentence each."""
    beyond = lengths.longer(limit)
    return [
        f"No conversion is needed: {source} takes {limit:,} tokens as it is, and texts cut there keep "
        f"{lengths.covered(limit):.1%} of their tokens"
        + (f" ({beyond:.1%} of them are longer)." if beyond else "; none is longer."),
        f"Nothing was measured. For advice on a longer model all the same, give --lengths beyond {limit:,}.",
    ]


def reasons(lengths: Lengths, limit: int, advised: Advised) -> list[str]:
    """Why, a sentence each."""
    length, chosen, batch, memory = advised.length, advised.chosen, advised.batch, advised.memory
    found = [
        f"Length {length:,}: texts cut there keep {lengths.covered(length):.1%} of their tokens "
        f"(at {limit:,}, where the source stops, {lengths.covered(limit):.1%})."
    ]
    if lengths.covered(length) < choices.COVERED:
        found.append(f"No allowed length keeps {choices.COVERED:.0%}: give longer ones with --lengths.")
    if lengths.covered(limit) >= choices.COVERED:
        found.append("The source takes these texts as it is: only longer ones would need the conversion.")
    fitting = [probe for probe in advised.probes if choices.batch_for(probe, length, memory)]
    quickest = min(fitting, key=lambda probe: probe.time(length))
    found.append(
        f"{chosen.candidate.says(length)}: of what takes at most {choices.WORTH:g} × the time of the fastest "
        f"({quickest.candidate.says(length)}), it reaches most ({chosen.candidate.reach(length):,} of {length:,} "
        "tokens)."
    )
    if chosen.candidate.full(length):
        found.append("At this length blocks save too little to give up reach for.")
    share = chosen.memory(batch * length) / memory
    found.append(
        f"Batch {batch}: takes {share:.0%} of the memory, and {choices.HEADROOM:.0%} are kept free"
        + (f"; more than {choices.MOST} is not advised." if batch == choices.MOST else ".")
    )
    return [*found, *check_in_words(advised.check), QUALITY]


def check_in_words(check: Mapping[str, Any]) -> list[str]:
    """How far the prediction is from what was measured, and what that means."""
    tokens = f"{check['tokens']:,} tokens"
    if "failed" in check:
        return [f"The check at {tokens} failed ({check['failed']}): what is said of longer texts is a guess."]
    off = {what: check[f"measured_{what}"] / check[f"predicted_{what}"] - 1 for what in ("bytes", "seconds")}
    memory, time = (f"{round(share, 2) + 0.0:+.0%}" for share in off.values())  # no -0%
    found = [f"Checked at {tokens}: memory {memory}, time {time} against what the probes predict."]
    if check["within_spread"] is None:
        found.append("One round has no spread: not enough rounds to tell whether that is noise; give --rounds 3.")
    elif not check["within_spread"]:
        found.append(
            "That time is off by more than the rounds differ: seconds of longer texts may be off by as much or more, "
            "and candidates that lie closer together than that are not told apart. Measure the converted repo itself "
            "with effconv bench, or ask again on a quieter machine."
        )
    return found
