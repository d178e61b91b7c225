"""What a newcomer writes to add a target: one `Target`, which says in data and pure functions what a source becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import UnsupportedError
from .families.grammar import Config, Family, Head, Weight
from .families.registry import families_for
from .io.formats import SAFETENSORS, Form
from .io.tokenizer import SpecialTokens
from .ops import Copy, Op
from .recipe import NEW_POSITIONS, Recipe
from .repo.modelcode import Code


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a recipe: canonical names in, one canonical name out, and the operation between.

    A stored tensor is taken under its canonical name whichever side it comes from, torch or JAX, and the plan adds what
    it goes through from one side to the other. `why` is required for a tensor that the source does not have.
    """

    src: tuple[str, ...]
    dst: str
    op: Op = Copy()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a target may use. It reads no file, network or clock.

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
class Scratch:
    """How a target's model with random weights begins, where that differs from a conversion.

    Attributes:
        family: of the model, where none is asked for.
        defaults: values of options that are not those of a conversion.
        idle: options that say how a source is taken over, and so do not apply.
        rules: the tensors that do not begin as their `Weight.init` says.
    """

    family: str = "bert"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    rules: Callable[[Context], Sequence[Rule]] = lambda context: ()


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a property that the target guarantees.

    Attributes:
        name: its name in the manifest.
        function: `module:function`, imported in the process that loads the repo; takes a `Loaded`, returns findings.
        says: one line for the card.
        tolerance: t of max |a - b| <= t max(1, max |b|), in float32, over real tokens; None where nothing is measured
            and the function raises for what is wrong.
        applies: whether the promise holds for this manifest's options (and, where it does not, why).
        needs_source: whether it compares with the source, so that it is left out where none is given.
        means: a possible cause of a failure, as a clause: "a tensor was copied to the wrong place".
    """

    name: str
    function: str
    says: str
    tolerance: float | None
    applies: Callable[[Mapping[str, Any]], str] = lambda manifest: ""
    needs_source: bool = False
    means: str = ""

    def left_out(self, manifest: Mapping[str, Any]) -> str:
        """Why a repo is not held to the promise; "" where it is.

        Training changes the weights, whoever did it: from then on nothing that compares with the source is promised,
        and everything else still is. Where only positions beyond the source's length were trained, no text that the
        source takes uses what changed. A repo that began with random weights never had a source.
        """
        if self.needs_source and (manifest.get("source") or {}).get("random"):
            return "the repo began with random weights: there is no source"
        if self.needs_source and not all(map(_short_texts_stay, manifest.get("adapted", ()))):
            return "trained after the conversion"
        return self.applies(manifest)

    def by(self, function: str) -> Check:
        """The same check, by a target's own function."""
        return replace(self, function=function)

    def limited(self, applies: Callable[[Mapping[str, Any]], str]) -> Check:
        """The same check, with a say on where it applies."""
        return replace(self, applies=applies)


def _short_texts_stay(training: Mapping[str, Any]) -> bool:
    """Whether a training left the outputs for all texts that the source takes as they were."""
    return training.get("train") in NEW_POSITIONS and not training.get("options", {}).get("whiten")


@dataclass(frozen=True, slots=True)
class Target:
    """What a source can become.

    Attributes:
        can: what it does beyond plain attention of one encoder, of `NEEDS`. It takes every family that needs no more.
        only: names of the families it takes, where they are others than that.
        options: dataclass of its options, every field with a default.
        config: the emitted config's own fields.
        weights: tensors of the emitted model beyond (or, by name, instead of) the family's.
        rules: the tensors that are not plain copies.
        recipe: how `effconv adapt` trains its repos unless it is asked otherwise.
        exact: tokens up to which a repo with these options equals its source; 0 where it does not.
        label: these options in a few words, for a table; "" for the target's name.
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
        reads: the weight formats it can read (keys of `reader.FILES`), in order of preference.
        weights_format: the format in which it writes weights.
        whole_config: whether `config` gives all of config.json, so that nothing of the source's is carried over.
        new_last: whether tensors that the source lacks are written after its own, not before them.
        accepts_converted: whether it accepts repos already converted to it, by effconv or by its published converter.
        resolve_options: fills in the options that were not given, from the source's config.
        upgraded: of a repo that it takes again, what it was, for card and manifest; {} for a dense source.
        scratch: how a model with random weights begins (`effconv new`); None where there is no such model.
        folder_suffix: appended to the source's name to name the default output folder, for a target that keeps the
            source's length unless another is given. If the source's name ends in it, only the length is appended, or
            the target's name where no length is given.
    """

    name: str
    summary: str
    options: type
    code: Code
    config: Callable[[Context], dict[str, Any]]
    weights: Callable[[Context], Sequence[Weight]]
    rules: Callable[[Context], Sequence[Rule]]
    checks: tuple[Check, ...]
    only: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    recipe: Recipe = Recipe("mlm", train="all", learning_rate=1e-4, end_to_end=1.0)
    exact: Callable[[Mapping[str, Any]], int] = lambda options: 0
    label: Callable[[Mapping[str, Any]], str] = lambda options: ""
    calibration: str = ""
    emits: Family | None = None
    emitted_suffix: Callable[[str], str] = lambda suffix: suffix
    drops: Callable[[Context], Mapping[str, str]] = lambda context: {}
    variant: Callable[[Any], str] = lambda options: ""
    command: str = ""
    chosen_by: str = ""
    causal: bool = False
    reads: tuple[str, ...] = ("safetensors", "bin")
    weights_format: Form = SAFETENSORS
    whole_config: bool = False
    new_last: bool = False
    accepts_converted: bool = False
    resolve_options: Callable[[Any, Config], Any] = lambda options, config: options
    upgraded: Callable[[Context], Mapping[str, Any]] = lambda context: {}
    folder_suffix: str = ""
    scratch: Scratch | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families it takes."""
        return self.only or families_for(self.can)

    @property
    def asked_for(self) -> str:
        """How the command line asks for it: its command, and the option that chooses it there."""
        return " ".join(part for part in (self.command or self.name, self.chosen_by) if part)

    @property
    def brings(self) -> Family | None:
        """A family that only this target reads, beside those of `families.FAMILIES`."""
        return self.emits if self.emits is not None and self.emits.name in self.families else None

    def folder(self, source: str, given: Any, options: Any) -> str:
        """The default output folder.

        Args:
            given: the options as they were given. options: with a value for each that was left open.
        """
        if self.folder_suffix:
            doubled = source.endswith(f"-{self.folder_suffix}")
            suffix = "" if doubled and given.max_length else self.name if doubled else self.folder_suffix
            return "-".join(str(part) for part in (source, suffix, given.max_length) if part)
        if self.accepts_converted and source.startswith(f"{self.name}-"):  # the default name of a conversion
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
            return self.emits.head_asked_for(architecture, self.name)
        if not self.keeps(head, unknown_class):
            heads = ", ".join(own.suffix for own in self.emits.heads)
            raise UnsupportedError(
                f"{self.asked_for} has no {unknown_class or family.class_name(head)}: "
                "the head of the source would be lost",
                where="config.json: architectures",
                hint=f"choose the head to emit with --architecture: {heads}",
            )
        return self.emits.head(self.emitted_suffix(head.suffix))

    def check_takes(self, family: Family, head: Head, config: Config) -> None:
        """Raises UnsupportedError for a decoder that the target does not take."""
        if self.takes(family, head, config):
            return
        decoder = bool(config.get("is_decoder"))
        raise UnsupportedError(
            f"{self.name} attention is never causal, so a token of a decoder would see later tokens",
            where="config.json: is_decoder" if decoder else f"the head {family.class_name(head)}",
            hint="use a target that can be causal, such as lsg"
            + ("" if decoder else ", or emit another head (--architecture ForMaskedLM)"),
        )


PADDING_CHANGES_NOTHING = Check(
    "padding_changes_nothing",
    "effconv.convert.verify.checks:padding_changes_nothing",
    "padding and the other texts of a batch do not change a text's outputs",
    1e-5,
    means="a token attends to padding, so the same text gives other outputs in another batch",
)
SAVED_AGAIN_EQUAL = Check(
    "saved_again_equal",
    "effconv.convert.verify.checks:saved_again_equal",
    "after save_pretrained and from_pretrained, all tensors are bit-identical and the outputs are equal",
    1e-6,  # outputs alone: weights that lie at other addresses change the last bit of a product
    means="saving loses or changes a tensor, so a fine-tuned model would not load as it was saved",
)


SAME_TOKENS = Check(
    "same_tokens",
    "effconv.convert.verify.token_checks:same_tokens",
    "the tokenizer gives the source's ids, masks and special tokens for many scripts, pairs, long and empty texts",
    None,
    means="the tokenizer's class or one of its files is not the source's",
)
SAME_EMBEDDING = Check(
    "same_embedding",
    "effconv.convert.verify.sentence_checks:same_embedding",
    "with the source's attention restored, SentenceTransformer gives the source's embedding for every prompt",
    1e-5,
    needs_source=True,
    means="a module, a prompt or a setting of the sentence encoder was lost or changed",
)

STOCK_ATTENTION = Check(
    "stock_attention_equals_source",
    "effconv.convert.verify.family_checks:stock_attention_equals_source",
    "with plain softmax attention restored, every head gives the source's outputs",
    1e-5,
    needs_source=True,
    means="the source's attention is more than softmax of q and k, or a tensor was copied to the wrong place",
)
EVERY_TENSOR_READ = Check(
    "every_tensor_read",
    "effconv.convert.verify.family_checks:every_tensor_read",  # a target names the length that uses all of its tensors
    "every tensor of the weights affects an output",
    None,
    means="the source's family has a component that the repo's code lacks",
)
RUNS_AT_FULL_LENGTH = Check(
    "runs_at_full_length",
    "effconv.convert.verify.family_checks:runs_at_full_length",
    "an input of the maximum length runs and stays within the position table",
    None,
    means="the source numbers its positions from another offset than its family",
)


def common_checks(
    applies_to_padding: Callable[[Mapping[str, Any]], str] = lambda manifest: "", **own: str
) -> tuple[Check, ...]:
    """The checks of every target that replaces attention, in addition to its own equalities.

    Args:
        applies_to_padding: where padding changes something, as `Check.applies`.
        own: by a check's name, the target's own function for it, as `module:function`.
    """
    checks = (
        PADDING_CHANGES_NOTHING.limited(applies_to_padding),
        SAVED_AGAIN_EQUAL,
        STOCK_ATTENTION,
        EVERY_TENSOR_READ,
        RUNS_AT_FULL_LENGTH,
        SAME_TOKENS,
        SAME_EMBEDDING,
    )
    return tuple(check.by(own[check.name]) if check.name in own else check for check in checks)
