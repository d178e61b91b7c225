"""The float32 precision of an encoder's forward: set for the time of the call, and nothing else changes."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from test_inmemory import dense

import effconv
from effconv.templates.efficient_configuration import EfficientConfigMixin
from effconv.templates.fp32_precision import fp32_precision

MKLDNN, CUDA = torch.backends.mkldnn, torch.backends.cuda


def settings():
    """All that torch keeps of the kind."""
    return {
        "all": torch.backends.fp32_precision,
        "mkldnn": MKLDNN.fp32_precision,
        "mkldnn matmul": MKLDNN.matmul.fp32_precision,
        "mkldnn conv": MKLDNN.conv.fp32_precision,
        "cuda matmul": CUDA.matmul.fp32_precision,
        "cudnn conv": torch.backends.cudnn.conv.fp32_precision,
    }


@pytest.fixture(autouse=True)
def unchanged():
    before, threads = (settings(), torch.get_float32_matmul_precision()), torch.get_num_threads()
    torch.set_num_threads(1)  # under a setting, products of several threads differ in their last bits
    yield
    torch.set_num_threads(threads)
    assert (settings(), torch.get_float32_matmul_precision()) == before


@pytest.fixture(scope="module")
def model():
    return effconv.lsgify(dense("bert", "Model"), max_length=256, block_size=8, global_init="random").eval()


@pytest.fixture
def during(model):
    """The settings while the first layer runs."""
    found = []
    hook = model.encoder.layer[0].register_forward_hook(lambda *_: found.append(settings()))
    yield found
    hook.remove()
    model.config.mkldnn_fp32_precision = None


def run(model):
    ids = torch.randint(5, 60, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).last_hidden_state


def test_by_default_nothing_is_set(model, during):
    before = settings()
    run(model)
    assert during == [before]


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_it_is_set_for_the_products_of_the_call_alone(model, during, precision):
    before, expected = settings(), run(model)
    model.config.mkldnn_fp32_precision = precision
    found = run(model)
    assert during == [before, {**before, "mkldnn matmul": precision}]
    assert settings() == before
    # The documented error: none beyond rounding where products stay in float32, that of bfloat16 where they do not.
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_it_is_put_back_where_the_forward_raises(model):
    def fail(*_):
        raise RuntimeError("in the middle")

    before = settings()
    model.config.mkldnn_fp32_precision = "bf16"
    hook = model.encoder.layer[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            run(model)
        assert settings() == before
    finally:
        hook.remove()
        model.config.mkldnn_fp32_precision = None


def test_calls_in_calls_get_their_own():
    seen = []
    with fp32_precision("bf16"):
        with fp32_precision("tf32"), fp32_precision(None):
            seen.append(MKLDNN.matmul.fp32_precision)
        seen.append(MKLDNN.matmul.fp32_precision)
    assert seen == ["tf32", "bf16"]


def test_of_threads_that_overlap_the_last_one_puts_it_back():
    entered, left = threading.Event(), threading.Event()

    def other():
        with fp32_precision("bf16"):
            entered.set()
            left.wait(60)

    thread = threading.Thread(target=other)
    with fp32_precision("bf16"):
        thread.start()
        assert entered.wait(60)
    assert MKLDNN.matmul.fp32_precision == "bf16"  # the other one still runs
    left.set()
    thread.join()


@pytest.mark.parametrize("wider", ["tf32", "ieee"])
def test_a_setting_that_follows_a_wider_one_follows_it_again(wider):
    torch.backends.fp32_precision = wider
    try:
        with fp32_precision("bf16"):
            pass
        assert MKLDNN.matmul.fp32_precision == wider
        torch.backends.fp32_precision = "none"
        assert MKLDNN.matmul.fp32_precision == "none"
    finally:
        torch.backends.fp32_precision = "none"


def test_what_the_caller_set_is_put_back():
    MKLDNN.matmul.fp32_precision = "tf32"
    try:
        with fp32_precision("bf16"):
            assert MKLDNN.matmul.fp32_precision == "bf16"
        assert MKLDNN.matmul.fp32_precision == "tf32"
    finally:
        MKLDNN.matmul.fp32_precision = "none"


@pytest.mark.nightly
def test_a_compiled_model_has_the_callers_setting(model, during):
    before, expected = settings(), run(model)
    model.config.mkldnn_fp32_precision = "bf16"
    torch._dynamo.reset()  # a process that has compiled many models compiles no more, and then runs them as they are
    graph = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(graph), expected, rtol=0, atol=1e-5)  # products in bfloat16 are 1e-3 off
    assert settings() == before


@pytest.mark.parametrize("value", ["medium", "float32", True, 16])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="give one of ieee, tf32, bf16, or null") as refused:
        EfficientConfigMixin(mkldnn_fp32_precision=value)
    assert f"mkldnn_fp32_precision is {value!r}" in str(refused.value)


def test_both_faults_are_told_together():
    with pytest.raises(ValueError, match=r"unpad_inputs is 'no'.*\n.*mkldnn_fp32_precision is 1"):
        EfficientConfigMixin(unpad_inputs="no", mkldnn_fp32_precision=1)


def test_a_torch_without_the_setting_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    with pytest.raises(ValueError, match=r"use torch 2\.9 or later"), fp32_precision("bf16"):
        pass
