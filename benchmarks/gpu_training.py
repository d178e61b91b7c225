"""A minute of training on a GPU: masked bytes of this project's own text, and `effconv adapt` on a tiny repo.

The model is of BERT-base's size with random weights, a vocabulary of bytes and 4,096 tokens a text, in bfloat16
autocast with AdamW: dense and LSG do the same steps on the same texts. Loss must fall and stay finite.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_layers import reason

ROOT = Path(__file__).resolve().parent.parent
MASK, MASKED_SHARE = 256, 0.15
SIZE: dict[str, Any] = {
    "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "vocab_size": 264, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}


def run(device: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields an entry for each model that is trained for `seconds`, and one for `effconv adapt`."""
    text = own_text()
    for name, form in (("LSG", "auto"), ("dense (SDPA)", None)):
        try:
            yield {"model": name} | masked_bytes(device, tiny, seconds, form, text)
        except Exception as error:
            yield {"model": name, "error": reason(error)}
    try:
        yield {"model": "effconv adapt"} | adapted(device, tiny)
    except Exception as error:
        yield {"model": "effconv adapt", "error": str(error)[-2000:]}


def own_text() -> torch.Tensor:
    """The bytes of the documentation and of the sources, one file after the other."""
    files = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("*.md")])
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in files)), dtype=torch.uint8).long()


def masked_bytes(device: str, tiny: bool, seconds: float, form: str | None, text: torch.Tensor) -> dict[str, Any]:
    """Steps a second, and the loss at the beginning and at the end (means of ten steps)."""
    import transformers

    from effconv.lsgify.inmemory import lsgify

    batch, length = (2, 256) if tiny else (4, 4096)
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZE | (TINY if tiny else {}), max_position_embeddings=length)
    model = transformers.BertForMaskedLM(config)
    if form is not None:
        from types import SimpleNamespace

        tokens = SimpleNamespace(bos_token_id=0, cls_token_id=0, mask_token_id=MASK, sep_token_id=0, pad_token_id=0)
        options = {"block_size": 32, "sparse_block_size": 32} if tiny else {}
        model = lsgify(model, tokens, max_length=length, sparsity_factor=4, **options)
        model.config.attention_form = form
    peak(device)  # begins anew
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    generator = torch.Generator().manual_seed(0)
    losses: list[torch.Tensor] = []
    begin = time.perf_counter()
    first = begin
    while time.perf_counter() - begin < seconds or len(losses) < 12:
        ids, labels = masked(text, batch, length, generator)
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if len(losses) == 10:  # kernels are compiled
            losses[-1].item()
            first = time.perf_counter()
        if len(losses) % 10 == 0:
            losses[-1].item()  # waits for the GPU, so that the clock means something
    found = torch.stack(losses).float().cpu()
    rate = (len(losses) - 10) / (time.perf_counter() - first)
    return {
        "batch": batch, "tokens": length, "steps": len(losses), "steps_per_second": rate,
        "first_loss": float(found[:10].mean()), "last_loss": float(found[-10:].mean()),
        "finite": bool(found.isfinite().all()), "peak_mb": peak(device),
    }  # fmt: skip


def masked(
    text: torch.Tensor, batch: int, length: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of the text with some bytes masked, and the labels: those bytes, -100 elsewhere."""
    starts = torch.randint(len(text) - length, (batch, 1), generator=generator)
    ids = text[starts + torch.arange(length)]
    hidden = torch.rand(ids.shape, generator=generator) < MASKED_SHARE
    return ids.masked_fill(hidden, MASK), ids.masked_fill(~hidden, -100)


def peak(device: str) -> float | None:
    if device != "cuda":
        return None
    found = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return found


def adapted(device: str, tiny: bool) -> dict[str, Any]:
    """`effconv adapt --bf16` of a small LSG repo by masked tokens: its own record of loss and speed."""
    sys.path.append(str(ROOT / "tests"))
    import effconv
    from tiny import save_tiny

    folder = Path(tempfile.mkdtemp(prefix="effconv-gpu-"))
    size = (
        {}
        if tiny
        else {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 6}
    )
    source = save_tiny(folder / "source", "bert", "ForMaskedLM", 512, **size)
    block = 16 if tiny else 128
    repo = effconv.convert(
        source, "lsg", output=folder / "repo", verify=False, max_length=512 if tiny else 2048, block_size=block,
        sparse_block_size=block,
    ).output  # fmt: skip
    text = folder / "text.txt"
    text.write_text("\n\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))), encoding="utf-8")
    steps = "4" if tiny else "60"
    command = ["adapt", str(repo), "--data", str(text), "--objective", "mlm", "--train", "all", "--steps", steps,
               "--lengths", "128" if tiny else "512,2048", "--batch-tokens", "256" if tiny else "16384",
               "--evaluate-every", "20", "--no-verify", "--bf16", "-o", str(folder / "adapted")]  # fmt: skip
    begin = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", "from effconv.cli import main; main()", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"exit code {ran.returncode}: {ran.stdout[-1000:]}{ran.stderr[-1500:]}")
    manifest = json.loads((folder / "adapted" / "effconv.json").read_text(encoding="utf-8"))
    return {"seconds": time.perf_counter() - begin, "record": manifest.get("adapted", {})}
