"""The GPU kernel of the emitted LSG attention: numbers under Triton's interpreter, compilation, and when it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lsg_goldens
import pytest
import torch
from lsg_cases import options, qkv
from places import SUPPORT
from tiers import daily

from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_triton as kernel
from effconv.templates.lsg_configuration import ATTENTION_FORMS

pytestmark = pytest.mark.xdist_group("triton")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: it has no wheel for this platform"
)
WORKER = SUPPORT / "triton_worker.py"
# Against float64: rounding of the inputs is not counted, rounding of weights and results is.
TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}
CASES = (
    "norm", "norm, causal", "norm, blocks of 12, chunks of 8", "norm, windows that cut chunks", "norm, whole blocks",
    "norm, largest elsewhere",
    "pooling, blocks of 32", "stride", "stride, causal", "block_stride, blocks of 12",
    "bos_pooling, published", "lsh", "none", "none, causal", "every token is a sparse key", "one sparse key a block",
    "many tiles a block, many chunks", "many globals, causal", "head of 128", "float16", "bfloat16", "dropout",
    "dropout, causal", "Philox", "all dropped", "checkpointing", "nothing seen", "strides", "torch.compile",
    "checks of torch",
)  # fmt: skip


# Each branch of the kernel once with every change: the interpreter takes seconds for a case.
DAILY = (
    "norm, causal", "norm, blocks of 12, chunks of 8", "stride", "bos_pooling, published", "none",
    "many tiles a block, many chunks", "bfloat16", "dropout, causal", "Philox", "nothing seen", "strides",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(request):
    """How far each case is from the oracle, from a process in which Triton interprets; all where a nightly one runs."""
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    cases = CASES if any(item.get_closest_marker("nightly") for item in ours) else DAILY
    paths = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, str(WORKER), *([] if cases is CASES else cases)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("case", daily(DAILY, of=CASES))
def test_context_and_gradients_are_those_of_the_oracle(case, results):
    found = results[case]
    assert "error" not in found, found["error"]
    assert found
    far = {name: x for name, x in found.items() if not (isinstance(x, float) and x <= TOLERANCES.get(case, 2e-6))}
    assert not far


@pytest.mark.nightly
@needs_triton
def test_every_case_of_the_worker_is_looked_at(results):
    assert set(results) == set(CASES)


@pytest.mark.nightly
@needs_triton
def test_an_emitted_model_with_the_kernel_gives_the_recorded_outputs(tmp_path, monkeypatch):
    read = lsg_goldens.read_cases
    wanted = ("norm_33_b16",)
    monkeypatch.setattr(lsg_goldens, "read_cases", lambda path: [x for x in read(path) if x["name"] in wanted])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    jobs = lsg_goldens.parity_jobs("bert", tmp_path)
    for case in (case for job in jobs for case in job["cases"]):
        case["load"]["attention_form"] = "triton"
    results = lsg_goldens.run_worker(jobs, tmp_path, sys.executable)
    assert set(results) == {f"bert/{name}" for name in wanted}
    assert not lsg_goldens.faults(results), "\n".join(lsg_goldens.faults(results))


SM80, SM90 = (80, "mma.sync"), (90, "wgmma.mma_async")  # compute capability, and what multiplies there
NOTHING = ""
KERNELS = {
    "token_rows": (SM90, "rows"),
    "global_rows": (SM80, "globals"),
    "merged_globals": ((80, NOTHING), "globals"),
    "largest_norms": ((80, NOTHING), "choice"),
    "token_rows_backward": (SM80, "rows_backward"),
    "global_rows_backward": (SM80, "globals_backward"),
    "chunks_together": ((80, NOTHING), "globals_backward"),
    "local_keys_backward": (SM90, "keys_backward"),
    "global_keys_backward": (SM80, "global_keys_backward"),
    "sparse_keys_backward": (SM80, "sparse_backward"),
}


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_a_gpu(name, tmp_path, monkeypatch):
    """To products on tensor cores, within the shared memory that every GPU from compute capability 8.0 on has."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled, ((capability, product), tiles) = getattr(kernel, name), KERNELS[name]
    dropout, chosen = (0.1, 0) if capability == 80 else (0.0, 128)
    chosen = 128 if name == "largest_norms" else chosen
    plan = kernel.plan_of(12, 64, True, True, 12, 1, 128, 128, 32, chosen, name.startswith("token"), dropout, "ieee")
    plan, launch = kernel.with_tiles(plan, torch.bfloat16, tiles)
    constants = {"plan": plan, "size": 128}
    kinds = dict.fromkeys(constants, "constexpr") | {"visible": "*i1", "sparse_visible": "*i1", "seed": "*i64"}
    kinds["chosen"] = "*i32"
    sums = ("sums", "other_sums", "sum_norms", "key_sums", "value_sums")
    kinds |= dict.fromkeys(("norms", "deltas", *sums), "*fp32")
    kinds |= dict.fromkeys(("rows", "seen_rows", "chunks", "entries", "batch_stride", "head_stride", "stride"), "i32")
    signature = {argument: kinds.get(argument, "*bf16") for argument in compiled.arg_names}
    values = {(compiled.arg_names.index(x),): value for x, value in constants.items() if x in compiled.arg_names}
    source = ASTSource(compiled, signature, values)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    assert product in made.asm["ptx"]
    assert made.metadata.shared <= 99 * 1024


@needs_triton
def test_a_gpu_gets_the_kernel_where_it_can_run_unless_the_config_asks_for_another_form(monkeypatch):
    monkeypatch.setattr(kernel, "obstacle_of_gpu", lambda device: "")
    queries = on("cuda"), on("cpu")
    chosen = {form: tuple(lsg.form_of(options(attention_form=form), q) for q in queries) for form in ATTENTION_FORMS}
    assert chosen == {
        "auto": ("triton", "cpu"),
        "plain": ("plain", "plain"),
        "flex": ("flex", "cpu"),
        "triton": ("triton", "cpu"),
    }


@needs_triton
@pytest.mark.parametrize(
    ("q", "obstacle"),
    [
        ({"dtype": torch.float64}, ""),
        ({"size": 192}, ""),
        ({}, "the GPU has compute capability 7.5, and it needs 8.0"),
        ({"kind": "xpu"}, ""),
    ],
    ids=str,
)
def test_by_itself_a_gpu_gets_plain_torch_where_the_kernel_cannot_run(q, obstacle, monkeypatch):
    monkeypatch.setattr(kernel, "obstacle_of_gpu", lambda device: obstacle)
    q = on(**{"kind": "cuda", **q})
    assert lsg.form_of(options(), q) == "plain"
    assert lsg.form_of(options(attention_form="triton"), q) == "triton"  # which then says why not


def test_the_field_is_read_at_every_call_and_the_environment_never(monkeypatch):
    monkeypatch.setenv("LSG_FORM", "triton")
    config, ran = options(), []
    inputs = qkv(config, 17)
    for name in ("plain", "cpu"):
        stock = getattr(lsg, f"{name}_attention")
        monkeypatch.setattr(
            lsg, f"{name}_attention", lambda *x, name=name, stock=stock: (ran.append(name), stock(*x))[1]
        )
    for form in ("auto", "plain", "triton"):
        config.attention_form = form
        lsg.lsg_attention(*inputs, None, config)
    assert ran == ["cpu", "plain", "cpu"]
    config.attention_form = "cuda"
    with pytest.raises(ValueError, match="attention_form must be one of auto, plain, flex, triton, got 'cuda'"):
        lsg.lsg_attention(*inputs, None, config)


def on(kind, dtype=torch.bfloat16, size=64):
    return SimpleNamespace(device=SimpleNamespace(type=kind, index=0), dtype=dtype, shape=(1, 12, 1025, size))


@needs_triton
def test_the_kernel_says_what_it_does_not_take(monkeypatch):
    monkeypatch.setattr(kernel, "obstacle_of_gpu", lambda device: "")
    assert kernel.obstacle(on("cuda")) == ""
    assert kernel.obstacle(on("cpu")) == "the inputs are not on an NVIDIA GPU"
    assert "the inputs are torch.float64" in kernel.obstacle(on("cuda", torch.float64))
    assert "the head size is 256" in kernel.obstacle(on("cuda", size=256))
    monkeypatch.setattr(kernel, "triton", None)
    assert kernel.obstacle(on("cuda")) == "Triton is not installed"


@needs_triton
def test_what_keeps_triton_from_compiling_for_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    probe = kernel.probed.__wrapped__
    assert probe(0) == "the GPU has compute capability 7.5, but it needs 8.0 or later"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    target = SimpleNamespace(get_current_target=lambda: None)
    monkeypatch.setattr(
        kernel,
        "triton",
        SimpleNamespace(__version__="3.10.1", runtime=SimpleNamespace(driver=SimpleNamespace(active=target))),
    )
    assert probe(0) == ""
    monkeypatch.setattr(kernel.triton, "__version__", "3.5.1")
    assert probe(0) == "Triton 3.5.1 is older than 3.6"
    monkeypatch.setattr(kernel.triton, "__version__", "3.10.0+git")

    def fails():
        raise RuntimeError("Failed to find C compiler")

    target.get_current_target = fails
    assert probe(0) == "Triton does not work here: Failed to find C compiler"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert probe(0) == "the GPU is not an NVIDIA GPU"


def test_without_triton_the_file_is_imported_and_asking_for_the_kernel_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("effconv.templates.no_triton_kernel", kernel.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    config = options(attention_form="triton")
    monkeypatch.setattr(lsg, "form_of", lambda config, q: config.attention_form)  # as on a GPU
    monkeypatch.setattr(lsg, "triton_attention", module.triton_attention)
    with pytest.raises(ValueError, match=r"Triton is not installed\. Set attention_form to 'auto'"):
        lsg.lsg_attention(*qkv(config, 17, dtype=torch.float32), None, config)


def test_float32_is_multiplied_as_torch_is_told_to():
    before, cpu = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul
    followed = cpu.fp32_precision
    try:
        for setting, precision in (("high", "tf32"), ("highest", "ieee")):
            torch.set_float32_matmul_precision(setting)
            assert kernel.float32_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
        cpu.fp32_precision = followed  # which follows a wider setting, until the line above


def test_tiles_hold_what_the_block_has():
    for block, rows in ((1, 16), (16, 16), (17, 32), (100, 128), (1000, 128)):
        plan = kernel.plan_of(2, 64, False, False, 1, 1, block, 0, 0, 0, False, 0.0, "ieee")
        tiled, _ = kernel.with_tiles(plan, torch.float16, "rows")
        assert tiled == replace(plan, rows=rows, keys=min(rows, 32))
