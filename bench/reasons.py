"""The reasons for an advice, one sentence each. Pure functions of text lengths and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import choices
from .choices import Advised, Lengths

QUALITY = (
    "This advice covers speed and memory, not quality. Measure similarity to the source with effconv fidelity, and "
    "recover quality with effconv adapt."
)
# Measured with `effconv retrieval`: docs/how-to/long-documents.md has the tables and the commands.
SEARCH = (
    "To find documents by short passages, whiten pieces: effconv pieces REPO --data YOUR-TEXTS makes a repo that does "
    "it in sentence-transformers (the source itself will do, too). With all-MiniLM-L6-v2 and documents of 2,042 tokens "
    "(R@1, vectors per document): whitened pieces 0.73 (one) and 0.88 (four), chunk maximum 0.64 (four), chunk average "
    "0.50 (one), LSG without training 0.50 (one) and 0.60 (four), positions of the source stretched to the whole "
    "length 0.46 (one). Convert where a model must read a whole text at once: to classify or tag it, or to rank it "
    "together with a query."
)


def none_needed(lengths: Lengths, limit: int, source: str) -> list[str]:
    """Why no conversion is needed, one sentence each."""
    beyond = lengths.longer(limit)
    return [
        f"No conversion is needed: {source} takes {limit:,} tokens, and texts truncated to that length keep "
        f"{lengths.covered(limit):.1%} of their tokens"
        + (f" ({beyond:.1%} of the texts are longer)." if beyond else " (no text is longer)."),
        f"Nothing was measured. For advice on a longer model, give --lengths above {limit:,}. "
        "For the cost of these texts, add --no-advice.",
    ]


def reasons(lengths: Lengths, limit: int, advised: Advised) -> list[str]:
    """The reasons, one sentence each."""
    length, chosen, batch, memory = advised.length, advised.chosen, advised.batch, advised.memory
    found = [
        f"Length {length:,}: texts truncated to it keep {lengths.covered(length):.1%} of their tokens "
        f"({lengths.covered(limit):.1%} at {limit:,}, the source's maximum)."
    ]
    if lengths.covered(length) < choices.COVERED:
        found.append(f"No allowed length keeps {choices.COVERED:.0%} of the tokens. Allow longer ones with --lengths.")
    if lengths.covered(limit) >= choices.COVERED:
        found.append("The source already takes these texts. Convert only for longer ones.")
    fitting = [probe for probe in advised.probes if choices.batch_for(probe, length, memory)]
    quickest = min(fitting, key=lambda probe: probe.time(length))
    found.append(
        f"{chosen.candidate.says(length)}: of the candidates that take at most {choices.WORTH:g} × the time of the "
        f"fastest ({quickest.candidate.says(length)}), this one has the longest reach "
        f"({chosen.candidate.reach(length):,} of {length:,} tokens)."
    )
    if chosen.candidate.full(length):
        found.append("At this length, smaller blocks would save too little time for the shorter reach.")
    share = chosen.memory(batch * length) / memory
    found.append(
        f"Batch size {batch}: uses {share:.0%} of the memory, with {choices.HEADROOM:.0%} kept free"
        + (f" (the largest advised is {choices.MOST})." if batch == choices.MOST else ".")
    )
    return [*found, *check_in_words(advised.check), QUALITY, SEARCH]


def check_in_words(check: Mapping[str, Any]) -> list[str]:
    """How far the measurement is from the prediction, and what that means."""
    tokens = f"{check['tokens']:,} tokens"
    if "failed" in check:
        return [f"The check at {tokens} failed ({check['failed']}): the figures for longer texts are estimates only."]
    off = {what: check[f"measured_{what}"] / check[f"predicted_{what}"] - 1 for what in ("bytes", "seconds")}
    memory, time = (f"{round(share, 2) + 0.0:+.0%}" for share in off.values())  # no -0%
    found = [f"Checked at {tokens}: memory {memory}, time {time} compared with the prediction."]
    if check["within_spread"] is None:
        found.append("One round has no spread: not enough rounds to tell whether that is noise. Give --rounds 3.")
    elif not check["within_spread"]:
        found.append(
            "The time is off by more than the spread of the rounds. Times of longer texts may be off by as much or "
            "more, and candidates with closer times cannot be ranked. Measure the converted repo with effconv bench, "
            "or run again on a less busy machine."
        )
    return found
