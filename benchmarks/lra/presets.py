"""Sizes of models and trainings, as data.

Published models are those of TransNormer's LRA (arXiv 2210.10340, its scripts): 8 heads, blocks of 64. Steps and warmup
of the published trainings are those of the benchmark's own configurations, because TransNormer's are not known, and
batches the smallest that TransNormer lists. The small sizes fit a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import images, listops, texts
from .examples import Splits

TARGETS = ("dense", "lsg", "linformer", "lambda", "transnormer", "bigs")
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"transnormer-t1": ("transnormer", {"variant": "t1"})}


@dataclass(frozen=True)
class Size:
    """A model and its training.

    Attributes:
        length: tokens, the first one included. inner: size of the feed-forward. options: of each target.
        rates: of which the best on the validation examples is kept. warmup: share of the steps.
        limits, counts: of generated examples.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    length: int
    steps: int
    batch: int
    rates: tuple[float, ...] = (1e-3,)
    warmup: float = 0.1
    dropout: float = 0.1
    weight_decay: float = 0.01
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: listops.Limits = listops.PUBLISHED
    counts: Mapping[str, int] = field(default_factory=lambda: listops.COUNTS)


@dataclass(frozen=True)
class Task:
    """What `python -m benchmarks.lra NAME` runs.

    Attributes:
        read: the data set of a folder. sizes: by name. pair: whether two texts are encoded apart. data: of the help.
    """

    read: Callable[[Path], Splits]
    sizes: Mapping[str, Size]
    data: str
    pair: bool = False


def _options(block: int, rows: int, **others: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Of each target: blocks of `block` tokens, `rows` projected keys, and others' in the place of their usual ones."""
    return {
        "lsg": {"block_size": block, "sparse_block_size": block},
        "linformer": {"proj_dim": rows, "init": "truncated-normal"},
        "lambda": {"key_depth": 16},
        "transnormer": {"block_size": block},
        "bigs": {"mask_mode": "inert", "set": ("num_ssm=64",)},
        **others,
    }


SMALL_BIGS = {"bigs": {"mask_mode": "inert", "set": ("num_ssm=16",)}}
SMALL = Size(
    *(2, 64, 4, 128),
    length=128,
    steps=1_000,
    batch=64,
    rates=(1e-3,),
    dropout=0.0,
    options=_options(16, 32, **SMALL_BIGS),
)
SMALL_LISTOPS = listops.Limits(depth=5, arguments=5, above=16, below=100)
PUBLISHED = Size(4, 128, 8, 512, length=4096, steps=20_000, batch=64)


def _published(task: str, **sizes: Any) -> Size:
    """A published size. TransNormer's is the preset of `effconv new`: local and linear attention in each layer."""
    own = {"like": f"lra-{task}", "variant": "t2", "block_size": 64, "set": ("pad_token_id=0",)}
    return replace(PUBLISHED, options=_options(64, 256, transnormer=own), **sizes)


TASKS: Mapping[str, Task] = {
    "listops": Task(
        listops.read,
        {
            "small": replace(
                SMALL,
                limits=SMALL_LISTOPS,
                counts={"train": 20_000, "valid": 1_000, "test": 2_000},
                options=_options(8, 16, lsg={"block_size": 16, "sparse_block_size": 16}, **SMALL_BIGS),
            ),
            "published": _published("listops", layers=6, length=2048, steps=5_000, batch=50, warmup=0.2),
        },
        "basic_{train,val,test}.tsv; generated without --data",
    ),
    "text": Task(
        texts.reviews,
        {"small": replace(SMALL, length=512, batch=32), "published": _published("text", warmup=0.4)},
        "aclImdb, or train.tsv and test.tsv",
    ),
    "retrieval": Task(
        texts.pairs,
        {"small": replace(SMALL, length=512, batch=16), "published": _published("retrieval", steps=5_000)},
        "new_aan_pairs.{train,eval,test}.tsv",
        pair=True,
    ),
    "image": Task(
        images.cifar,
        {
            "small": replace(SMALL, length=1025, batch=32),
            "published": _published(
                "image", inner=256, length=1025, steps=45_000, batch=200, rates=(5e-4,), warmup=0.005
            ),
        },
        "the binary version of CIFAR-10",
    ),
    "pathfinder": Task(
        images.pathfinder,
        {
            "small": replace(SMALL, length=1025, batch=32),
            "published": _published("pathfinder", inner=128, length=1025, steps=250_000, batch=128, warmup=0.005),
        },
        "a folder such as pathfinder32/curv_contour_length_14",
    ),
}


def options_of(name: str, size: Size) -> tuple[str, dict[str, Any]]:
    """The command of `effconv new` and its options for a target, or for a variant of one."""
    command, more = VARIANTS.get(name, (name, {}))
    return command, {**size.options.get(command, {}), **more}


def splits_of(name: str, size: Size, data: Path | None, folder: Path, seed: int) -> Splits:
    """The data set: of `--data`; without it ListOps is generated, once a folder."""
    if data is None and name == "listops":
        data = folder / f"listops-{seed}"
        if not all((data / file).is_file() for file in listops.FILES.values()):
            listops.write(data, listops.generated(size.limits, dict(size.counts), seed))
    assert data is not None
    return TASKS[name].read(data)
