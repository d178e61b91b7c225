"""How repos of a target are trained by default, as data: `effconv adapt` reads it from the target."""

from __future__ import annotations

from dataclasses import dataclass

NEW_POSITIONS = ("positions", "offsets")  # values of `train` that leave every position of the source as it is


@dataclass(frozen=True, slots=True)
class Recipe:
    """The defaults of a target: phases as `--objective` writes them, what is trained, peak learning rates.

    `learning_rate` is that of weights that came from the source, `new_learning_rate` that of the target's own. Phases
    that go end to end take `end_to_end` of them: there a change in one layer passes through all that follow.
    """

    objective: str
    train: str = "attention"
    learning_rate: float = 3e-4
    new_learning_rate: float = 5e-4
    end_to_end: float = 0.25

    def rate(self, objectives: tuple[str, ...], own: bool) -> float:
        """The peak learning rate in a phase with these objectives, of weights of the source or of the target's own."""
        peak = self.new_learning_rate if own else self.learning_rate
        return peak if objectives == ("attention",) else peak * self.end_to_end
