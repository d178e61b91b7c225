"""Saves a converted model as the libraries of its users do, in a process that knows nothing of effconv.

    python saving_worker.py FOLDER WAY=REPO...      each way into FOLDER/WAY

The first text that each model was trained on stands in no file: what is saved is what the libraries save.
"""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [
    "the of and to in",
    "a is that it was for on with as he be by at",
    "this had not",
    "are but from or have an they",
]
TRUSTED = {"trust_remote_code": True}


@cache
def trained(repo: Path, folder: Path) -> Any:
    """Two steps of Trainer, which leaves a checkpoint in the folder; the tokenizer has cut texts to 16 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(repo, **TRUSTED)
    model = AutoModelForSequenceClassification.from_pretrained(repo, num_labels=3, **TRUSTED)
    rows = [{**tokenizer(text, truncation=True, max_length=16), "labels": i % 3} for i, text in enumerate(TEXTS)]
    options = transformers.TrainingArguments(
        folder, max_steps=2, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(
        model, options, train_dataset=rows, processing_class=tokenizer, data_collator=collator
    )
    trainer.train()
    return trainer


def trainer(repo: Path, folder: Path) -> None:
    trained(repo, folder.with_name("run")).save_model(folder)


def checkpoint(repo: Path, folder: Path) -> None:
    trained(repo, folder.with_name("run"))
    shutil.copytree(folder.with_name("run") / "checkpoint-2", folder)


def deepspeed(repo: Path, folder: Path) -> None:
    """The folder of a checkpoint after DeepSpeed's zero_to_fp32.py ran: a .bin and the states of the optimiser."""
    checkpoint(repo, folder)
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    torch.save({f"module.{name}": value for name, value in weights.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "global_step2").mkdir()
    (folder / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"state")
    (folder / "zero_to_fp32.py").write_text("print('DeepSpeed puts its script here')\n", encoding="utf-8")
    (folder / "latest").write_text("global_step2", encoding="utf-8")


def peft(repo: Path, folder: Path) -> None:
    """A LoRA adapter that is merged."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForMaskedLM.from_pretrained(repo, **TRUSTED)
    linear = [name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = get_peft_model(model, LoraConfig(target_modules=linear[:2], init_lora_weights=False))
    adapted.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(repo, **TRUSTED).save_pretrained(folder)


def accelerate(repo: Path, folder: Path) -> None:
    """Without a tokenizer, as the examples of accelerate do it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(AutoModelForMaskedLM.from_pretrained(repo, **TRUSTED))
    state = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(
        folder, is_main_process=True, save_function=accelerator.save, state_dict=state
    )


def fsdp(repo: Path, folder: Path) -> None:
    """Sharded over two processes by torch's fully_shard, as accelerate and Trainer do it for FSDP 2."""
    torch.multiprocessing.spawn(_sharded, (repo, folder), nprocs=2)
    AutoTokenizer.from_pretrained(repo, **TRUSTED).save_pretrained(folder)


def _sharded(rank: int, repo: Path, folder: Path) -> None:
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    model = AutoModelForMaskedLM.from_pretrained(repo, **TRUSTED)
    mesh = distributed.init_device_mesh("cpu", (2,))
    for layers in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(5, 30, (2, 20), generator=torch.Generator().manual_seed(rank))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder, state_dict=state)
    distributed.barrier()
    distributed.destroy_process_group()


def vocabulary(repo: Path, folder: Path) -> None:
    """Another head, and three tokens more."""
    tokenizer = AutoTokenizer.from_pretrained(repo, **TRUSTED)
    tokenizer.add_tokens(["covid", "fox"])
    tokenizer.add_tokens(["<document>"], special_tokens=True)
    model = transformers.AutoModelForTokenClassification.from_pretrained(repo, num_labels=5, **TRUSTED)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dtype(repo: Path, folder: Path) -> None:
    """In 16 bits, in shards."""
    AutoModel.from_pretrained(repo, dtype=torch.bfloat16, **TRUSTED).save_pretrained(folder, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(repo, **TRUSTED).save_pretrained(folder)


def sentence(repo: Path, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(repo), device="cpu", **TRUSTED).save(str(folder))


def main(folder: str, *ways: str) -> None:
    for way, _, repo in (asked.partition("=") for asked in ways):
        globals()[way](Path(repo), Path(folder) / way)


if __name__ == "__main__":
    main(*sys.argv[1:])
