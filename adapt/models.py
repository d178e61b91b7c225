"""Loads student and teacher for training, and selects the trained parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.errors import BadInputError, UnsupportedError, UsageError
from ..convert.families.grammar import Family
from ..convert.families.registry import FAMILIES
from ..convert.recipe import NEW_POSITIONS
from ..convert.text import special_ends
from ..convert.verify.loaded import DoesNotApply, Loaded
from ..targets.registry import target_named
from .logits import DISTRIBUTION, kind_of_logits
from .recipes import Phase
from .sentence import pooling_of


@dataclass
class Pair:
    """A student and its teacher, in float32, the teacher without gradients.

    Attributes:
        student, teacher: transformers models; teacher None where nothing is taught.
        family: of the teacher; None if the repo's model is not a stock encoder (BiGS).
        auto: the Auto class that both were loaded with.
        reach: tokens that the teacher takes. ends: how many special tokens stand before and after a text.
        pooling: how states become a text's embedding, "mean" or "cls".
        logits: what those of the head are, as `kind_of_logits` says.
    """

    student: Any
    teacher: Any
    tokenizer: Any
    family: Family | None
    auto: str
    manifest: Mapping[str, Any]
    reach: int
    ends: tuple[int, int]
    pooling: str = "mean"
    logits: str = DISTRIBUTION

    @property
    def base(self) -> Any:
        return self.student.base_model

    def student_layers(self) -> list[nn.Module]:
        """The student's layers as they run."""
        return list(self.base.order())

    @property
    def global_tokens(self) -> int:
        """Rows that the student's target puts in front of a text."""
        return int(getattr(self.base.config, "num_global_tokens", 0))


def load_pair(
    repo: Path,
    teacher: Path | None,
    manifest: Mapping[str, Any],
    phases: tuple[Phase, ...],
    *,
    trust_remote_code: bool,
    whiten: bool = False,
) -> Pair:
    """Loads what the phases need; the repo's files have been compared with its manifest before.

    That the repo can have these objectives, and has a tokenizer, has been seen too (`require_objectives`).

    Raises:
        BadInputError: another tokenizer than the teacher's, a teacher without the head.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = Loaded(repo, teacher, manifest, trust_remote_code)
    objectives = {objective for phase in phases for objective in phase.objectives}
    auto = "AutoModelForMaskedLM" if "mlm" in objectives else loaded.auto
    student = loaded.model(auto)
    try:
        tokenizer = loaded.tokenizer
    except DoesNotApply as reason:
        raise BadInputError(str(reason), where=str(repo), hint="training needs the tokenizer") from None
    if "mlm" in objectives and tokenizer.mask_token_id is None:
        raise BadInputError("the tokenizer has no mask token", where=str(repo), hint="choose another objective")
    source, family = None, FAMILIES.get(manifest["family"])
    if teacher is not None:
        _check_tokenizers(tokenizer, teacher, trust_remote_code)
        asked = manifest.get("source_config", {})
        wanted = auto if "logits" in objectives else "AutoModel"
        source = _load_teacher(teacher, wanted, family, trust_remote_code, asked)
    first, last = special_ends(tokenizer)
    reach = int(manifest["source_max_length"])
    pooling = pooling_of(repo) if {"sentence", "contrastive"} & objectives or whiten else "mean"
    kind = kind_of_logits(auto, student.config.to_dict(), manifest["family"])
    pair = Pair(student, source, tokenizer, family, auto, manifest, reach, (len(first), len(last)), pooling, kind)
    without_dropout(student)
    student.train()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics stay: a process's share of a batch must not move them
            module.train = partial(_stay, module)  # type: ignore[method-assign, assignment]
    return pair


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def without_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: a teacher's outputs are matched, and batches alone decide what a step does."""
    set_dropout(model, 0.0)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout, those that read the config at each step too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if getattr(config, name, None) is not None:
                setattr(config, name, probability)


def select(pair: Pair, train: str, phase: Phase, new: frozenset[str]) -> dict[str, bool]:
    """Sets `requires_grad` for a phase and returns the trained parameters by name: whether each is the target's own.

    Args:
        train: new, globals, attention, positions, offsets or all.
        new: names of the tensors that the source did not have.

    Raises:
        UsageError: nothing is left to train.
    """
    family = pair.family
    attention = tuple(_attention_prefixes(pair)) if family else ()
    local = phase.objectives == ("attention",)  # it reaches nothing else
    table = position_table(pair) if train in NEW_POSITIONS else ""
    chosen: dict[str, bool] = {}
    for name, parameter in pair.student.named_parameters():
        own = name in new
        inside = name.startswith(attention) if attention else False
        wanted = {
            "new": own,
            "globals": "global_embeddings" in name,
            "positions": name == table,
            "offsets": name == table,
            "attention": inside or "global_embeddings" in name,
            "all": not name.endswith("urpe.v"),
        }[train]
        wanted = wanted and (inside or not local)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = own or name == table
    if not chosen:
        what = {"new": "no tensors of its own", "globals": "no global tokens"}.get(train, "no attention")
        what = "no positions" if table else what
        raise UsageError(
            f"nothing to train: a {pair.manifest['target']} repo has {what}" + (" inside its attention" * local),
            where=f"--train {train}, --objective {phase.name}",
            hint="pass --train attention or --train all",
        )
    return chosen


def position_table(pair: Pair) -> str:
    """The name of the parameter that holds the encoder's learned positions.

    Raises:
        UnsupportedError: there is none.
    """
    family = pair.family
    if family is not None and family.positions and not family.computes_positions:
        for name, _ in pair.student.named_parameters():
            if name.endswith(family.positions) and "decoder" not in name:
                return name
    raise UnsupportedError(
        "the model has no table of learned positions", where="--train", hint="pass --train attention or all"
    )


def new_tensors(pair: Pair) -> frozenset[str]:
    """Parameters that the target added: the stock model does not have them."""
    own = (".mix.", "global_emb", ".gate.", ".lambdalayer.self.")  # gate: of a feed-forward
    return frozenset(name for name, _ in pair.student.named_parameters() if any(part in name for part in own))


def state_of(student: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """A copy of parameters of these names, whole and on the CPU."""
    found = {}
    for name, parameter in student.named_parameters():
        if name in names:
            whole = parameter.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole  # sharded over processes
            found[name] = whole.to("cpu", copy=True)
    return found


@torch.no_grad()
def load_state(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts values into parameters of these names."""
    parameters = dict(student.named_parameters())
    for name, value in state.items():
        parameters[name].copy_(value)


def _attention_prefixes(pair: Pair) -> Iterator[str]:
    """Prefixes of the parameters of every attention, its output projection included."""
    assert pair.family is not None
    modules = {id(module): name for name, module in pair.student.named_modules()}
    emitted = target_named(pair.manifest["target"]).emits  # a model of another kind than its source, with its own names
    family = emitted or pair.family
    layers = (
        {id(layer): layer for layer in pair.student_layers()}.values()
        if emitted is None
        else [pair.base.get_submodule(path) for path in emitted.layer_paths(pair.base.config.to_dict())]
    )
    for layer in layers:
        for path in (family.code.attention_path, family.output_projection):
            yield modules[id(layer.get_submodule(path))] + "."


def _load_teacher(
    folder: Path, auto: str, family: Family | None, trust_remote_code: bool, asked: Mapping[str, Any]
) -> Any:
    import transformers

    model, info = getattr(transformers, family.stock_auto(auto) if family else auto).from_pretrained(
        folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True, **asked
    )
    missing = sorted(name for name in info["missing_keys"] if auto != "AutoModel" or "pooler" not in name)
    if missing:
        raise BadInputError(
            f"the teacher has no {auto.removeprefix('AutoModel')} head: {', '.join(missing[:3])} would be random",
            where=str(folder),
            hint="give a teacher with the repo's head, or pass --objective hidden",
        )
    unsound = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if unsound:
        raise BadInputError(
            f"{unsound[0]} holds NaN or infinite values", where=str(folder), hint="use another teacher checkpoint"
        )
    return model.eval().requires_grad_(False)


def _check_tokenizers(tokenizer: Any, teacher: Path, trust_remote_code: bool) -> None:
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(teacher, trust_remote_code=trust_remote_code)
    except Exception:  # a teacher without tokenizer files: then the repo's own, which came from it, must do
        return
    ours, others = tokenizer.get_vocab(), theirs.get_vocab()
    if others and ours != others:
        odd = ", ".join(f"{word!r} is {i}" for word, i in sorted(set(ours.items()) ^ set(others.items()))[:3])
        raise BadInputError(
            f"the teacher has another tokenizer: only one of the two has {odd}",
            where=str(teacher),
            hint="give the checkpoint that the repo was made from",
        )
