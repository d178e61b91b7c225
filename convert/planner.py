"""How a plan is made: each stored tensor is used, or dropped with a reason; each tensor of the model is made once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import BadInputError, UnsupportedError, joined_hints, listing
from .families.flax_names import is_flax
from .families.grammar import Family, Head, Weight, shape_of
from .families.selection import head_of
from .families.wrappers import Wrapping, wrapping_of
from .io.checkpoint import Checkpoint, Tensor
from .io.dtypes import FLOATS, SIZES
from .io.layout import MERGE
from .ops import Computed, Copy, New, Op, Shape
from .plan import Plan, Row
from .repo.modelcode import class_name
from .requested import Requested
from .target import Context, Rule, Target
from .text import counted


def choose_head(
    checkpoint: Checkpoint, config: Mapping[str, Any], family: Family, architecture: str | None, target: str = ""
) -> tuple[Head, str | None]:
    """Chooses the head to emit: the requested one, the one in the config, or the largest one whose tensors are stored.

    The second value is the source's class name if the family does not know it (its extra tensors are copied unchanged).

    Args:
        target: whose classes `architecture` may name.
    """
    if architecture is not None or config.get("architectures"):
        return head_of(config, family, architecture, target)
    stored = _canonical(checkpoint, family, wrapping_of(checkpoint.tensors, family, config))[0].keys()
    fitting = [head for head in family.heads if {weight.name for weight in head.weights} <= stored]
    decoder = bool(config.get("is_decoder"))
    return max(
        fitting,
        key=lambda head: (decoder and head.causal, len(head.weights), head.suffix == family.default_head),
    ), None


def make_plan(
    checkpoint: Checkpoint,
    target: Target,
    context: Context,
    *,
    unknown_class: str | None = None,
    asked: bool = False,
    dtype: str | None = None,
    requested: Sequence[str] = (),
    scratch: bool = False,
) -> Plan:
    """Matches every stored tensor with the tensors of the new model.

    Args:
        unknown_class: the source's class, if the family does not know it: tensors beyond the base are copied unchanged.
        asked: whether the user requested this head: tensors of heads that the family lacks are then dropped.
        dtype: safetensors name of the type that float tensors are cast to.
        requested: patterns of stored names that are left behind on request.
        scratch: the model begins with random weights: nothing need be stored.

    Raises:
        BadInputError: lists all unmatched, missing or misshapen tensors.
        UsageError: a pattern matches nothing, or a tensor that the new model needs.
    """
    return _Planner(checkpoint, target, context, unknown_class, asked, dtype, requested, scratch).plan()


class _Planner:
    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        context: Context,
        unknown_class: str | None,
        asked: bool,
        dtype: str | None,
        requested: Sequence[str],
        scratch: bool,
    ) -> None:
        self.checkpoint, self.target, self.context = checkpoint, target, context
        self.family, self.head = context.family, context.head
        self.unknown_class, self.asked, self.dtype, self.scratch = unknown_class, asked, dtype, scratch
        self.requested = Requested(tuple(requested))
        self.wrapping = wrapping_of(checkpoint.tensors, self.family, context.config)
        self.stored, self.faults = _canonical(checkpoint, self.family, self.wrapping)
        self.carried: set[str] = set()
        self.tied = self._tied()
        self.declared = {weight.name: weight for weight in self.family.weights(context.config, self.head)}
        self.dropped = target.drops(context)
        self.used: set[str] = set()
        self.rows: list[Row] = []
        self.whole = {weight.name for weight in self.family.base_weights(context.config)} | self.family.tied.keys()
        base = self.whole | {weight.name for weight in self.family.pooler}
        # A base model stores no prefix, unless it carries tensors of a head: transformers 4.57 tells by the prefix
        # whether a checkpoint holds more than the base.
        self.emits, self.emitted_head = context.emits, context.emitted_head
        self.flax = self.emits.flax if target.weights_format.flax else None
        self.prefixed = self.emitted_head.suffix != "Model" or any(
            not self.family.why_left_behind(name) for name in self.stored.keys() - base - set(self.family.buffers)
        )

    def plan(self) -> Plan:
        rules = {rule.dst: rule for rule in self.target.rules(self.context)}
        weights = {weight.name: weight for weight in self.emits.weights(self.context.emitted, self.emitted_head)}
        weights |= self._untied()
        weights |= {weight.name: weight for weight in self.target.weights(self.context)}
        for name in rules.keys() - weights.keys():
            self.faults.append(f"{name}: the recipe produces it, but the model has no such tensor")
        for name, weight in weights.items():
            self._make(weight, rules.get(name))
        used = [tensor.name for name, tensor in self.stored.items() if name in self.used]
        self.requested.check(self.checkpoint.tensors, used, self.emits.class_name(self.emitted_head))
        for name, tensor in self.stored.items():
            if name not in self.used:
                self._leave(name, tensor)
        made: set[str] = set()
        for row in self.rows:
            if row.target in made:
                self.faults.append(f"{row.target}: produced twice")
            made.update([row.target] if row.target else [])
        if self.faults:
            self._count_layers()
            faults = listing(dict.fromkeys(self.faults))
            raise BadInputError(
                f"the checkpoint does not fit {self.family.class_name(self.head)}:\n{faults}",
                where=self.checkpoint.source.where(),
                hint=f"the weights hold an adapter's tensors: {MERGE}"
                if any(".lora_" in name for name in self.checkpoint.tensors)
                else "check config.json against the weights. For a custom class, name it in config.json: architectures",
            )
        return Plan(
            target=self.target.name,
            family=self.family.name,
            architecture=class_name(self.emits.code, self.target.code, self.emitted_head.suffix),
            rows=tuple(self._ordered()),
            carried=frozenset(self.carried),
        )

    def _count_layers(self) -> None:
        """Puts one fault in the place of those of every tensor of a layer that only config or weights have."""
        config, known = self.context.config, {tensor.name for tensor in self.stored.values()}
        names = [*self.stored, *(name for name in self.checkpoint.tensors if name not in known)]
        for kind, paths in (
            ("layer", self.family.layer_paths(config)),
            ("decoder layer", self.family.decoder_layer_paths(config)),
        ):
            stack = re.fullmatch(r"(.+)\.\d+", paths[0]) if paths else None
            if stack is None:
                continue
            parts = r"[./]".join(map(re.escape, stack[1].split(".")))  # JAX names have slashes
            layer = re.compile(rf"(?<![^\s./]){parts}[./](\d+)[./]")
            found = {int(match[1]) for match in map(layer.search, names) if match}
            if found != set(range(len(found))) or len(found) in (0, len(paths)):
                continue
            least = min(len(found), len(paths))
            others = [fault for fault in self.faults if not (at := layer.search(fault)) or int(at[1]) < least]
            if len(others) < len(self.faults):
                self.faults = [f"config.json says {counted(len(paths), kind)}, the weights have {len(found)}", *others]

    def _ordered(self) -> list[Row]:
        """Rows in the order of the source, as far as the form allows: wide types first, or a tree in one walk.

        Adjacent tensors are then copied together, and converting to JAX and back reproduces the file.
        """
        order = {name: i for i, name in enumerate(self.checkpoint.tensors)}
        new = len(order) if self.target.new_last else -1
        rows = sorted(self.rows, key=lambda row: order.get(row.sources[0], -1) if row.sources else new)
        if self.target.weights_format.order is None:
            return sorted(rows, key=lambda row: -SIZES[row.dtype])
        names = self.target.weights_format.order([row.target for row in rows if row.target])
        places = {name: i for i, name in enumerate(names)}
        return sorted(rows, key=lambda row: places.get(row.target or "", len(places)))

    def _tied(self) -> dict[str, str]:
        """Every parameter that is tied in one of the family's classes, and the one that all of them store."""
        base = self.family.tied
        return {
            **base,
            **{alias: base.get(name, name) for head in self.family.heads for alias, name in head.tied.items()},
        }

    def _untied(self) -> dict[str, Weight]:
        """Parameters of this head that the config does not tie: they are separate tensors."""
        if self.context.config.get("tie_word_embeddings", True):
            return {}
        shapes = {weight.name: weight.shape for weight in self.emits.weights(self.context.emitted, self.emitted_head)}
        tied = self.emits.tied_weights(self.emitted_head)
        return {alias: Weight(alias, shapes[name]) for alias, name in tied.items() if alias not in self.emits.same}

    def _make(self, weight: Weight, rule: Rule | None) -> None:
        expected = shape_of(weight, self.context.emitted)
        if rule is None:
            rule = self._default_rule(weight, expected)
        if rule is None:
            return
        sources = [self._stored_name(name) for name in rule.src]
        missing = [name for name in sources if name not in self.stored]
        if missing:
            self.faults += [f"{name}: missing, needed for {weight.name}" for name in missing]
            return
        inputs = [self.stored[name] for name in sources]
        self.used.update(sources)
        try:
            shapes = [self._shape(name, tensor) for name, tensor in zip(sources, inputs, strict=True)]
            odd = [self._misshapen(name, shape) for name, shape in zip(rule.src, shapes, strict=True)]
            if any(odd):
                self.faults += filter(None, odd)
                return
            shape, wanted = rule.op.shape(*shapes), self._laid_out(weight.name, expected)
            shape = self._laid_out(weight.name, shape) if inputs else shape
        except ValueError as error:
            self.faults.append(f"{weight.name}: {error}")
            return
        if shape != wanted:
            self.faults.append(f"{weight.name}: produced with shape {shape}, but the new config requires {wanted}")
            return
        if isinstance(rule.op, Copy):
            rule = replace(rule, op=self._crossing(sources[0], weight.name, inputs[0]))
        self._add(rule, inputs, self._emitted_name(weight.name), shape, weight.uncast)

    def _shape(self, name: str, tensor: Tensor) -> Shape:
        """A stored tensor's shape as the family declares it."""
        flax = self.family.flax
        return flax.operation(name).shape(tensor.shape) if flax and is_flax(tensor.name) else tensor.shape

    def _laid_out(self, name: str, shape: Shape) -> Shape:
        """A declared shape as the emitted weights have it."""
        return self.flax.operation(name).shape(shape) if self.flax else shape

    def _crossing(self, source: str, made: str, tensor: Tensor) -> Op:
        """What a tensor that is else copied goes through where it changes sides."""
        flax = self.family.flax
        if flax is None or is_flax(tensor.name) == (self.flax is not None):
            return Copy()
        return flax.operation(made if self.flax else source)

    def _misshapen(self, name: str, shape: Shape) -> str:
        """What is wrong with a stored tensor's shape according to the source's config, which a recipe may hide."""
        weight = self.declared.get(name)
        expected = shape_of(weight, self.context.config) if weight else shape
        return "" if shape == expected else f"{name}: shape {shape}, but config.json requires {expected}"

    def _default_rule(self, weight: Weight, expected: Shape) -> Rule | None:
        if weight.computed and (weight.name not in self.stored or self.stored[weight.name].shape != expected):
            op: Op = Computed(expected, weight.init, weight.dtype or self.dtype or self._main_dtype())
            return Rule((), weight.name, op, f"{weight.init}, computed")
        if weight.name in self.stored:
            return Rule((weight.name,), weight.name)
        twin = self._stored_name(weight.name)
        if twin != weight.name:
            return Rule((twin,), weight.name, why=f"tied to {twin}, which the source stores")
        if weight.name in self.whole and not self.scratch:
            self.faults.append(f"{weight.name}: missing")
            return None
        op = New(
            weight.name,
            self._laid_out(weight.name, expected),
            weight.init,
            float(self.context.emitted[weight.std]) if weight.std else self._initializer_range(),
            self.context.seed,
            weight.dtype or self.dtype or self._main_dtype(),
        )
        return Rule(
            (), weight.name, op, weight.init if self.scratch else f"not in the source, needs training ({weight.init})"
        )

    def _stored_name(self, name: str) -> str:
        """The name, or the name of a tied tensor if the source stores only that one."""
        return name if name in self.stored else next((twin for twin in self._twins(name) if twin in self.stored), name)

    def _twins(self, name: str) -> list[str]:
        """The names that share one tensor with this one, where they are tied; the stored one of most classes first."""
        root = self.tied.get(name, name)
        return [twin for twin in (root, *(a for a, tied in self.tied.items() if tied == root)) if twin != name]

    def _leave(self, name: str, tensor: Tensor) -> None:
        drop = ""
        equals = None
        twin = next((twin for twin in self._twins(name) if twin in self.used), None)
        others = [
            head.suffix
            for head in self.family.heads
            if any(weight.name == name for weight in self.family.head_weights(head)) or name in head.tied
        ]
        if self.requested.has(tensor.name):
            drop = "dropped on request"
        elif name in self.family.buffers:
            drop = "a buffer, rebuilt when the model loads"
        elif self.family.same.get(name) in self.stored:
            equals = self.stored[self.family.same[name]].name
            drop = f"the same tensor as {self.family.same[name]}, stored once"
        elif twin and self.context.config.get("tie_word_embeddings", True):
            equals = self.stored[twin].name
            drop = f"tied to {twin}, stored once"
        elif name in self.dropped:
            drop = self.dropped[name]
        elif why := self.family.why_left_behind(name):
            drop = why
        elif name in self.declared and self.declared[name].computed:
            drop = "recomputed for the new length"
        elif self.family.part(self.head) and (name in self.whole or self.family.is_head_weight(name)):
            drop = f"{self.family.class_name(self.head)} has only the {self.family.part(self.head)}"
        elif self.emits is not self.family:
            drop = f"not part of {self.emits.class_name(self.emitted_head)}"
        elif self.flax and others:
            drop = f"not in the JAX {self.emits.class_name(self.emitted_head)} (it belongs to {', '.join(others)})"
        elif self.asked and not others and self._is_foreign_head(name):
            drop = f"part of a head that {self.family.name} lacks; {self.family.class_name(self.head)} was requested"
        if equals and is_flax(equals) != is_flax(tensor.name):  # bytes of the two sides cannot be compared
            equals = None
        if drop:
            drop = joined_hints(drop, self.wrapping.removed(tensor.name))
            self.rows.append(Row("drop", (tensor.name,), None, tensor.shape, tensor.dtype, Copy(), drop, equals))
            return
        if others:
            why = f"not used by {self.family.class_name(self.head)}, kept for {', '.join(others)}"
        elif self.unknown_class:
            why = f"part of {self.unknown_class}, copied unchanged"
        elif not self.flax and not is_flax(tensor.name) and self._is_foreign_head(name):
            why = f"part of a head that {self.family.name} lacks, copied unchanged"
        else:
            self.faults.append(f"{tensor.name}: unknown to {self.family.name}")
            return
        base = any(weight.name == name for weight in self.family.pooler)
        op = self._crossing(name, name, tensor)
        try:
            shape = op.shape(tensor.shape)
        except ValueError as error:
            self.faults.append(f"{tensor.name}: {error}")
            return
        emitted = self._emitted_name(name) if base else name
        self.carried.add(emitted)
        self._add(Rule((name,), name, op, why), [tensor], emitted, shape)

    def _is_foreign_head(self, name: str) -> bool:
        """Whether a tensor belongs to a head, outside the base model."""
        inside = {part.partition(".")[0] for part in (*self.whole, *(weight.name for weight in self.family.pooler))}
        prefixed = self.wrapping.strip(self.stored[name].name).startswith(f"{self.family.prefix}.")
        return not prefixed and name.partition(".")[0] not in inside

    def _emitted_name(self, name: str) -> str:
        if self.flax:
            return self.emits.flax_name(name, self.emitted_head)
        return f"{self.emits.prefix}.{name}" if self.prefixed and not self.emits.is_head_weight(name) else name

    def _add(self, rule: Rule, inputs: Sequence[Tensor], emitted: str, shape: Shape, uncast: str = "") -> None:
        dtype = inputs[0].dtype if inputs else getattr(rule.op, "dtype", self._main_dtype())
        action, why = rule.op.action, rule.why
        if inputs and self.dtype and dtype in FLOATS and dtype != self.dtype:
            says = f"kept in {dtype}: {uncast}" if uncast else f"{dtype} to {self.dtype}"
            why = f"{why}; {says}".lstrip("; ")
            if not uncast:
                dtype = self.dtype
                action = "derive" if action == "copy" else action
        for removed in dict.fromkeys(self.wrapping.removed(tensor.name) for tensor in inputs):
            why = joined_hints(why, removed)
        if action == "copy" and inputs[0].name != emitted:
            action = "rename"
        self.rows.append(Row(action, tuple(tensor.name for tensor in inputs), emitted, shape, dtype, rule.op, why))

    def _initializer_range(self) -> float:
        config = self.context.config
        value = config.get("initializer_range", config.get("init_std", 0.02))
        if isinstance(value, (int, float)) and 0 <= value < math.inf:
            return float(value)
        raise BadInputError(
            f"initializer_range must be a number of at least 0, got {value!r}",
            where="config.json",
            hint="correct config.json, or download it again",
        )

    def _main_dtype(self) -> str:
        words = self.stored.get(self._stored_name(self.family.words))
        return words.dtype if words and words.dtype in FLOATS else "F32"


def _canonical(checkpoint: Checkpoint, family: Family, wrapping: Wrapping) -> tuple[dict[str, Tensor], list[str]]:
    """Stored tensors by canonical name, with a fault for each unknown or duplicate name."""
    found: dict[str, Tensor] = {}
    faults = []
    for stored, tensor in checkpoint.tensors.items():
        name = family.canonical_name(wrapping.strip(stored))
        if name is None:
            faults.append(f"{stored}: unknown to {family.name}")
            continue
        if name in found:
            faults.append(f"{name}: stored twice, as {found[name].name} and {stored}")
        found[name] = tensor
    return found, faults


def check_floats(tensors: Iterable[Tensor]) -> None:
    """Refuses integer and 8-bit weights: they are quantised, even if the config does not say so."""
    odd = [
        f"{tensor.name}: {tensor.dtype}"
        for tensor in tensors
        if tensor.dtype not in FLOATS
        and len(tensor.shape) > 1
        and not tensor.name.endswith(("position_ids", "token_type_ids"))
    ]
    if odd:
        raise UnsupportedError(
            f"the weights are quantised:\n{listing(odd)}",
            where="the headers of the weights",
            hint="convert the unquantised checkpoint, then quantise the result",
        )
