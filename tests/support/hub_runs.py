"""The command line in processes of their own, against a loopback Hub: nothing waits, what a process did is recorded."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import LoopbackHub

DRIVER = """
import json, os, sys, time

def run(record, script=None):
    sockets = []
    time.sleep = lambda seconds: None  # the client's waits and effconv's

    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            sockets.append(event)

    sys.addaudithook(watch)
    from effconv.cli import main
    try:
        main() if script is None else exec(script, {})
    finally:
        with open("/proc/self/status") as lines:  # ru_maxrss knows of the process before exec too
            rss = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        modules = sorted({name.partition(".")[0] for name in sys.modules})
        with open(record, "w") as file:
            json.dump({"modules": modules, "rss": rss, "sockets": sockets}, file)
"""
ALONE = f"""{DRIVER}
PRELUDE
run(os.environ["RECORD"])
"""
# Imports what every command needs, then forks a process a command: imports are paid once, not a hundred times.
NURSERY = f"""{DRIVER}
import importlib, traceback
import effconv.cli, effconv.hub.push, effconv.hub.refresh, effconv.report.conversion, jinja2, yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub import snapshot_download

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.clear()
        os.environ.update(job["env"])
        importlib.reload(constants)  # the client reads its environment there, and nowhere else
        for name, module in list(sys.modules.items()):  # where clients before 1.0 keep what they imported from there
            if name.startswith("huggingface_hub."):
                kept = [key for key in vars(constants) if key.isupper() and key in vars(module)]
                vars(module).update((key, getattr(constants, key)) for key in kept)
        os.chdir(job["cwd"])
        for number, name in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["effconv", *job["arguments"]]
        code = 1
        try:
            run(job["record"], job["script"])
            code = 0
        except SystemExit as ended:
            code = ended.code if type(ended.code) is int else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Run:
    """A finished command.

    Attributes:
        modules: top-level names it imported. rss: MB of memory at most. sockets: what it opened.
    """

    code: int
    out: str
    err: str
    modules: frozenset[str]
    rss: float
    sockets: tuple[str, ...]

    def json(self) -> dict:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Client:
    """Runs commands as one user of one Hub, with a cache of its own, in this Python or another one with effconv."""

    def __init__(self, hub: LoopbackHub, folder: Path, python: str = sys.executable) -> None:
        self.hub, self.folder, self.interpreter = hub, folder, python

    def start(
        self,
        *arguments: object,
        script: str | None = None,
        token: str | None = "hf_me",
        offline: bool = False,
        **environment: str,
    ) -> int:
        """Starts a command, or a script in its place, which `finish` waits for; returns the id of its process."""
        env = self.hub.env(self.folder / "hf-home", token, offline=offline) | {"COLUMNS": "200", **environment}
        files = {name: str(self._file(name)) for name in ("out", "err", "record")}
        job = {"arguments": [str(word) for word in arguments], "env": env, "cwd": str(self.folder)}
        job |= {"script": script, **files}
        nursery = _nursery(self.interpreter)
        nursery.stdin.write(json.dumps(job) + "\n")
        nursery.stdin.flush()
        return int(nursery.stdout.readline())

    def finish(self) -> Run:
        code = int(_nursery(self.interpreter).stdout.readline())
        return self._run(code, *(self._file(name).read_text() for name in ("out", "err")))

    def __call__(self, *arguments: object, **options: object) -> Run:
        self.start(*arguments, **options)
        return self.finish()

    def push(self, *arguments: object, **options: object) -> Run:
        return self("push-to-hub", *arguments, **options)

    def alone(self, *arguments: object, prelude: str = "", offline: bool = False) -> Run:
        """A command in a process that imports what it needs itself, after the prelude."""
        env = self.hub.env(self.folder / "hf-home", "hf_me", offline=offline)
        env |= {"RECORD": str(self._file("record")), "COLUMNS": "200"}
        done = subprocess.run(
            [self.interpreter, "-c", ALONE.replace("PRELUDE", prelude), *map(str, arguments)],
            env=env, cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return self._run(done.returncode, done.stdout, done.stderr)

    def _run(self, code: int, out: str, err: str) -> Run:
        assert "Traceback" not in err, err
        recorded = json.loads(self._file("record").read_text())
        return Run(code, out, err, frozenset(recorded["modules"]), recorded["rss"], tuple(recorded["sockets"]))

    def _file(self, name: str) -> Path:
        (self.folder / "hf-home").mkdir(exist_ok=True)
        return self.folder / "hf-home" / f"{name}.txt"

    def python(self, script: str, *, offline: bool = False) -> object:
        """What the last line that the script prints says, as JSON; transformers reads the Hub."""
        env = self.hub.env(self.folder / "other-home", "hf_me", offline=offline) | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [self.interpreter, "-c", script], env=env, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def _nursery(python: str) -> subprocess.Popen[str]:
    """One for all tests of this process; it ends with its stdin."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
    pipe = subprocess.PIPE
    nursery = subprocess.Popen([python, "-c", NURSERY], env=env, stdin=pipe, stdout=pipe, text=True)
    atexit.register(nursery.communicate)
    return nursery


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
