"""The code of an emitted repo: files copied as they are, and two thin ones rendered for a family and a target.

A class is named by the target's prefix before the stock name: LSGBertForMaskedLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources

from ... import templates
from ..families.code import FamilyCode

CORE_MODULE, CORE_ATTENTION, CORE_HEAD = "efficient_encoder", "EfficientAttention", "HeadMixin"
# Further files of every repo, each with a name to import from it.
CORE_OTHERS = (
    ("efficient_configuration", "EfficientConfigMixin"),
    ("fp32_precision", "fp32_precision"),
    ("unpadding", "Unpadded"),
)
BASE_SUFFIX = "Model"


@dataclass(frozen=True, slots=True)
class Seq2SeqCode:
    """A target's parts for models of an encoder and a decoder.

    Args:
        encoder_mixin: of the encoder. model_mixin: of the base model. decoder_mixin: of classes that are the decoder
            alone. config_mixin: of the config.
    """

    encoder_mixin: tuple[str, str]
    model_mixin: tuple[str, str]
    decoder_mixin: tuple[str, str]
    config_mixin: tuple[str, str]


@dataclass(frozen=True, slots=True)
class TargetCode:
    """What the rendered files need to know of a target; a part of it is named as (module, class).

    Args:
        name: in file names and model types, such as `lsg`.
        class_prefix: of the emitted classes, such as `LSG`.
        mix: the module that mixes q, k and v.
        encoder_mixin: the target's `EncoderMixin`.
        config_mixin: the target's fields of the config.
        others: further modules that the repo needs, each with a name to import from it.
        seq2seq: what takes the place of some of these in models of an encoder and a decoder, where it takes them.
    """

    name: str
    class_prefix: str
    mix: tuple[str, str]
    encoder_mixin: tuple[str, str]
    config_mixin: tuple[str, str]
    others: tuple[tuple[str, str], ...] = ()
    seq2seq: Seq2SeqCode | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are copied as they are."""
        parts = (self.mix, self.encoder_mixin, self.config_mixin, *CORE_OTHERS, *self.others)
        return tuple(f"{module}.py" for module in sorted({CORE_MODULE, *(module for module, _ in parts)}))

    def for_family(self, family: FamilyCode) -> TargetCode:
        """The parts that a family needs."""
        if not family.encoder or self.seq2seq is None:
            return self
        return replace(
            self,
            encoder_mixin=self.seq2seq.encoder_mixin,
            config_mixin=self.seq2seq.config_mixin,
            others=(*self.others, self.encoder_mixin),
        )


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


LAMBDA_PUBLISHED_CODE = StandaloneCode(
    model_type="lambda-published",
    module="lambda_published",
    config="lambda_published.LambdaBertConfig",
    files=("lambda_attention.py", "lambda_published.py"),
)
LINFORMER_CODE = TargetCode(
    name="linformer",
    class_prefix="Linformer",
    mix=("linformer_attention", "LinformerMix"),
    encoder_mixin=("linformer_encoder", "LinformerEncoderMixin"),
    config_mixin=("linformer_configuration", "LinformerConfigMixin"),
    others=(("linformer_projection", "peaked_segments"),),
)
TRANSNORMER_CODE = TargetCode(
    name="transnormer",
    class_prefix="TransNormer",
    mix=("transnormer_attention", "TransNormerMix"),
    encoder_mixin=("transnormer_encoder", "TransNormerEncoderMixin"),
    config_mixin=("transnormer_configuration", "TransNormerConfigMixin"),
    others=(("transnormer_feed_forward", "add_gate"),),
)
LAMBDA_CODE = TargetCode(
    name="lambda",
    class_prefix="Lambda",
    mix=("lambda_attention", "LambdaMix"),
    encoder_mixin=("lambda_encoder", "LambdaEncoderMixin"),
    config_mixin=("lambda_configuration", "LambdaConfigMixin"),
)
LSG_CODE = TargetCode(
    name="lsg",
    class_prefix="LSG",
    mix=("lsg_attention", "LSGMix"),
    encoder_mixin=("lsg_encoder", "LSGEncoderMixin"),
    config_mixin=("lsg_configuration", "LSGConfigMixin"),
    others=(
        ("lsg_kernel_cpu", "cpu_attention"),
        ("lsg_kernel_flex", "flex_rows"),
        ("lsg_kernel_triton", "triton_attention"),
    ),
    seq2seq=Seq2SeqCode(
        encoder_mixin=("lsg_seq2seq", "LSGSeq2SeqEncoderMixin"),
        model_mixin=("lsg_seq2seq", "Seq2SeqModelMixin"),
        decoder_mixin=("lsg_seq2seq", "DecoderMixin"),
        config_mixin=("lsg_configuration", "LSGSeq2SeqConfigMixin"),
    ),
)


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
        attention=f"{prefix}Attention",
        model=f"{prefix}{BASE_SUFFIX}",
        encoder=f"{prefix}Encoder",
    )


def model_type(family: FamilyCode, target: TargetCode | StandaloneCode) -> str:
    """The emitted config's model_type, which no stock model has."""
    return target.model_type if isinstance(target, StandaloneCode) else names(family, target).model_type


def class_name(family: FamilyCode, target: TargetCode | StandaloneCode, suffix: str) -> str:
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


def render(family: FamilyCode, target: TargetCode | StandaloneCode, heads: Mapping[str, str]) -> dict[str, str]:
    """All code files of an emitted repo as {name: text}.

    Args:
        family: of the source.
        target: what it becomes.
        heads: suffix of the stock class ("Model", "ForMaskedLM") to its Auto class.
    """
    package = resources.files(templates)
    if isinstance(target, TargetCode):
        target = target.for_family(family)
    copied = {file: (package / file).read_text(encoding="utf-8") for file in target.files}
    if isinstance(target, StandaloneCode):
        return copied
    import jinja2

    of = names(family, target)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    values = {
        "family": family,
        "target": target,
        "names": of,
        "core": {"attention": CORE_ATTENTION, "head": CORE_HEAD},
        "stock_classes": sorted(family.class_prefix + suffix for suffix in {BASE_SUFFIX, *heads}),
        "imports": _imports(family, target),
        "heads": [
            (family.class_prefix + suffix, class_name(family, target, suffix), suffix in family.decoder_heads)
            for suffix in heads
            if suffix != BASE_SUFFIX
        ],
        "quoted": lambda words: ", ".join(f'"{word}"' for word in words),
    }
    rendered = {
        f"{module}.py": environment.from_string((package / template).read_text(encoding="utf-8")).render(values)
        for module, template in (
            (of.configuration_module, "configuration.py.jinja"),
            (of.modeling_module, "modeling.py.jinja"),
        )
    }
    return {**copied, **rendered}


def _imports(family: FamilyCode, target: TargetCode) -> list[tuple[str, str, bool]]:
    """What the modeling file imports: module, names, and whether it does so only to have the file copied."""
    of = names(family, target)
    used = [
        (of.configuration_module, of.config),
        (CORE_MODULE, CORE_ATTENTION),
        (CORE_MODULE, CORE_HEAD),
        target.mix,
        target.encoder_mixin,
        *((target.seq2seq.model_mixin, target.seq2seq.decoder_mixin) if family.encoder and target.seq2seq else ()),
    ]
    found: dict[str, list[str]] = {}
    for module, name in used:
        found.setdefault(module, []).append(name)
    others = (target.config_mixin, *CORE_OTHERS, *target.others)
    copied = [(module, name, True) for module, name in others if module not in found]
    rows = [(module, ", ".join(sorted(imported)), False) for module, imported in found.items()]
    return sorted(rows + copied)
