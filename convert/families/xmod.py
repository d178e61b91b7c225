"""X-MOD: RoBERTa with adapters in every layer, of which a text gets those of its language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import BadInputError
from .bert import ROBERTA
from .code import FamilyCode
from .grammar import Config, Weight, is_set, linear, norm, number, when
from .parts import H, body


def languages(config: Config) -> list[str]:
    """The languages that have adapters; the default is what transformers has.

    Raises:
        BadInputError: they are no list of names.
    """
    names = config.get("languages", ["en_XX"])
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise BadInputError(
            f"languages must be a list of language codes, got {names!r}",
            where="config.json: languages",
            hint="correct config.json, or download it again",
        )
    return list(names)


def read_config(config: Config) -> Config:
    """The config, which must say the language of texts that come without one."""
    names, default = languages(config), config.get("default_language")
    if default not in names:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise BadInputError(
            f"default_language is {default!r}, which is not one of the languages of the model",
            where="config.json: default_language",
            hint=f"set it to one of {some}. The checks, and callers that pass no lang_ids, use this language",
        )
    return config


def bottleneck(config: Config) -> int:
    """Inner size of an adapter."""
    return number(config, H) // number({"adapter_reduction_factor": 2, **config}, "adapter_reduction_factor")


def adapters(config: Config) -> Iterator[Weight]:
    """The adapters of all layers and languages."""
    for path in ROBERTA.layer_paths(config):
        for language in languages(config):
            adapter = f"{path}.output.adapter_modules.{language}"
            yield from (*linear(f"{adapter}.dense1", H, bottleneck), *linear(f"{adapter}.dense2", bottleneck, H))


XMOD = replace(
    ROBERTA,
    name="xmod",
    code=FamilyCode(
        module="xmod",
        model_type="xmod",
        class_prefix="Xmod",
        after_padding=True,
        model_lines=body(
            """
            embedding_inputs = ("lang_ids",)

            def forward(
                self,
                input_ids: Tensor | None = None,
                lang_ids: Tensor | None = None,
                attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None,
                position_ids: Tensor | None = None,
                inputs_embeds: Tensor | None = None,
                **others: Any,
            ) -> Any:
                \"\"\"As `EncoderMixin.forward`; lang_ids (b,) are indices into config.languages.\"\"\"
                given = inputs_embeds if input_ids is None else input_ids
                if lang_ids is None and given is not None:
                    lang_ids = self.default_language_ids(given)
                inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
                return super().forward(*inputs, lang_ids=lang_ids, **others)

            def default_language_ids(self, batch: Tensor) -> Tensor:
                if self.config.default_language is None:
                    raise ValueError("pass lang_ids, or call set_default_language() with one of config.languages")
                language = list(self.config.languages).index(self.config.default_language)
                return torch.full(batch.shape[:1], language, device=batch.device)

            def adapted_layer(self, layer: Module, index: int) -> Module:
                for adapter in layer.output.adapter_modules.values():
                    adapter.register_forward_hook(self.as_its_input)
                return super().adapted_layer(layer, index)

            @staticmethod
            def as_its_input(adapter: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                return output.to(inputs[0].dtype)  # which transformers 5 relies on, also under autocast

            def embed(self, *inputs: Tensor | None, lang_ids: Tensor) -> Tensor:
                return super().embed(*inputs)

            def kept(self, mask: Tensor | None, cross: tuple[Tensor | None, ...], lang_ids: Tensor) -> Any:
                # Layers choose an adapter for each row of a batch: one row is for texts of one language.
                if mask is None or not values_are_at_hand(lang_ids) or (lang_ids != lang_ids[0]).any():
                    return None
                return super().kept(mask, cross)

            def run(self, layer: Module, x: Tensor, mask: Any, *cross: Any, lang_ids: Tensor) -> Tensor:
                output = layer(x, lang_ids[: x.shape[0]], mask, *HEAD_MASK, *cross)
                x = output[0] if isinstance(output, tuple) else output
                return taking_part(x, layer.output.adapter_modules.parameters())  # those of other languages too

            def final(self, x: Tensor) -> Tensor:
                return self.encoder.LayerNorm(x) if self.config.pre_norm else x
            """
        ),
    ),
    layer=(*ROBERTA.layer, *when(is_set("adapter_layer_norm"), norm("output.adapter_layer_norm", H))),
    final=when(is_set("pre_norm"), norm("encoder.LayerNorm", H)),
    further=adapters,
    read_config=read_config,
    tokenizer="XLMRobertaTokenizer",
)
