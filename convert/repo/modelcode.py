"""The code of an emitted repo: files copied as they are, and two thin ones rendered for a family and a target.

A class is named by the target's prefix before the stock name: LSGBertForMaskedLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources

from ... import templates
from ..families.code import FamilyCode

TEMPLATES = templates.__name__
CORE = "efficient_encoder"  # what every target's encoder is built on
BASE_SUFFIX = "Model"
LINE = 120  # characters
CAUSAL_AUTO = "AutoModelForCausalLM"
SEQ2SEQ_CORE = ("AdaptedModel", "visible_tokens")  # what the modeling file of an encoder and a decoder uses of it


@dataclass(frozen=True, slots=True)
class Seq2SeqCode:
    """A target's parts for models of an encoder and a decoder.

    Args:
        template: of the classes of the encoder and the base model. config_mixin: of the config.
    """

    template: str
    config_mixin: tuple[str, str]


@dataclass(frozen=True, slots=True)
class BiasedCode:
    """A target's parts for families whose attention adds a bias to scores; each as (module, class)."""

    self_attention: tuple[str, str]
    attention: tuple[str, str]
    encoder_mixin: tuple[str, str]
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TargetCode:
    """What the rendered files need to know of a target; a part of it is named as (module, class).

    Args:
        name: in file names and model types, such as `lsg`.
        class_prefix: of the emitted classes, such as `LSG`.
        attention: the module that takes the place of a layer's attention, between its projections.
        encoder_mixin: the target's `EncoderMixin`.
        config_mixin: the target's fields of the config.
        others: further modules that the repo needs, each with a name to import from it.
        package: where its own files are, among them card_NAME.md.jinja, the part of the card on its attention.
        seq2seq: what takes the place of some of these in models of an encoder and a decoder, where it takes them.
        biased: likewise for families with a bias on scores.
        self_attention: the module with the projections, around the attention.
        head_mixin: the target's `HeadMixin`.
    """

    name: str
    class_prefix: str
    attention: tuple[str, str]
    encoder_mixin: tuple[str, str]
    config_mixin: tuple[str, str]
    others: tuple[tuple[str, str], ...] = ()
    package: str = TEMPLATES
    seq2seq: Seq2SeqCode | None = None
    biased: BiasedCode | None = None
    self_attention: tuple[str, str] = (CORE, "EfficientSelfAttention")
    head_mixin: tuple[str, str] = (CORE, "HeadMixin")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are copied as they are."""
        parts = (
            self.self_attention,
            self.attention,
            self.encoder_mixin,
            self.head_mixin,
            self.config_mixin,
            *self.others,
        )
        return tuple(f"{module}.py" for module in sorted({CORE, *(module for module, _ in parts)}))

    def for_family(self, family: FamilyCode) -> TargetCode:
        """The parts that a family needs."""
        code = self
        if family.score_bias and self.biased is not None:
            parts = self.biased
            code = replace(
                code,
                self_attention=parts.self_attention,
                attention=parts.attention,
                encoder_mixin=parts.encoder_mixin,
                others=(*code.others, *parts.others, code.attention),
            )
        if family.config_fields:
            code = replace(code, others=(*code.others, family.config_fields))
        if family.encoder and self.seq2seq is not None:
            code = replace(code, config_mixin=self.seq2seq.config_mixin)
        return code


@dataclass(frozen=True, slots=True)
class StandaloneCode:
    """A target whose repos bring a model of their own: files that are copied as they are, nothing rendered.

    Args:
        model_type: as in config.json and in the config class.
        module: where the models are. config: `module.Class` of the config.
        files: all files of the repo's code.
        auto: whether transformers' Auto classes load them.
    """

    model_type: str
    module: str
    config: str
    files: tuple[str, ...]
    class_prefix: str = ""
    auto: bool = True
    package: str = TEMPLATES


@dataclass(frozen=True, slots=True)
class StockCode:
    """A target whose repos are plain models of transformers: they bring no code."""

    files: tuple[str, ...] = ()
    class_prefix: str = ""
    package: str = TEMPLATES


Code = TargetCode | StandaloneCode | StockCode


@dataclass(frozen=True, slots=True)
class Names:
    """Files and classes of a pair of family and target."""

    configuration_module: str
    modeling_module: str
    model_type: str
    config: str
    attention: str
    model: str
    encoder: str


def names(family: FamilyCode, target: TargetCode) -> Names:
    """How the files and classes of the pair are called."""
    prefix = target.class_prefix + family.class_prefix
    return Names(
        configuration_module=f"configuration_{target.name}_{family.module}",
        modeling_module=f"modeling_{target.name}_{family.module}",
        model_type=f"{target.name}-{family.model_type}",
        config=f"{prefix}Config",
        attention=f"{prefix}SelfAttention",
        model=f"{prefix}{BASE_SUFFIX}",
        encoder=f"{prefix}Encoder",
    )


def model_type(family: FamilyCode, target: Code) -> str:
    """The emitted config's model_type, which no stock model has unless the repo is one."""
    if isinstance(target, StockCode):
        return family.model_type
    return target.model_type if isinstance(target, StandaloneCode) else names(family, target).model_type


def class_name(family: FamilyCode, target: Code, suffix: str) -> str:
    """The emitted class of a head, such as LSGBertForMaskedLM."""
    return target.class_prefix + family.class_prefix + suffix


def auto_map(family: FamilyCode, target: TargetCode | StandaloneCode, heads: Mapping[str, str]) -> dict[str, str]:
    """`auto_map` of config.json: which class each Auto class loads.

    Args:
        family: of the source.
        target: what it becomes.
        heads: suffix of the stock class ("Model", "ForMaskedLM") to its Auto class.
    """
    if isinstance(target, StandaloneCode):
        classes = {auto: class_name(family, target, suffix) for suffix, auto in heads.items()}
        return {"AutoConfig": target.config, **{auto: f"{target.module}.{name}" for auto, name in classes.items()}}
    of = names(family, target)
    return {
        "AutoConfig": f"{of.configuration_module}.{of.config}",
        **{auto: f"{of.modeling_module}.{class_name(family, target, suffix)}" for suffix, auto in heads.items()},
    }


def read_template(file: str, package: str) -> str:
    """A file that repos are made of: one of a target's own package, or one that all targets share."""
    own = resources.files(package) / file
    return (own if own.is_file() else resources.files(templates) / file).read_text(encoding="utf-8")


def render(family: FamilyCode, target: Code, heads: Mapping[str, str]) -> dict[str, str]:
    """All code files of an emitted repo as {name: text}.

    Args:
        family: of the source.
        target: what it becomes.
        heads: suffix of the stock class ("Model", "ForMaskedLM") to its Auto class.
    """
    if isinstance(target, TargetCode):
        target = target.for_family(family)
    copied = {file: read_template(file, target.package) for file in target.files}
    if not isinstance(target, TargetCode):
        return copied
    import jinja2

    of = names(family, target)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: read_template(name, target.package)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    used, others = _imports(family, target, heads)
    classes = {of.model, *(class_name(family, target, suffix) for suffix in heads)}
    values = {
        "family": family,
        "target": target,
        "names": of,
        "stock_classes": sorted(family.class_prefix + suffix for suffix in {BASE_SUFFIX, *heads}),
        "imports": [
            (
                module,
                _wrapped(module, sorted((name for other, name in used + others if other == module), key=_as_linted)),
            )
            for module in sorted({module for module, _ in used + others})
        ],
        # Classes before functions, as the linter sorts them.
        "exported": sorted(classes | {name for _, name in others}, key=lambda name: (name[0].islower(), name)),
        "heads": [
            (
                family.class_prefix + suffix,
                class_name(family, target, suffix),
                suffix in family.decoder_heads,
                mixin_of(family, target, suffix, auto)[1],
            )
            for suffix, auto in heads.items()
            if suffix != BASE_SUFFIX
        ],
        "quoted": lambda words: ", ".join(f'"{word}"' for word in words),
    }
    rendered = {
        f"{module}.py": environment.get_template(template).render(values)
        for module, template in (
            (of.configuration_module, "configuration.py.jinja"),
            (of.modeling_module, "modeling.py.jinja"),
        )
    }
    return {**copied, **rendered}


def mixin_of(family: FamilyCode, target: TargetCode, suffix: str, auto: str) -> tuple[str, str]:
    """The mixin of a head, as (module, class): one that generates reads texts in its own way."""
    generates = auto == CAUSAL_AUTO and suffix not in family.decoder_heads
    return (CORE, "CausalHeadMixin") if generates else target.head_mixin


def _wrapped(module: str, names: list[str]) -> str:
    """Names after `import`, one a line where they do not fit into one line, as the formatter has them."""
    joined = ", ".join(names)
    fits = len(f"from .{module} import {joined}") <= LINE
    return joined if fits else "(\n" + "".join(f"    {name},\n" for name in names) + ")"


def _as_linted(name: str) -> tuple[bool, str]:
    """The key by which the linter sorts imported names: constants, classes, functions."""
    return not name.isupper(), name


def _imports(
    family: FamilyCode, target: TargetCode, heads: Mapping[str, str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What the modeling file uses, as (module, name), and a name of each further file of the repo."""
    of = names(family, target)
    core = [*(SEQ2SEQ_CORE if family.encoder else ())]
    core += [name for name in ("HEAD_MASK", "taking_part", "values_are_at_hand") if name in family.lines]
    used = [
        (of.configuration_module, of.config),
        *dict.fromkeys(
            mixin_of(family, target, suffix, auto)
            for suffix, auto in heads.items()
            if suffix != BASE_SUFFIX and suffix not in family.decoder_heads
        ),
        *((CORE, name) for name in core),
        target.self_attention,
        target.attention,
        target.encoder_mixin,
    ]
    named = {module for module, _ in used}
    further = ((CORE, "EncoderMixin"), target.config_mixin, *target.others)
    return used, [(module, name) for module, name in further if module not in named]
