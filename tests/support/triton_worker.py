"""Run the Triton kernel of LSG attention on a CPU, under Triton's interpreter, and print how far it is from the oracle.

    TRITON_INTERPRET=1 python triton_worker.py [CASE ...]

Triton reads that variable when it is imported, so this takes a process of its own. The result is one JSON object
{case: {name of a tensor: max |a - b| / max(1, max |b|), or "nan"} or {"error": text}}, on the last line of stdout. The
oracle is float64 and shares no code with the kernel; for dropout it draws the factors with a Philox of its own.
"""

from __future__ import annotations

import json
import sys
import traceback

import numpy as np
import torch
import triton.language as tl
from lsg_cases import DEFAULTS, mask_of, options, qkv
from lsg_oracle import oracle
from torch.utils.checkpoint import checkpoint
from triton.runtime import interpreter

from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_triton as kernel

# Options, then what is no option: length, lengths of the sequences, heads, head size, dtype, causal, chunk.
FULL = {
    "norm": {"block_size": 16, "sparse_block_size": 16, "lengths": (37, 22)},
    "norm, causal": {"causal": True, "num_global_tokens": 2, "lengths": (13, 10)},
    "norm, blocks of 12, chunks of 8": {
        "block_size": 12, "sparsity_factor": 4, "sparse_block_size": 8, "lengths": (45, 30), "num_global_tokens": 3,
        "heads": 1,
    },
    "norm, windows that cut chunks": {"block_size": 12, "sparse_block_size": 16, "lengths": (61, 40), "heads": 1},
    "norm, whole blocks": {"block_size": 8, "sparse_block_size": 8, "lengths": (32,), "size": 16},
    "norm, largest elsewhere": {"lengths": (13,), "most_chosen_from": 2},
    "pooling, blocks of 32": {
        "sparsity_type": "pooling", "block_size": 32, "sparse_block_size": 32, "heads": 1, "lengths": (101,),
    },
    "stride": {"sparsity_type": "stride", "sparse_block_size": 7, "num_global_tokens": 0, "lengths": (21,)},
    "stride, causal": {"sparsity_type": "stride", "sparse_block_size": 7, "causal": True, "lengths": (21,)},
    "block_stride, blocks of 12": {
        "sparsity_type": "block_stride", "block_size": 12, "sparsity_factor": 4, "sparse_block_size": 8, "size": 20,
        "num_global_tokens": 3, "lengths": (45,),
    },
    "bos_pooling, published": {
        "sparsity_type": "bos_pooling", "bos_pooling_padding": "published", "lengths": (19, 10), "heads": 1,
    },
    "lsh": {"sparsity_type": "lsh", "lengths": (19,), "size": 16},
    "none": {"sparsity_type": "none", "num_global_tokens": 0, "lengths": (17,)},
    "none, causal": {"sparsity_type": "none", "causal": True, "causal_globals": "published", "lengths": (17,)},
    "every token is a sparse key": {"sparsity_factor": 1, "sparse_block_size": 7, "lengths": (21,)},
    "one sparse key a block": {
        "sparsity_type": "pooling", "sparsity_factor": 4, "sparse_block_size": 3, "lengths": (23,)
    },
    "many tiles a block, many chunks": {
        "block_size": 40, "sparse_block_size": 40, "sparsity_type": "stride", "num_global_tokens": 20, "heads": 1,
        "lengths": (90,), "chunk": 32,
    },
    "many globals, causal": {
        "num_global_tokens": 20, "heads": 1, "lengths": (17,), "chunk": 16, "causal": True, "sparsity_type": "stride",
    },
    "head of 128": {"sparsity_type": "stride", "size": 128, "heads": 1, "lengths": (13,)},
    "float16": {"sparsity_type": "stride", "lengths": (15,), "dtype": "float16"},
    "bfloat16": {"sparsity_type": "stride", "lengths": (15,), "dtype": "bfloat16"},
    "dropout": {"sparsity_type": "stride", "lengths": (15,), "dropout": 0.4, "num_global_tokens": 2},
    "dropout, causal": {
        "sparsity_type": "stride", "lengths": (19,), "dropout": 0.1, "causal": True, "block_size": 8, "heads": 1,
    },
}  # fmt: skip
SEED = (5 << 32) + 77


def run_full(
    lengths, heads=2, size=6, dtype="float32", causal=False, chunk=1024, dropout=0.0, device="cpu",
    most_chosen_from=128, **changes,
):  # fmt: skip
    """The context and the gradients of q, k and v, through the choice of sparse keys, beside the oracle's.

    The device is the CPU here; benchmarks/gpu_correctness.py runs the same on a GPU, without the interpreter.
    """
    config = options(**changes)
    kernel.CHUNK, kernel.MOST_CHOSEN_FROM = chunk, most_chosen_from
    inputs = qkv(config, lengths[0], batch=len(lengths), heads=heads, size=size, dtype=getattr(torch, dtype))
    mask = mask_of(config, lengths, lengths[0]) if len(lengths) > 1 else None
    wanted = [x.double().requires_grad_() for x in inputs]
    found = [x.clone().to(device).requires_grad_() for x in inputs]
    if dropout:
        expected = dense_attention(*wanted, config, causal, dropout)
    else:
        expected = oracle(*wanted, mask, config, causal=causal)
    moved = None if mask is None else mask.to(device)
    context = lsg.lsg_attention(*found, moved, config, causal=causal, dropout=dropout).cpu()
    assert context.dtype == inputs[0].dtype
    weight = torch.randn(context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = {"context": (context, expected)}
    for name, *both in zip(
        "qkv",
        torch.autograd.grad((context.double() * weight).sum(), found),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        pairs[name] = both
    return {name: difference(*both) for name, both in pairs.items()}


def difference(actual, expected):
    actual, expected = actual.double().cpu(), expected.cpu()
    far = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    return far if far == far else "nan"


def dense_attention(q, k, v, config, causal, dropout):
    """Attention with dropout in float64, every row over all keys and the whole sparse list, with a mask.

    For "stride", whose list is a choice of tokens. Dropout counts keys as `dropout_factors` of the kernel says.
    """
    assert config.sparsity_type == "stride"
    g, block, factor = config.num_global_tokens, config.block_size, config.sparsity_factor
    (batch, heads, rows, size), entries = q.shape, block // config.sparsity_factor
    padded = -(-(rows - g) // block) * block
    context = []
    for b in range(batch):
        for a in range(heads):
            tokens = [*range(g, rows), *(None for _ in range(rows, g + padded))]
            listed = [group[a % factor] for group in groups_of(tokens, factor)]
            places = [*range(rows), *listed]  # of k, for the key that counts as number i
            visible = torch.zeros(rows, len(places), dtype=torch.bool)
            for row in range(rows):
                visible[row, :g] = True
                if row < g:
                    visible[row, :rows] |= not causal
                    continue
                i = (row - g) // block
                last = row if causal else min(g + (i + 2) * block, rows) - 1
                visible[row, max(g, g + (i - 1) * block) : last + 1] = True
                starts = [(i - 1) * entries - config.sparse_block_size]
                starts += [] if causal else [(i + 2) * entries]
                for start in starts:
                    for e in range(max(start, 0), min(start + config.sparse_block_size, len(listed))):
                        visible[row, rows + e] = listed[e] is not None
            index = torch.tensor([0 if place is None else place for place in places])
            scores = (q[b, a] @ k[b, a, index].T) / size**0.5
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            kept = torch.from_numpy(drawn(b * heads + a, rows, len(places)) >= round(dropout * 2**24))
            assert abs(kept.double().mean() - (1 - dropout)) < 4 * (dropout * (1 - dropout) / kept.numel()) ** 0.5
            context.append((weights * kept / (1 - dropout)) @ v[b, a, index])
    return torch.stack(context).unflatten(0, (batch, heads))


def groups_of(entries, size):
    return [entries[i : i + size] for i in range(0, len(entries), size)]


def drawn(item, rows, keys):
    """24 random bits for each row and key: of Philox4x32-7 with counter (key, row, item, 0) and key SEED."""
    row, key = np.meshgrid(np.arange(rows), np.arange(keys), indexing="ij")
    counter = [key, row, np.full_like(row, item), np.zeros_like(row)]
    return philox(counter, (SEED & 0xFFFFFFFF, SEED >> 32), 7)[0] >> 8


def philox(counter, key, rounds):
    """Philox4x32 as in "Parallel random numbers: as easy as 1, 2, 3" (2011), in 64-bit integers."""
    low, counter = np.uint64(0xFFFFFFFF), [np.asarray(x).astype(np.uint64) for x in counter]
    key = [np.uint64(x) for x in key]
    for _ in range(rounds):
        a, b = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        shift = np.uint64(32)
        counter = [(b >> shift) ^ counter[1] ^ key[0], b & low, (a >> shift) ^ counter[3] ^ key[1], a & low]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return [x.astype(np.int64) for x in counter]


def run_philox():
    """The known answers that are published with the generator (Random123, kat_vectors)."""
    full = 0xFFFFFFFF
    zeros = [int(x) for x in philox([0, 0, 0, 0], (0, 0), 10)]
    ones = [int(x) for x in philox([full] * 4, (full, full), 10)]
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    return {"known answers": 0.0 if (zeros, ones) == known else 1.0}


def run_all_dropped(device="cpu"):
    config = options(sparsity_type="stride")
    inputs = [x.to(device) for x in qkv(config, 13, batch=1, heads=1, dtype=torch.float32)]
    context = lsg.lsg_attention(*inputs, None, config, dropout=1.0)
    return {"context": context.abs().max().item()}


def run_checkpoint(device="cpu"):
    """Gradient checkpointing draws the same dropout again; another seed draws another."""
    config = options(sparsity_type="none")
    inputs = [x.to(device).requires_grad_() for x in qkv(config, 9, batch=1, heads=1, dtype=torch.float32)]

    def run(*x):
        return lsg.lsg_attention(*x, None, config, dropout=0.3)

    torch.manual_seed(3)
    plain = run(*inputs)
    torch.manual_seed(3)
    again = checkpoint(run, *inputs, use_reentrant=False)
    found = {"context": difference(again, plain.double())}
    gradients = (torch.autograd.grad(x.sum(), inputs) for x in (again, plain))
    found |= {name: difference(a, b.double()) for name, a, b in zip("qkv", *gradients, strict=True)}
    found["another seed"] = 0.0 if difference(run(*inputs), plain.double()) > 1e-3 else 1.0
    return found


def run_nothing_seen(device="cpu"):
    """Rows that see nothing are zero, and so are their gradients, in the narrowest dtype and with large scores."""
    config = options(sparsity_type="stride", num_global_tokens=0)
    inputs = [(8 * x).half().to(device).requires_grad_() for x in qkv(config, 13, batch=1, heads=1)]
    context = lsg.lsg_attention(*inputs, mask_of(config, [0], 13).to(device), config)
    gradients = torch.autograd.grad(context.float().sum(), inputs)
    return {
        name: difference(x, x.double() * 0) for name, x in zip(("context", *"qkv"), (context, *gradients), strict=True)
    }


def run_strides(device="cpu"):
    """q, k and v laid out alike or each in its own way, and an expanded gradient, give the same."""
    config = options(sparsity_type="none")
    dense = [x.to(device).requires_grad_() for x in qkv(config, 9, batch=1, heads=2, dtype=torch.float32)]
    found = []
    as_model, columns = (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)), (lambda x: x.mT.contiguous().mT)
    for shape in (lambda x: x, as_model, columns):
        q, k, v = shape(dense[0]), dense[1], shape(dense[2])
        context = lsg.lsg_attention(q, k, v, None, config)
        found.append((context, *torch.autograd.grad(context.sum(), dense)))
    return {
        f"{name}, layout {number}": difference(a, b.double())
        for number in (1, 2)
        for name, a, b in zip(("context", *"qkv"), found[number], found[0], strict=True)
    }


def run_compiled(device="cpu"):
    """torch.compile takes attention as one graph, forward and backward, and what it runs is the same."""
    config, found = options(sparsity_type="norm"), {}
    inputs = [x.to(device).requires_grad_() for x in qkv(config, 21, batch=1, heads=2, dtype=torch.float32)]
    backend = "aot_eager" if device == "cpu" else "inductor"
    program = torch.compile(
        lambda *x: lsg.lsg_attention(*x, None, config, layer_index=0), backend=backend, fullgraph=True
    )
    contexts = program(*inputs), lsg.lsg_attention(*inputs, None, config)
    runs = [(x, *torch.autograd.grad(x.square().sum(), inputs)) for x in contexts]
    for name, a, b in zip(("context", *"qkv"), *runs, strict=True):
        found[name] = difference(a, b.double())
    return found


def run_checks_of_torch(device="cpu"):
    config = options(sparsity_type="stride")
    q, k, v = (x.to(device).requires_grad_() for x in qkv(config, 9, batch=1, heads=1, dtype=torch.float32))
    sparse = [x.detach() for x in lsg.select_sparse(q, k, v, None, config, 0, lsg.sparse_tokens)]
    for listed, chunk in ((sparse, 0), ((None, None, None), 4)):
        torch.library.opcheck(
            kernel.attention_op,
            (q, k, v, None, *listed, None, 1, 4, 4, 2, chunk, False, 0.0, "ieee"),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    return {"checks": 0.0}


def multiply_bfloat16():
    """Have the interpreter multiply bfloat16 as a GPU does: it keeps the bits in integers, and multiplies these."""

    def wide(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return stock(self, wide(a), wide(b), *rest)

    stock = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot


def prepare_once():
    """Have the interpreter prepare the language once a module and not at every call of a function: half of the time."""

    def prepare(function):
        if id(function.__globals__) not in prepared:
            prepared.add(id(function.__globals__))
            stock(function)
        return interpreter._LangPatchScope()  # with nothing to take back

    prepared, stock = set(), interpreter._patch_lang
    interpreter._patch_lang = prepare


OTHERS = {
    "all dropped": run_all_dropped,
    "checkpointing": run_checkpoint,
    "nothing seen": run_nothing_seen,
    "strides": run_strides,
    "torch.compile": run_compiled,
    "checks of torch": run_checks_of_torch,
}


def main() -> None:
    torch.set_num_threads(1)
    multiply_bfloat16()
    prepare_once()
    DEFAULTS["attention_form"] = "triton"
    draw = torch.randint
    results = {}
    for name in sys.argv[1:] or (*FULL, *OTHERS, "Philox"):
        seeded = name in FULL
        torch.randint = (lambda *_, **__: torch.tensor(SEED)) if seeded else draw
        try:
            results[name] = run_full(**FULL[name]) if seeded else {**OTHERS, "Philox": run_philox}[name]()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
