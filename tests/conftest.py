"""Settings of all tests, and the fixtures of several files."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from environments import warm

from effconv.convert.verify import run as verify

# Before torch is imported, and for every process that a test starts: the models are tiny, and the threads of two pytest
# workers on two cores wait for each other in busy loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test asks for more, they sleep while they wait

# A full collection looks through all that torch, transformers and some thousand tests have left, for half a second.
gc.set_threshold(100_000, 50, 100)

# What runs in the background is often started with these ignored, and hands that on to every process that a test starts
# and interrupts; effconv leaves ignored signals alone.
for ending in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(ending) is signal.SIG_IGN:
        signal.signal(ending, signal.SIG_DFL)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker a processor: hyperthreads too, which xdist leaves out, and at most eight, as each holds torch."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(8, processors))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the unit tests, so that `-m quick` runs them."""
    for item in items:
        longer = any(item.get_closest_marker(name) for name in ("slow", "nightly", "compat"))
        if item.path.parent.name == "unit" and not longer:
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _no_process_in_a_quick_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts one does not belong to the quick tier."""
    if not request.node.get_closest_marker("quick"):
        yield
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a quick test starts no process: mark it slow, or move it out of tests/unit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        yield


@pytest.fixture(autouse=True)
def _threads_are_left_as_they_were() -> Iterator[None]:
    """A function that leaves its own number of threads behind changes its caller's speed, and slows all later tests."""
    before = _threads()
    yield
    if before and _threads() != before:
        sys.modules["torch"].set_num_threads(before)
        pytest.fail(f"torch had {before} threads before this test and its fixtures, and other ones after it")


def _threads() -> int:
    """Those of torch, 0 where it is not imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 0


class _Warm:
    """The command of `environments.warm`, whose server starts when it is first needed."""

    def __iter__(self) -> Iterator[str]:
        return iter(warm())


@pytest.fixture(scope="session", autouse=True)
def _verified_in_forks() -> Iterator[None]:
    """What a test converts is verified in processes of `environments.warm`. Typed commands verify as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "PYTHON", _Warm())
        yield


@pytest.fixture
def fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of the verifying process itself: it begins with nothing imported."""
    monkeypatch.setattr(verify, "PYTHON", (sys.executable,))
