"""End a conversion at every moment that matters, and look at what each such run and the next one leave.

    python crash_driver.py JOB.json

JOB.json is {"source", "place", "at": "steps" | "disk", "how": "kill" | "full", "overwrite", "journal"}. `steps` are
the calls of the progress callback, `disk` the changes to the disk; `kill` is SIGKILL, `full` a disk that takes no more
writes. Every run is a forked child, so that imports are paid once. Prints one line of JSON: {"moments": what each of
the runs was about to do, "faults": what was wrong, a line each}.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import effconv.api
from effconv.convert import run
from effconv.convert.errors import EffconvError, OutputError
from effconv.convert.repo.manifest import Measured

OLD = {"config.json": b"old"}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "ctypes.dlsym")
WRITING = os.O_WRONLY | os.O_RDWR
UNHINDERED = ("os.rename", "os.remove", "os.rmdir", "ctypes.dlsym")  # by a full disk


def checks_that_pass(repo, target, manifest, *, progress=lambda name: None, **_options):
    """In place of `run_checks`: loading torch a hundred times shows nothing here."""
    for check in target.checks:
        progress(check.name)
    return [Measured(check.name, check.says, True, 0.0, check.tolerance) for check in target.checks], {}


def convert(job, progress=lambda step, done, total: None):
    effconv.api.convert(
        job["source"],
        "lsg",
        output=Path(job["place"]) / "out",
        overwrite=True,
        max_length=128,
        block_size=16,
        sparse_block_size=16,
        progress=progress,
    )


def ended_at(job, moment, report):
    """In a child: a conversion that ends at this moment, after saying through a pipe what it was about to do."""
    seen = 0
    watching = True

    def reached(what):
        nonlocal seen
        if not watching:
            return
        seen += 1
        if seen == moment + 1:
            write(report, what.encode())
            if job["how"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        if seen > moment and job["how"] == "full" and not what.startswith(UNHINDERED):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write = os.write
    if job["at"] == "steps":
        convert(job, lambda step, done, total: reached(f"{step} {done}"))
        return
    watching = not job["overwrite"]  # what replaces nothing is watched from the start, a replacement from `publish` on

    def progress(step, done, total):
        nonlocal watching
        watching = watching or step == "publish"

    def changes(event, arguments):
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            reached(f"{event} {arguments[0]}")

    def watched(function, name):
        def call(*arguments, **options):
            reached(name)
            return function(*arguments, **options)

        return call

    sys.addaudithook(changes)
    for name in ("write", "copy_file_range", "fsync"):
        if name != "fsync" or job["how"] == "full":  # a kill around each of the many fsyncs would show nothing new
            setattr(os, name, watched(getattr(os, name), f"os.{name}"))
    convert(job, progress)


def in_child(work):
    """Run in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except EffconvError as error:
            os._exit(error.exit_code)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def snapshot(folder):
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fresh_place(job):
    place = Path(job["place"])
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if job["overwrite"]:
        (place / "out").mkdir()
        (place / "out" / "config.json").write_bytes(OLD["config.json"])
    return place


def main(job):
    run.run_checks = checks_that_pass
    if job["journal"]:
        ctypes.CDLL = lambda *args, **named: object()  # a system that cannot exchange two folders
    place = fresh_place(job)
    assert in_child(lambda: convert(job)) == 0
    new, before = snapshot(place / "out"), snapshot(Path(job["source"]))
    moments, faults = [], []
    kept = OLD if job["overwrite"] else None
    while True:
        place = fresh_place(job)
        reader, writer = os.pipe()
        status = in_child(lambda: ended_at(job, len(moments), writer))  # noqa: B023 - it runs before the loop goes on
        os.close(writer)
        moment = os.read(reader, 1000).decode().replace(str(place), "")
        os.close(reader)
        if not moment:
            assert status == 0, f"the conversion failed by itself after {len(moments)} moments"
            break
        moments.append(moment)
        found, left = snapshot(place / "out"), sorted(os.listdir(place))
        if job["how"] == "kill":
            between_renames = job["journal"] and found is None and ".out.effconv.journal" in left
            if found not in (new, kept) and not between_renames:
                faults.append(f"{moment}: the output holds {sorted(found) if found else found}")
        elif os.waitstatus_to_exitcode(status) == OutputError.exit_code:
            if found != kept or left != ([] if kept is None else ["out"]):
                faults.append(f"{moment}: the failed run left {left} and changed the output: {found != kept}")
            continue  # nothing is left that the next run could meet
        elif status or found != new:
            faults.append(f"{moment}: ended with {os.waitstatus_to_exitcode(status)}")
        if in_child(lambda: convert(job)):
            faults.append(f"{moment}: the next run failed")
        elif snapshot(place / "out") != new:
            faults.append(f"{moment}: the next run made something else")
        if sorted(os.listdir(place)) != ["out"]:
            faults.append(f"{moment}: the next run left {sorted(os.listdir(place))}")
    if snapshot(Path(job["source"])) != before:
        faults.append("the source was touched")
    print(json.dumps({"moments": moments, "faults": faults}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
