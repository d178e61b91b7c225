"""What a newcomer writes to add a target: one `Target`, which says in data and pure functions what a source becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedError
from .family import Config, Family, Head, Weight
from .formats import SAFETENSORS, Form
from .modelcode import StandaloneCode, TargetCode
from .ops import Copy, Op
from .tokenizer import SpecialTokens

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .options import Settings
    from .plan import Plan
    from .source import Source


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a recipe: canonical names in, one canonical name out, and the operation between.

    `why` is required for a tensor that the source does not have.
    """

    src: tuple[str, ...]
    dst: str
    op: Op = Copy()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """All that a target may look at: no file, no network, no clock.

    Attributes:
        family, head: of the source. emits, emitted_head: of the emitted model, the same but for targets with a model of
            their own.
        config: the source's config.json. emitted: the new config (set once `Target.config` has made it).
        tokens: ids of the special tokens that the tokenizer names.
        options: the target's own options object.
    """

    family: Family
    head: Head
    config: Config
    options: Any
    tokens: SpecialTokens
    seed: int
    emitted: Config
    emits: Family
    emitted_head: Head


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration found: float32 values by canonical name, and a record of text and method for the manifest."""

    values: Mapping[str, Any]
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """An equality that a target promises.

    Attributes:
        name: as it stands in the manifest.
        function: `module:function`, imported in the process that loads the repo; takes a `Loaded`, returns findings.
        says: one line for the card.
        tolerance: t of max |a - b| <= t max(1, max |b|), in float32, over real tokens.
        applies: whether the promise holds for this manifest's options (and, where it does not, why).
    """

    name: str
    function: str
    says: str
    tolerance: float
    applies: Callable[[Mapping[str, Any]], str] = lambda manifest: ""

    def limited(self, applies: Callable[[Mapping[str, Any]], str]) -> Check:
        """The same check, with a say on where it applies."""
        return replace(self, applies=applies)


@dataclass(frozen=True, slots=True)
class Target:
    """What a source can become.

    Attributes:
        families: names of the families it takes.
        options: dataclass of its options, every field with a default.
        config: the emitted config's own fields.
        weights: tensors of the emitted model beyond (or, by name, instead of) the family's.
        rules: the tensors that are not plain copies.
        calibration: `module:function` that finds the values of calibrated rows; it is imported only when a conversion
            runs, takes the context, the source's folder and a progress callback, and returns a `Calibration`.
        emits: the family of the emitted model, where it is not the source's with another attention.
        emitted_suffix: which of its heads has all that a head of the source has; "" where none has.
        drops: canonical names of tensors that are left behind, with the reason.
        variant: name of the target that takes over for certain options; "" for this one.
        command: of effconv that makes it; "" where it is called as the target. chosen_by: the option that chooses it
            there, where the command makes another target without.
        causal: whether a token can be kept from seeing later ones. Where not, decoders are refused, and the repo has no
            class for causal heads.
        prepare: opens and plans a source, where the common way does not serve: a target that changes frameworks.
        model_types, formats: of the sources that `prepare` takes: as config.json has them, and of `reader.FILES`.
        form: how the weights are stored.
        again: whether it takes repos that it made already (or that its published converter made).
        complete: the options with those filled in that were left open, from the source's config.
        upgraded: of a repo that it takes again, what it was, for card and manifest; {} for a dense source.
        ending: of the default folder's name, for a target whose length is the source's unless it is asked for.
    """

    name: str
    says: str
    families: tuple[str, ...]
    options: type
    code: TargetCode | StandaloneCode
    config: Callable[[Context], dict[str, Any]]
    weights: Callable[[Context], Sequence[Weight]]
    rules: Callable[[Context], Sequence[Rule]]
    checks: tuple[Check, ...]
    calibration: str = ""
    emits: Family | None = None
    emitted_suffix: Callable[[str], str] = lambda suffix: suffix
    drops: Callable[[Context], Mapping[str, str]] = lambda context: {}
    variant: Callable[[Any], str] = lambda options: ""
    command: str = ""
    chosen_by: str = ""
    causal: bool = False
    prepare: Callable[[Source, Target, Any, Settings, bool], tuple[Checkpoint, Context, Plan]] | None = None
    model_types: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("safetensors", "bin")
    form: Form = SAFETENSORS
    again: bool = False
    complete: Callable[[Any, Config], Any] = lambda options, config: options
    upgraded: Callable[[Context], Mapping[str, Any]] = lambda context: {}
    ending: str = ""

    @property
    def asked_for(self) -> str:
        """How the command line asks for it: its command, and the option that chooses it there."""
        return " ".join(part for part in (self.command or self.name, self.chosen_by) if part)

    def folder(self, source: str, options: Any) -> str:
        """The default output folder."""
        if self.ending:
            return "-".join(str(part) for part in (source, self.ending, options.max_length) if part)
        if self.again and source.startswith(f"{self.name}-"):  # named by this very rule, with its old length
            source = re.sub(r"-\d+$", "", source.removeprefix(f"{self.name}-"))
        return f"{self.name}-{source}-{options.max_length}"

    def heads(self, family: Family) -> tuple[Head, ...]:
        """The heads that an emitted repo has classes for."""
        return tuple(head for head in family.heads if self.causal or not head.causal)

    def takes(self, family: Family, head: Head, config: Config) -> bool:
        """Whether such a source can become this: where all positions are mixed, a decoder cannot."""
        causal = config.get("is_decoder") or (head.causal and self.emits is None)  # a model of its own has other heads
        allowed = self.causal or not causal
        return family.name in self.families and allowed

    def keeps(self, head: Head, unknown_class: str | None = None) -> bool:
        """Whether the emitted model has all that a source's head has: one with a model of its own may lack the head."""
        return self.emits is None or bool(unknown_class is None and self.emitted_suffix(head.suffix))

    def emitted_head(self, family: Family, head: Head, unknown_class: str | None, architecture: str | None) -> Head:
        """The head to emit for a source with `head`: of a target with a model of its own, one of that model's.

        Raises:
            UsageError: `architecture` names a head that the target's own model does not have.
            UnsupportedError: the source's head has no counterpart, and nobody has said which head to emit instead.
        """
        if self.emits is None:
            return head
        if architecture is not None:
            return self.emits.head_asked_for(architecture)
        if not self.keeps(head, unknown_class):
            heads = ", ".join(own.suffix for own in self.emits.heads)
            raise UnsupportedError(
                f"{self.asked_for} has no {unknown_class or family.class_name(head)}: "
                "what the source has beyond the encoder would be lost",
                where="config.json: architectures",
                hint=f"say which head to emit: --architecture with one of {heads}",
            )
        return self.emits.head(self.emitted_suffix(head.suffix))

    def check_takes(self, family: Family, head: Head, config: Config) -> None:
        """Raises UnsupportedError for a decoder that the target does not take."""
        if self.takes(family, head, config):
            return
        decoder = bool(config.get("is_decoder"))
        raise UnsupportedError(
            f"{self.name} mixes all positions, so a token of a decoder would see later ones",
            where="config.json: is_decoder" if decoder else f"the head {family.class_name(head)}",
            hint="convert it with a target that can be causal (lsg, transnormer)"
            + ("" if decoder else ", or emit another head (--architecture ForMaskedLM)"),
        )


PADDING_CHANGES_NOTHING = Check(
    "padding_changes_nothing",
    "effconv.convert.checks:padding_changes_nothing",
    "padding and other texts in the batch do not change a text's outputs",
    1e-5,
)
SAVED_AGAIN_EQUAL = Check(
    "saved_again_equal",
    "effconv.convert.checks:saved_again_equal",
    "saved with save_pretrained and loaded again, the model has the same tensors bit for bit, and the same outputs",
    1e-6,  # outputs alone: weights that lie at other addresses change the last bit of a product
)
