"""Refuses repos whose model no graph can hold, from their manifest and config alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.errors import UnsupportedError, UsageError
from ..convert.families.registry import ENCODER_DECODERS
from ..convert.repo.manifest import config_of
from ..convert.target import Target
from .options import ExportOptions

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_exportable(folder: Path, manifest: Mapping[str, Any], target: Target) -> None:
    """Raises UnsupportedError for a repo that cannot be exported, with what can."""
    if target.weights_format.library != "transformers":
        raise UnsupportedError(
            "JAX repos cannot be exported", where=str(folder), hint="convert it to PyTorch first: effconv jax2torch"
        )
    if manifest["family"] in ENCODER_DECODERS:
        raise UnsupportedError(
            "encoder-decoder models cannot be exported: generate() needs several graphs and a cache",
            where=str(folder),
            hint="serve the repo with transformers, or export an encoder (effconv families lists them)",
        )
    if target.name == "lambda-published":
        raise UnsupportedError(
            "the published LambdaBERT layout cannot be exported",
            where=str(folder),
            hint="serve the repo with transformers, or convert a BERT-like source with effconv lambda",
        )
    config = config_of(folder)
    sparse = config.get("sparse_block_size") and config.get("sparsity_factor")
    if target.name == "lsg" and config.get("sparsity_type") == "lsh" and sparse:
        raise UnsupportedError(
            'sparsity_type "lsh" cannot be exported: near ties would hash to other buckets in another runtime',
            where=f"{folder}/config.json: sparsity_type",
            hint="convert the source with another --sparsity-type, such as norm or bos_pooling",
        )


def require_packages(options: ExportOptions) -> None:
    """Raises UsageError where what writes or checks the graphs is not installed."""
    missing = [name for name in PACKAGES if options.onnx and importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"ONNX export needs {', '.join(missing)}", where="--onnx", hint="pip install 'effconv[export]'"
        )
