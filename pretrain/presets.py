"""The published recipes as data: what the authors' own scripts pass. Every value can be overridden by its option.

No heavy imports. A value that a source does not state is left out, so that the default of the option holds. The model
itself is made by `effconv new` or by a conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe.

    Attributes:
        source: where the values are from. values: by field of `PretrainOptions`. remarks: what the values leave open.
    """

    source: str
    values: Mapping[str, Any]
    remarks: str = ""


PRESETS: Mapping[str, Preset] = {
    "bigs": Preset(
        source="BiGS (arXiv 2212.10544), JAX scripts at https://github.com/jxiw/BiGS",
        values={
            "objective": "mlm", "length": 128, "mask_share": 0.15, "max_predictions": 20, "batch_size": 1048,
            "steps": 100_000, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.98, "weight_decay": 0.05,
            "learning_rate": 6e-4, "schedule": "cosine", "end_rate": 6e-5, "warmup_steps": 2_000, "dropout": 0.1,
        },
        remarks="The steps are those of the model of 11 G tokens at length 128. Longer ones are not stated.",
    ),
    "lambdabert": Preset(
        source="LambdaBERT, run_language_modeling.py at https://github.com/gsarti/lambda-bert",
        values={
            "objective": "mlm+nsp", "length": 512, "mask_share": 0.15, "batch_size": 8, "epochs": 3,
            "optimizer": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "learning_rate": 5e-5,
            "schedule": "linear", "end_rate": 0.0, "warmup_steps": 0, "clip": 1.0, "evaluate_every": 100,
            "documents": "heading", "sentences": "line", "short_share": 0.1,
        },
        remarks="Optimizer and schedule are Trainer's defaults in transformers 3.3. --objective mlm+sop is its --sop.",
    ),
    "transnormer-clm": Preset(
        source="TransNormer (arXiv 2210.10340), causal LM scripts (fairseq) at https://github.com/OpenNLPLab/Transnormer",
        values={
            "objective": "clm", "length": 512, "across_documents": True, "short_share": 0.0, "batch_size": 128,
            "steps": 100_000, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.98, "weight_decay": 0.01, "decay": "all",
            "learning_rate": 5e-4, "schedule": "inverse-sqrt", "warmup_steps": 8_000, "warmup_from": 1e-7, "clip": 0.0,
            "dropout": 0.1,
        },
        remarks="The weight decay of fairseq's Adam is that of AdamW, on all weights.",
    ),
    "transnormer-roberta": Preset(
        source="TransNormer (arXiv 2210.10340), RoBERTa scripts (fairseq) at https://github.com/OpenNLPLab/Transnormer",
        values={
            "objective": "mlm", "length": 512, "short_share": 0.0, "batch_size": 512, "steps": 50_000,
            "optimizer": "adamw", "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.01, "decay": "all",
            "learning_rate": 5e-4, "schedule": "polynomial", "end_rate": 0.0, "power": 1.0, "warmup_steps": 3_000,
            "dropout": 0.1,
        },
        remarks="The weight decay of fairseq's Adam is that of AdamW, on all weights.",
    ),
    "linformer": Preset(
        source="Linformer (arXiv 2006.04768), Cerebras Model Zoo R_1.7.1",
        values={
            "objective": "mlm", "length": 512, "mask_share": 0.15, "max_predictions": 80, "batch_size": 1024,
            "steps": 250_000, "optimizer": "adamw", "eps": 1e-6, "weight_decay": 0.01, "learning_rate": 1e-4,
            "schedule": "linear", "end_rate": 0.0, "warmup_steps": 25_000, "short_share": 0.0,
        },
    ),
}  # fmt: skip
