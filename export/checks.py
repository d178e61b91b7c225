"""Compares a graph with the repo's model in torch: every length that can go wrong, alone and in padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..convert.errors import CheckFailedError, listing
from ..convert.verify.loaded import difference
from .loaded import Exported

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # inputs in order to outputs in order
LENGTHS = (1, 7, 100, 511, 700)
PADDED = (700, 100, 7)  # tokens of the texts of a padded batch
# Of max |a - b| <= t max(1, max |b|), in float32: two orders above what rounding gives twelve layers.
TOLERANCE = 1e-4
# LSG's "norm" takes the keys of largest norm. Two norms that differ by rounding alone may change places between two
# programs, and a few tokens then see another key: a larger difference in a few values, which is no fault of the graph.
SWAPS_TOLERANCE, SWAPS_SHARE = 5e-2, 0.05
BORDERS = ("block_size", "proj_dim")  # fields of a config at whose multiples a form changes


def lengths_of(config: Any, longest: int) -> list[int]:
    """Lengths in tokens at which a graph is compared, ascending."""
    borders = {
        multiple * size + offset
        for size in (getattr(config, name, None) for name in BORDERS)
        if isinstance(size, int)
        for multiple in (1, 2, 3)
        for offset in (-1, 0, 1)
    }
    found = sorted(length for length in {*LENGTHS, *borders, longest} if 1 <= length <= longest)
    return [length for length in found if takes(config, length)]


def takes(config: Any, length: int) -> bool:
    """Whether the repo's model takes such a length: LSG with adaptive=False takes whole blocks only."""
    block = getattr(config, "block_size", 1)
    return getattr(config, "adaptive", True) or length <= 2 * block or length % block == 0


def random_batch(exported: Exported, lengths: Sequence[int], segments: bool, seed: int) -> list[Tensor]:
    """Inputs of random texts of these lengths, padded to the longest."""
    config = exported.model.config
    draw = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, shape, generator=draw)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = ids.masked_fill(mask == 0, getattr(config, "pad_token_id", None) or 0)
    inputs = [ids, mask]
    if segments:
        inputs.append(torch.randint(0, max(1, getattr(config, "type_vocab_size", 1)), shape, generator=draw) * mask)
    if "MultipleChoice" in type(exported.model).__name__:
        inputs = [x[None] for x in inputs]
    return inputs


def cases(exported: Exported, longest: int, segments: bool) -> Iterator[tuple[str, list[Tensor]]]:
    """Every case by name: one text of each length, and a padded batch."""
    for length in lengths_of(exported.model.config, longest):
        yield f"{length} tokens", random_batch(exported, [length], segments, seed=length)
    padded = [max(1, min(length, longest)) for length in PADDED]
    if takes(exported.model.config, padded[0]):
        yield f"a padded batch of {padded[0]} tokens", random_batch(exported, padded, segments, seed=0)


def compare(exported: Exported, run: Run, longest: int, segments: bool, what: str) -> dict[str, Any]:
    """The largest difference between the model and a graph of it, over all cases.

    Args:
        run: calls the graph. what: its name, for an error.

    Returns:
        A record: the cases, the largest difference and the tolerance.

    Raises:
        CheckFailedError: a difference beyond the tolerance, with every such case.
    """
    worst, faults, names = 0.0, [], []
    swaps = getattr(exported.model.config, "sparsity_type", None) == "norm"
    for name, inputs in cases(exported, longest, segments):
        names.append(name)
        with torch.no_grad():
            wanted = exported(*inputs)
        try:
            got = run(inputs)
        except Exception as error:
            faults.append(f"{name}: {str(error).strip().splitlines()[0]}")
            continue
        for output, one, other in zip(exported.outputs, got, wanted, strict=True):
            found, far = _differs(one, other, inputs[1])
            worst = max(worst, found) if found == found else float("nan")
            allowed = found <= SWAPS_TOLERANCE and far <= SWAPS_SHARE if swaps else found <= TOLERANCE
            if not allowed:
                faults.append(f"{name}: {output} differs by {found:.2g}")
    if faults:
        raise CheckFailedError(
            f"{what} does not give the outputs of the repo's model:\n{listing(faults)}",
            where=what,
            hint="try other versions of torch and onnxruntime, or serve the repo with transformers",
        )
    return {"cases": names, "difference": worst, "tolerance": SWAPS_TOLERANCE if swaps else TOLERANCE}


def _differs(got: Tensor, wanted: Tensor, mask: Tensor) -> tuple[float, float]:
    """The largest difference, and the share of values beyond the strict tolerance."""
    if got.shape != wanted.shape:
        return float("inf"), 1.0
    real = mask.flatten(0, -2).bool()
    if wanted.dim() >= 2 and wanted.shape[:2] == real.shape:
        got, wanted = got[real], wanted[real]
    scale = wanted.abs().max().clamp(min=1)
    far = ((got - wanted).abs() > TOLERANCE * scale).float().mean()
    return difference(got, wanted), float(far)


def cosines(got: Tensor, wanted: Tensor) -> float:
    """The mean cosine between the rows of two outputs."""
    return float(torch.cosine_similarity(got.flatten(0, -2).float(), wanted.flatten(0, -2).float(), dim=-1).mean())


def as_tensors(found: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(value).float() for value in found]


def runner(session: Any, names: Sequence[str]) -> Run:
    """Calls a session of onnxruntime with the inputs of these names."""

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds: Mapping[str, Any] = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return as_tensors(session.run(None, feeds))

    return run
