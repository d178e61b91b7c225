"""Train only the global tokens and a classification head of an LSG repo, with everything else frozen.

The recipe of the LSG paper for cheap adaptation: the encoder keeps what it knows, and the few global rows learn what to
collect. Any text classification data with a text and a label column will do.

    effconv lsg bert-base-uncased --max-len 4096 --architecture ForSequenceClassification --num-global-tokens 16 -o lsg
    python examples/train_global_tokens.py lsg train.jsonl --output lsg-trained --steps 500

train.jsonl holds one {"text": ..., "label": 0} a line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


def trainable(name: str) -> bool:
    """Whether a parameter is trained: the global embeddings and the classification head."""
    return "global_embeddings" in name or name.startswith("classifier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="an LSG repo with a classification head")
    parser.add_argument("data", type=Path, help='JSON lines with "text" and "label"')
    parser.add_argument("--output", required=True, help="where to save the trained repo")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="high: few parameters are trained")
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer = AutoTokenizer.from_pretrained(arguments.repo, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.repo, trust_remote_code=True, num_labels=max(row["label"] for row in rows) + 1
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable(name)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"training {trained:,} of {sum(parameter.numel() for parameter in model.parameters()):,} parameters")

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        encoded = tokenizer([row["text"] for row in batch], truncation=True, padding=True, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([row["label"] for row in batch])}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{arguments.output}/checkpoints",
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch,
            learning_rate=arguments.learning_rate,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            logging_steps=max(arguments.steps // 10, 1),
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    trainer.save_model(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
