"""Is what a GPU computes right? Forms of LSG attention, emitted models and other targets against float64 or the CPU.

Every check is a job that returns {what: (difference, limit)}. A difference is ‖a - b‖ / ‖b‖; it counts as right if it
is at most the limit, which NaN never is. Jobs are independent: a pool of processes shares the GPU, since most of the
time goes into compiling kernels on the CPU.

The oracle and the tiny models are those of tests/, so this needs a checkout. Over 400 lines, because it is one list of
checks that is read and run as a whole.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path += [str(TESTS / "support"), str(TESTS / "targets")]

from lsg_cases import mask_of, options, qkv  # noqa: E402
from lsg_oracle import oracle  # noqa: E402

import effconv  # noqa: E402
from effconv.templates import lsg_attention as lsg  # noqa: E402
from effconv.templates.lsg_configuration import ATTENTION_FORMS, SPARSITY_TYPES  # noqa: E402
from tiny import save_tiny  # noqa: E402

Found = dict[str, tuple[float, float]]
Job = Callable[[], Found]
# Rounding of weights and results, and of pooled keys, in the dtype; float32 is multiplied without TF32.
LIMITS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = tuple(LIMITS)
GLOBALS = (0, 1, 16)
MASKS = ("none", "padding", "holes")
MODEL_LIMIT = 1e-4  # of whole models in float32: a GPU sums in another order
CPU_FORMS = ("auto", "plain")


def run(device: str, tiny: bool, processes: int, seconds: float, only: str = "") -> Iterator[dict[str, Any]]:
    """Yields one entry a job as it ends: {"case", "checks", "error"}; jobs that are left after `seconds` are named.

    Args:
        device: "cuda", or "cpu" as a trial.
        tiny: a few jobs in place of all.
        processes: how many jobs run at once; 0 for this process alone.
        seconds: the time for all jobs.
        only: jobs in whose name this pattern is found.
    """
    names = [name for name in jobs(device, tiny) if re.search(only, name)]
    if not processes:
        yield from (done(name, device, tiny) for name in names)
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    waiting = {pool.submit(done, name, device, tiny): name for name in names}
    try:
        for future in as_completed(list(waiting), timeout=seconds):
            name = waiting.pop(future)
            error = future.exception()
            yield future.result() if error is None else {"case": name, "checks": {}, "error": repr(error)}
    except TimeoutError:
        yield from ({"case": name, "checks": {}, "error": "not finished in time"} for name in waiting.values())
        for process in list(pool._processes.values()):
            process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def done(name: str, device: str, tiny: bool) -> dict[str, Any]:
    """One job: what it found, or the error."""
    torch.manual_seed(0)
    begin, found, error = time.perf_counter(), {}, ""
    try:
        found = jobs(device, tiny)[name]()
    except Exception:
        error = traceback.format_exc()[-3000:]
    checks = {what: list(pair) for what, pair in found.items()}
    return {"case": name, "checks": checks, "error": error, "seconds": round(time.perf_counter() - begin, 1)}


def right(entry: dict[str, Any]) -> bool:
    """Whether a job ended, and every difference is within its limit."""
    return not entry["error"] and all(far <= limit for far, limit in entry["checks"].values())


def forms_on(device: str) -> tuple[str, ...]:
    """The forms that run there; on a CPU the others would be the kernel for CPUs."""
    return ATTENTION_FORMS if device == "cuda" else CPU_FORMS


def jobs(device: str, tiny: bool) -> dict[str, Job]:
    """Every job by name, the long ones first."""
    found: dict[str, Job] = {}
    forms = forms_on(device)
    if "flex" in forms:
        found["flex, ten lengths"] = partial(many_lengths, device, "flex", tiny)
    used = tuple(form for form in forms if form != "triton")  # of models: on a GPU it is what "auto" takes
    for form in used:
        found[f"torch.compile of a model, {form}"] = partial(compiled_model, device, form)
    for number, (kind, causal) in enumerate((kind, causal) for kind in SPARSITY_TYPES for causal in (False, True)):
        for turn in range(1 if tiny else 3):
            dtype, mask, count = (x[(number + turn * by) % 3] for x, by in ((DTYPES, 1), (MASKS, 2), (GLOBALS, 1)))
            name = f"{kind}{', causal' if causal else ''}, {mask} mask, {count} globals, {named(dtype)}"
            compiles = turn == 0 and number % 4 in (0, 3)  # FlexAttention takes half a minute each
            chosen = forms if compiles else tuple(form for form in forms if form != "flex")
            found[name] = partial(small, device, chosen, kind, causal, dtype, mask, count)
    for number, kind in enumerate(("norm", "none", "lsh", "block_stride")):
        dtype, causal = DTYPES[number % 3], number % 2 == 1
        name = f"{kind}{', causal' if causal else ''}, blocks of 128, {named(dtype)}"
        found[name] = partial(large, device, forms, kind, causal, dtype, 3 if tiny else 9)
    found["same bits twice"] = partial(same_bits, device, forms)
    if "triton" in forms:
        import triton_worker

        for name, case in triton_worker.FULL.items():
            found[f"kernel: {name}"] = partial(kernel_case, device, case)
        for other in ("checkpointing", "nothing seen", "strides", "checks of torch", "all dropped", "torch.compile"):
            found[f"kernel: {other}"] = partial(kernel_other, device, other)
    for form in used:
        found[f"mixed lengths, {form}"] = partial(mixed_lengths, device, form)
        found[f"training with dropout, {form}"] = partial(training, device, form)
    for family in ("bert",) if tiny else ("bert", "albert"):
        found[f"LSG {family}, forward and backward"] = partial(emitted, device, used, family)
    found["LSG bart, generate"] = partial(generate, device, ("auto", "plain"))
    for target in ("linformer",) if tiny else ("linformer", "lambda", "lambda-published", "transnormer"):
        found[target] = partial(other_target, device, target)
    found["BiGS"] = partial(bigs, device)
    return found


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def distance(actual: Tensor, expected: Tensor) -> float:
    """‖a - b‖ / ‖b‖ in float64, on the CPU."""
    a, b = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


# LSG attention alone.


def small(
    device: str, forms: tuple[str, ...], kind: str, causal: bool, dtype: torch.dtype, mask: str, count: int
) -> Found:
    """Context and gradients of two texts beside the tests' oracle, blocks of 16 and heads of 64."""
    length = 16 * 4 + 7
    changes = {"block_size": 16, "sparse_block_size": 16, "num_global_tokens": count, "sparsity_type": kind}
    inputs = qkv(options(**changes), length, heads=2, size=64, dtype=dtype)
    visible = visible_rows(mask, options(**changes), length)
    wanted = [x.double().requires_grad_() for x in inputs]
    expected = oracle(*wanted, visible, options(**changes), causal=causal)
    return compared(device, forms, changes, causal, inputs, visible, wanted, expected)


def visible_rows(kind: str, config: Any, length: int) -> Tensor | None:
    """A mask (2, g + t): none, padding on the right of one text, or holes in both."""
    if kind == "none":
        return None
    lengths = [length, length * 2 // 3] if kind == "padding" else [length, length]
    mask = mask_of(config, lengths, length)
    if kind == "holes":
        mask[:, config.num_global_tokens + 1 :: 3] = False
        mask[1, -5:] = False
    return mask


def large(device: str, forms: tuple[str, ...], kind: str, causal: bool, dtype: torch.dtype, blocks: int) -> Found:
    """The same at the sizes that models have, beside the plain form in float64 on the same device."""
    length = 128 * blocks + 50
    changes = {"block_size": 128, "sparse_block_size": 128, "sparsity_factor": 4, "sparsity_type": kind}
    inputs = qkv(options(**changes), length, heads=12, size=64, dtype=dtype)
    visible = visible_rows("holes", options(**changes), length)
    wanted = [x.to(device, torch.float64).requires_grad_() for x in inputs]
    plain = options(**changes, attention_form="plain")
    expected = lsg.lsg_attention(*wanted, None if visible is None else visible.to(device), plain, causal=causal)
    return compared(device, forms, changes, causal, inputs, visible, wanted, expected)


def compared(
    device: str, forms: tuple[str, ...], changes: dict[str, Any], causal: bool, inputs: list[Tensor],
    visible: Tensor | None, wanted: list[Tensor], expected: Tensor,
) -> Found:  # fmt: skip
    """Context and gradients of every form beside those expected; rows that see nothing have no expectation."""
    defined = ~expected.detach().isnan()
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight.to(expected.device) * defined
    gradients = torch.autograd.grad((expected.where(defined, 0.0) * weight).sum(), wanted)
    found: Found = {}
    for form in forms:
        config = options(**changes, attention_form=form)
        given = [x.to(device).requires_grad_() for x in inputs]
        mask = None if visible is None else visible.to(device)
        context = lsg.lsg_attention(*given, mask, config, causal=causal)
        assert context.dtype == inputs[0].dtype
        assert context.isfinite().all(), f"{form}: not finite"
        shown = context.double().where(defined.to(device), 0.0)
        got = torch.autograd.grad((shown * weight.to(device)).sum(), given)
        for name, a, b in zip(
            ("context", "dq", "dk", "dv"), (shown, *got), (expected.where(defined, 0.0), *gradients), strict=True
        ):
            found[f"{form}, {name}"] = distance(a, b), LIMITS[inputs[0].dtype]
    return found


def many_lengths(device: str, form: str, tiny: bool) -> Found:
    """One layer at more lengths than a compiler of shapes keeps kernels for, with and without gradients."""
    found = {}
    for number in range(2 if tiny else 10):
        config = options(block_size=128, sparse_block_size=128, sparsity_factor=4, attention_form=form)
        plain = options(block_size=128, sparse_block_size=128, sparsity_factor=4, attention_form="plain")
        length, batch = 300 + 173 * number, 1 + number % 3
        inputs = [x.to(device) for x in qkv(config, length, batch=batch, heads=4, size=64, dtype=torch.float32)]
        for x in inputs:
            x.requires_grad_(number % 2 == 0)
        with torch.set_grad_enabled(number % 2 == 0):
            expected = lsg.lsg_attention(*(x.double() for x in inputs), None, plain)
            found[f"{length} tokens"] = (
                distance(lsg.lsg_attention(*inputs, None, config), expected),
                LIMITS[torch.float32],
            )
    return found


def same_bits(device: str, forms: tuple[str, ...]) -> Found:
    """Whether a form gives the same bits for the same input: 0 or 1, gradients too. SDPA's own backward may not."""
    found = {}
    for form in (form for form in forms if form in ("triton", "auto")):
        config = options(block_size=128, sparse_block_size=128, sparsity_factor=4, attention_form=form)
        inputs = [x.to(device).requires_grad_() for x in qkv(config, 1500, heads=4, size=64, dtype=torch.bfloat16)]
        runs = []
        for _ in range(2):
            context = lsg.lsg_attention(*inputs, None, config)
            runs.append((context, *torch.autograd.grad(context.square().sum(), inputs)))
        for name, one, other in zip(("context", "dq", "dk", "dv"), *runs, strict=True):
            found[f"{form}, {name}"] = float(not torch.equal(one, other)), 0.0
    return found


def kernel_case(device: str, case: dict[str, Any]) -> Found:
    """A case that the tests run under Triton's interpreter: odd sizes, strides, dropout by a Philox of its own."""
    import triton_worker
    from lsg_cases import DEFAULTS
    from test_lsg_kernel_triton import TOLERANCES

    DEFAULTS["attention_form"] = "triton"
    draw, kernel = torch.randint, triton_worker.kernel
    before = kernel.CHUNK, kernel.MOST_CHOSEN_FROM  # a case may change them
    torch.randint = lambda *_, **__: torch.tensor(triton_worker.SEED, device=device)
    try:
        found = triton_worker.run_full(**case, device=device)
    finally:
        torch.randint = draw
        kernel.CHUNK, kernel.MOST_CHOSEN_FROM = before
    return {name: (float(far), TOLERANCES.get(case.get("dtype", ""), 2e-5)) for name, far in found.items()}


def kernel_other(device: str, name: str) -> Found:
    import triton_worker
    from lsg_cases import DEFAULTS

    DEFAULTS["attention_form"] = "triton"
    return {what: (float(far), 1e-5) for what, far in triton_worker.OTHERS[name](device=device).items()}


# Models.


def made(family: str, target: str, head: str = "Model", **chosen: Any) -> Path:
    """A tiny repo of a target, in a folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix="effconv-gpu-"))
    heads = {} if family == "bart" else {"num_attention_heads": 2}  # of 16, the least that FlexAttention takes
    source = save_tiny(folder / "source", family, head, 64, **heads)
    if target in ("lambda", "transnormer"):
        chosen["calibrate"] = (calibration(folder / "text.txt"),)
    return effconv.convert(source, target, output=folder / "repo", verify=False, **chosen).output


def calibration(path: Path) -> Path:
    words = "the of and to in a is that it was for on with as he be by at this had not are but from or have an they"
    path.write_text("\n\n".join(f"{words} {words[i:]} {words[: 3 * i]}" for i in range(40)), encoding="utf-8")
    return path


SMALL: dict[str, dict[str, Any]] = {
    "lsg": {"max_length": 256, "block_size": 16, "sparse_block_size": 16},
    "linformer": {"max_length": 160, "proj_dim": 16},
    "lambda": {"max_length": 160, "key_depth": 4, "local_context": 5},
    "lambda-published": {"max_length": 160, "key_depth": 4, "local_context": 5, "intra_depth": 2},
    "transnormer": {"max_length": 160, "block_size": 16},
}


def loaded(repo: Path, auto: str = "AutoModel", **fields: Any) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, auto).from_pretrained(repo, trust_remote_code=True, **fields).eval()


def ids(vocabulary: int, lengths: tuple[int, ...], device: str = "cpu") -> dict[str, Tensor]:
    """Random ids and their mask, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, vocabulary, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": (tokens * mask).to(device), "attention_mask": mask.to(device)}


def states_and_gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last states of real tokens, and the gradient of every parameter as one vector."""
    real = inputs["attention_mask"].bool()
    output = model(**inputs)
    last = output[0][:, -real.shape[1] :][real]
    model.zero_grad()
    weight = torch.randn(last.shape, generator=torch.Generator().manual_seed(1)).to(last.device)
    (last * weight).sum().backward()
    # A compiled model has zeros where an eager one has no gradient.
    gradients = [(torch.zeros_like(x) if x.grad is None else x.grad).flatten().cpu() for x in model.parameters()]
    return {"states": last.detach().cpu(), "gradients": torch.cat(gradients)}


def as_on_the_cpu(
    device: str, model: Any, inputs: dict[str, Tensor], label: str, reference: torch.dtype = torch.float64
) -> Found:
    """A model in float32 on the device beside itself in float64 on the CPU."""
    wanted = states_and_gradients(model.to(reference), inputs)
    moved = {name: x.to(device) for name, x in inputs.items()}
    found = states_and_gradients(model.float().to(device), moved)
    return {f"{label}{name}": (distance(found[name], wanted[name]), MODEL_LIMIT) for name in wanted}


def emitted(device: str, forms: tuple[str, ...], family: str) -> Found:
    repo, found = made(family, "lsg", **SMALL["lsg"]), {}
    for form in forms:
        model = loaded(repo, attention_form=form)
        found |= as_on_the_cpu(device, model, ids(model.config.vocab_size, (150, 150)), f"{form}, ")
    return found


def mixed_lengths(device: str, form: str) -> Found:
    """A padded batch, which is unpadded: on the device, beside the padded one, and on the CPU."""
    repo, found = made("bert", "lsg", **SMALL["lsg"]), {}
    for lengths in ((200, 90, 3), (256, 255, 40, 35, 120)):
        for unpad in (True, False):
            model = loaded(repo, attention_form=form, unpad_inputs=unpad)
            inputs = ids(model.config.vocab_size, lengths)
            found |= as_on_the_cpu(device, model, inputs, f"{lengths}, {'un' if unpad else ''}padded, ")
    return found


def training(device: str, form: str) -> Found:
    """Steps with dropout, under autocast and in bfloat16: finite. A form that has no dropout must say so."""
    repo, found = made("bert", "lsg", **SMALL["lsg"]), {}
    for dtype, autocast in ((torch.float32, True), (torch.bfloat16, False)):
        model = loaded(repo, attention_form=form, dtype=dtype).to(device).train()
        assert model.config.attention_probs_dropout_prob > 0
        inputs = ids(model.config.vocab_size, (200, 90), device)
        try:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                last = model(**inputs)[0]
            last.float().square().mean().backward()
        except ValueError as error:
            refused = form == "flex" and "no dropout" in str(error)
            if not refused:
                raise
            continue
        gradients = [x.grad for x in model.parameters() if x.grad is not None]
        finite = all(x.isfinite().all() for x in (last, *gradients))
        found[f"{named(dtype)}, autocast {autocast}"] = float(not finite), 0.0
    return found


def compiled_model(device: str, form: str) -> Found:
    """torch.compile of an emitted model at three lengths, forward, and forward and backward."""
    model = loaded(made("bert", "lsg", **SMALL["lsg"]), attention_form=form).to(device)
    program, found = torch.compile(model), {}
    for length in (200, 150, 100):
        inputs = ids(model.config.vocab_size, (length, length - 7), device)
        with torch.no_grad():
            expected = model(**inputs)[0]
            found[f"{length} tokens"] = distance(program(**inputs)[0], expected), MODEL_LIMIT
    inputs = ids(model.config.vocab_size, (200, 193), device)
    for name, expected in states_and_gradients(model, inputs).items():
        found[f"trained, {name}"] = distance(states_and_gradients(program, inputs)[name], expected), MODEL_LIMIT
    return found


def generate(device: str, forms: tuple[str, ...]) -> Found:
    """Greedy search and beams of an encoder and decoder: the tokens that the CPU finds; 0 or 1."""
    repo, found = made("bart", "lsg", "ForConditionalGeneration", **SMALL["lsg"]), {}
    for form in forms:
        model = loaded(repo, "AutoModelForSeq2SeqLM", attention_form=form)
        inputs = ids(model.config.vocab_size, (200, 131))
        moved = {name: x.to(device) for name, x in inputs.items()}
        for beams in (1, 3):
            settings = {"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12, "num_beams": beams}
            expected = model.to("cpu").generate(**inputs, **settings)
            same = torch.equal(model.to(device).generate(**moved, **settings).cpu(), expected)
            found[f"{form}, {beams} beams"] = float(not same), 0.0
    return found


def other_target(device: str, target: str) -> Found:
    model = loaded(made("bert", target, **SMALL[target]))
    reference = torch.float32 if target == "transnormer" else torch.float64  # it has no float64
    return as_on_the_cpu(device, model, ids(model.config.vocab_size, (150, 90)), "", reference)


def bigs(device: str) -> Found:
    """BiGS as converted from a recorded JAX checkpoint."""
    source = TESTS / "goldens" / "bigs" / "base_lin_L37"
    repo = Path(tempfile.mkdtemp(prefix="effconv-gpu-")) / "repo"
    effconv.convert(source, "jax2torch", output=repo, verify=False)
    model = loaded(repo)
    length = min(37, model.config.max_position_embeddings)
    return as_on_the_cpu(device, model, ids(model.config.vocab_size, (length, length)), "")
