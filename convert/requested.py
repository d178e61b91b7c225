"""`--drop`: stored tensors that are left behind on request, by patterns of their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import UsageError, listing


@dataclass(frozen=True, slots=True)
class Requested:
    """Patterns of stored names; `*` stands for any text.

    Raises:
        UsageError: from `check`, for a pattern that matches nothing, or a tensor that the new model needs.
    """

    patterns: tuple[str, ...] = ()

    def has(self, stored: str) -> bool:
        return any(fnmatchcase(stored, pattern) for pattern in self.patterns)

    def check(self, names: Collection[str], used: Iterable[str], model: str) -> None:
        """Refuses patterns without a match, and matches that the model needs.

        Args:
            names: of all stored tensors. used: of those that become tensors of the new model, whose class is `model`.
        """
        unmatched = [pattern for pattern in self.patterns if not any(fnmatchcase(name, pattern) for name in names)]
        if unmatched:
            raise UsageError(
                f"no stored tensor has a name like {', '.join(unmatched)}",
                where="--drop",
                hint="--plan without --drop lists the stored tensors",
            )
        needed = [name for name in used if self.has(name)]
        if needed:
            raise UsageError(
                f"{model} needs these tensors:\n{listing(needed)}",
                where="--drop",
                hint="give patterns of tensors that the model does without, or another head with --architecture",
            )
