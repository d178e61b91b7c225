"""The phases of a training run, from `--objective` or from the target's defaults. No heavy imports.

docs/how-to/adapt.md has what was measured with them. End to end, the rate is a quarter of that of attention transfer:
at the same one the held-out cosine of a Linformer of all-MiniLM-L6-v2 fell at once (0.928 to 0.881 within 50 steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..convert.errors import UsageError
from ..convert.positions import equal_positions
from ..convert.recipe import NEW_POSITIONS, Recipe
from ..convert.target import Target
from .options import AdaptOptions

OBJECTIVES = ("attention", "hidden", "logits", "sentence", "contrastive", "mlm")
WITHOUT_TEACHER = ("mlm",)
MATCHING = ("attention", "hidden", "logits", "sentence")  # which are 0 where a repo equals its source
ON_WINDOWS = ("hidden", "sentence", "contrastive", "mlm")  # those that go beyond the teacher's length, on its windows


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run: the objectives, whose losses are added, and its share of steps or budget (0 to 1)."""

    objectives: tuple[str, ...]
    share: float

    @property
    def name(self) -> str:
        return "+".join(self.objectives)

    @property
    def needs_teacher(self) -> bool:
        return any(objective not in WITHOUT_TEACHER for objective in self.objectives)


def recipe_of(target: Target, options: AdaptOptions) -> Recipe:
    """The target's recipe with what the options change of it."""
    given = {name: getattr(options, name) for name in ("objective", "train", "learning_rate", "new_learning_rate")}
    if options.learning_rate:  # whoever gives one means it for every phase, and for all that is trained
        given["end_to_end"] = 1.0
        given["new_learning_rate"] = options.new_learning_rate or options.learning_rate
    return replace(target.recipe, **{name: value for name, value in given.items() if value is not None})


def phases_of(objective: str) -> tuple[Phase, ...]:
    """The phases that a text such as `attention:0.4,hidden+mlm` names; those without a share divide what is left.

    Raises:
        UsageError: an unknown objective, or shares that do not add up to 1.
    """
    parts: list[tuple[tuple[str, ...], float | None]] = []
    for part in objective.split(","):
        names, colon, share = part.strip().partition(":")
        objectives = tuple(name.strip() for name in names.split("+"))
        unknown = [name for name in objectives if name not in OBJECTIVES]
        if unknown or len(set(objectives)) < len(objectives):
            why = (
                f"unknown objective {', '.join(map(repr, unknown))}" if unknown else f"{names} names an objective twice"
            )
            raise _no_objective("" if objective == "".join(unknown) else objective, why)
        try:
            given = float(share) if colon else None
        except ValueError:
            raise _no_objective(objective, f"the share of a phase must be a number, got {share!r}") from None
        parts.append((objectives, given))
    stated = sum(share for _, share in parts if share is not None)
    open_phases = sum(share is None for _, share in parts)
    left = (1 - stated) / open_phases if open_phases else 0.0
    phases = tuple(Phase(objectives, left if share is None else share) for objectives, share in parts)
    if any(phase.share <= 0 for phase in phases) or abs(sum(phase.share for phase in phases) - 1) > 1e-6:
        raise _no_objective(objective, "the shares of the phases must be positive and add up to 1")
    return phases


def phase_steps(phases: tuple[Phase, ...], steps: int) -> list[int]:
    """Whole steps of each phase; they add up to `steps`."""
    ends, passed = [], 0.0
    for phase in phases:
        passed += phase.share
        ends.append(round(passed * steps))
    ends[-1] = steps
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def training_lengths(
    target: Target, manifest: Mapping[str, Any], asked: tuple[int, ...] | None, phases: tuple[Phase, ...]
) -> tuple[int, ...]:
    """Tokens of training texts: those asked for, else halves of the longest, where the target differs from its source.

    The longest is what the repo takes and, with a teacher, what the teacher takes: beyond that, where objectives run it
    on windows, a length must be asked for.

    Args:
        manifest: of the repo.
        asked: `--lengths`.

    Raises:
        UsageError: a length is beyond the reach.
    """
    whole = int(manifest["max_length"])
    reach = whole
    if any(phase.needs_teacher for phase in phases):
        reach = min(whole, int(manifest["source_max_length"]))
    if asked is not None:
        objectives = {objective for phase in phases for objective in phase.objectives}
        most = whole if objectives <= set(ON_WINDOWS) else reach
        if max(asked) > most:
            of_repo = max(asked) > whole
            raise UsageError(
                f"texts of {max(asked)} tokens are too long: the {'repo' if of_repo else 'teacher'} takes {most}",
                where="--lengths",
                hint=f"give at most {most}"
                + ("" if of_repo else ", or only the objectives hidden and sentence, which run the teacher on windows"),
            )
        _check_contrastive(phases, asked, int(manifest["source_max_length"]))
        _check_exact(target, manifest, phases, asked)
        return asked
    exact = target.exact(manifest["options"])
    _check_contrastive(phases, (reach,), int(manifest["source_max_length"]))
    halves = [reach >> i for i in range(4) if reach >> i >= 32]
    chosen = tuple(sorted(length for length in halves or [reach] if length > exact)) or (reach,)
    _check_exact(target, manifest, phases, chosen)
    return chosen


def _check_exact(
    target: Target, manifest: Mapping[str, Any], phases: tuple[Phase, ...], lengths: tuple[int, ...]
) -> None:
    """Refuses texts on which the repo equals its source: the difference between the two is all that is trained."""
    exact = equal_up_to(target, manifest)
    if max(lengths) <= exact and all(set(phase.objectives) <= set(MATCHING) for phase in phases):
        longest = int(manifest["max_length"])
        objectives = f"hidden with --lengths above {exact}, or mlm" if exact < longest else "mlm"
        raise UsageError(
            f"nothing to train: on texts of up to {exact} tokens the repo equals its source",
            where="--lengths, --objective",
            hint=f"pass --objective {objectives}",
        )


def require_beyond_the_source(train: str, manifest: Mapping[str, Any], lengths: tuple[int, ...]) -> None:
    """Refuses to train new positions on texts that use none.

    Raises:
        UsageError: no length is beyond the source's.
    """
    reach, whole = int(manifest["source_max_length"]), int(manifest["max_length"])
    if train in NEW_POSITIONS and max(lengths) <= reach:
        raise UsageError(
            f"nothing to train: texts of up to {reach} tokens have no position that the source does not have",
            where=f"--train {train}, --lengths",
            hint=f"give longer texts, such as --lengths {min(2 * reach, whole)}"
            if whole > reach
            else "convert the source with a larger --max-len",
        )


def equal_up_to(target: Target, manifest: Mapping[str, Any]) -> int:
    """Tokens up to which a repo equals its source, as its checks have shown; 0 where it does not."""
    exact = target.exact(manifest["options"])
    return exact if exact and not manifest.get("adapted") and not equal_positions(manifest) else 0


def _check_contrastive(phases: tuple[Phase, ...], lengths: tuple[int, ...], reach: int) -> None:
    found = [phase for phase in phases if "contrastive" in phase.objectives]
    if found and max(lengths) <= reach:
        raise UsageError(
            f"contrastive needs texts longer than the {reach} tokens that the teacher takes",
            where="--lengths",
            hint=f"give longer texts, such as --lengths {reach},{4 * reach}",
        )
    if any(len(phase.objectives) == 1 for phase in found) and min(lengths) <= reach:
        raise UsageError(
            f"contrastive alone trains nothing on texts of up to {reach} tokens",
            where="--objective, --lengths",
            hint="give --objective hidden+contrastive, or longer texts",
        )


def _no_objective(objective: str, why: str) -> UsageError:
    return UsageError(
        f"{objective!r}: {why}" if objective else why,
        where="--objective",
        hint=f"combine {', '.join(OBJECTIVES)}, for example hidden+mlm or attention:0.4,hidden. "
        "effconv pretrain has mlm+nsp, mlm+sop and clm",
    )
