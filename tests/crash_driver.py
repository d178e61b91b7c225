"""Kill a conversion at every moment that matters, and look at what each killed run and the next one leave.

    python crash_driver.py JOB.json

JOB.json is {"source", "place", "at": "steps" | "disk", "overwrite", "journal"}. `steps` kills at each call of the progress
callback, `disk` at each change to the disk. Every run is a forked child, so that imports are paid once. Prints one line of
JSON: {"moments": what each killed run was about to do, "faults": what was wrong, a line each}.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import effconv.api
from effconv.convert import run, staging
from effconv.convert.manifest import Measured

OLD = {"old.txt": b"old"}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "ctypes.dlsym")


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


def killed(job, moment, report):
    """In a child: a conversion that kills itself at the given moment, after saying through a pipe what it was about to do."""
    seen = 0

    def reached(what):
        nonlocal seen
        if seen == moment:
            os.write(report, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    if job["at"] == "steps":
        convert(job, lambda step, done, total: reached(f"{step} {done}"))
        return
    watching = not job["overwrite"]  # what replaces nothing is watched from the start, a replacement from `publish` on

    def progress(step, done, total):
        nonlocal watching
        watching = watching or step == "publish"

    def changes(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if watching and (event in CHANGES or writes):
            reached(f"{event} {arguments[0]}")

    def counted(function, name):
        def call(*arguments, **options):
            if watching:
                reached(name)
            return function(*arguments, **options)

        return call

    write = os.write
    sys.addaudithook(changes)
    os.write = lambda file, data: write(file, data) if file == report else counted(write, "os.write")(file, data)
    os.copy_file_range = counted(os.copy_file_range, "os.copy_file_range")
    convert(job, progress)


def in_child(work):
    """Run in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
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
        (place / "out" / "old.txt").write_bytes(OLD["old.txt"])
    return place


def main(job):
    run.run_checks = checks_that_pass
    if job["journal"]:
        staging.ctypes.CDLL = lambda *args, **named: object()  # a system that cannot exchange two folders
    place = fresh_place(job)
    assert in_child(lambda: convert(job)) == 0
    new, before = snapshot(place / "out"), snapshot(Path(job["source"]))
    moments, faults = [], []
    while True:
        place = fresh_place(job)
        reader, writer = os.pipe()
        status = in_child(lambda: killed(job, len(moments), writer))  # noqa: B023 - the child runs before the loop goes on
        os.close(writer)
        moment = os.read(reader, 1000).decode()
        os.close(reader)
        if not os.WIFSIGNALED(status):
            assert status == 0, f"the conversion failed by itself at moment {len(moments)}"
            break
        moments.append(moment.replace(str(place), ""))
        found = snapshot(place / "out")
        between_renames = job["journal"] and found is None and (place / ".out.effconv.journal").exists()
        if found not in (new, OLD if job["overwrite"] else None) and not between_renames:
            faults.append(f"{moments[-1]}: the output holds {sorted(found) if found else found}")
        if in_child(lambda: convert(job)):
            faults.append(f"{moments[-1]}: the next run failed")
        elif snapshot(place / "out") != new:
            faults.append(f"{moments[-1]}: the next run made something else")
        if sorted(os.listdir(place)) != ["out"]:
            faults.append(f"{moments[-1]}: the next run left {sorted(os.listdir(place))}")
    if snapshot(Path(job["source"])) != before:
        faults.append("the source was touched")
    print(json.dumps({"moments": moments, "faults": faults}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
