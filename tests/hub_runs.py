"""The command line in a process of its own, against a loopback Hub: nothing waits, what the process did is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import LoopbackHub

DRIVER = """
import atexit, json, os, resource, sys, time
record, sockets = os.environ["RECORD"], []
time.sleep = lambda seconds: None  # the client's waits and effconv's

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        sockets.append(event)

def report():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    with open(record, "w") as file:
        lines = open("/proc/self/status").read().splitlines()  # ru_maxrss knows of the process before exec too
        rss = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        json.dump({"modules": modules, "rss": rss, "cpu": usage.ru_utime + usage.ru_stime, "sockets": sockets}, file)

sys.addaudithook(watch)
atexit.register(report)
PRELUDE
from effconv.cli import main
main()
"""


@dataclass(frozen=True)
class Run:
    """A finished command.

    Attributes:
        modules: top-level names it imported. rss: MB of memory at most. cpu: seconds. sockets: what it opened.
    """

    code: int
    out: str
    err: str
    modules: frozenset[str]
    rss: float
    cpu: float
    sockets: tuple[str, ...]

    def json(self) -> dict:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Client:
    """Runs commands as one user of one Hub, with a cache of its own."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def start(
        self,
        *arguments: object,
        token: str | None = "hf_me",
        offline: bool = False,
        prelude: str = "",
        **environment: str,
    ) -> subprocess.Popen[str]:
        env = self.hub.env(self.folder / "hf-home", token, offline=offline)
        env |= {"RECORD": str(self.folder / "record.json"), "COLUMNS": "200", **environment}
        command = [sys.executable, "-c", DRIVER.replace("PRELUDE", prelude), *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def finish(self, process: subprocess.Popen[str]) -> Run:
        out, err = process.communicate(timeout=300)
        recorded = json.loads((self.folder / "record.json").read_text())
        modules = frozenset(recorded["modules"])
        run = Run(process.returncode, out, err, modules, recorded["rss"], recorded["cpu"], tuple(recorded["sockets"]))
        assert "Traceback" not in err, err
        return run

    def __call__(self, *arguments: object, **options: object) -> Run:
        return self.finish(self.start(*arguments, **options))

    def push(self, *arguments: object, **options: object) -> Run:
        return self("push-to-hub", *arguments, **options)

    def python(self, script: str, *, offline: bool = False) -> object:
        """What the last line that the script prints says, as JSON; transformers reads the Hub."""
        env = self.hub.env(self.folder / "other-home", "hf_me", offline=offline) | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
