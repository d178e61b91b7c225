"""Writes a file of tensors from front to back (safetensors here), hashed and flushed while it is written.

A follower reads what was written back from the file, hashes it and looks for NaN and Inf; another asks the disk to keep
up. When the last byte is written, hash and disk are nearly done.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ops import Shape
from .dtypes import all_finite, from_bytes
from .system import copy_range, read_into, sync, write_back

ALIGNMENT = 64  # bytes: tensors begin on a cache line where earlier ones fill whole lines; nothing may rely on it
COPY_STEP = 1 << 25  # bytes handed to the system in one copy
FOLLOW_STEP = 1 << 21  # bytes hashed in one step: small enough to stay in the processor's cache
SYNC_STEP = 1 << 26  # bytes between two requests to write back


@dataclass(frozen=True, slots=True)
class Slot:
    """Where elements of a tensor stand in the file, from its first byte."""

    name: str
    dtype: str
    shape: Shape
    start: int
    stop: int


class StreamedFile:
    """A file of known layout: the tensors' bytes come in order, and what stands between them is written here.

    Args:
        path: must not exist.
        slots: where the elements stand, in file order.
        literals: by position, what stands before a slot or at the end.
        size: of the whole file.
    """

    def __init__(self, path: Path, slots: Sequence[Slot], literals: Mapping[int, bytes], size: int) -> None:
        self.path, self.slots, self.size = path, slots, size
        self._literals = deque(sorted(literals.items()))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._reread = os.open(path, os.O_RDONLY)  # the follower's, with a position of its own
        self._written = 0
        self._progress = threading.Condition()
        self._stop = False
        self._failure: BaseException | None = None
        self._digest = hashlib.sha256()
        self.not_finite: list[str] = []
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), daemon=True) for work in (self._hash, self._sync)
        ]
        for thread in self._threads:
            thread.start()
        self._write_literals()

    def append(self, data: bytes | memoryview) -> None:
        """The next bytes of the tensors."""
        view = memoryview(data).cast("B")
        while view:
            count = os.write(self._file, view[: self._room()])
            view = view[count:]
            self._advance(count)
            self._write_literals()

    def append_range(self, source: int, start: int, count: int) -> Iterator[int]:
        """Copies `count` bytes from the open file `source`; yields the bytes done in each step."""
        while count:
            done = copy_range(source, self._file, start, min(count, COPY_STEP, self._room()))
            if done == 0:
                raise EOFError
            start, count = start + done, count - done
            self._advance(done)
            self._write_literals()
            yield done

    def _room(self) -> int:
        """Bytes up to what is to be written between tensors."""
        return (self._literals[0][0] if self._literals else self.size) - self._written

    def _write_literals(self) -> None:
        while self._literals and self._literals[0][0] == self._written:
            view = memoryview(self._literals.popleft()[1])
            while view:
                count = os.write(self._file, view)
                view = view[count:]
                self._advance(count)

    def finish(self) -> str:
        """Waits for hash and disk; returns the sha256 of the whole file."""
        self._end()
        if self._failure:
            raise self._failure
        sync(self._file)
        self._close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stops the followers after an error; the file is left to whoever clears the staging folder."""
        self._stop = True
        self._end()
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        os.close(self._reread)

    def _end(self) -> None:
        with self._progress:
            self.size = min(self.size, self._written) if self._stop else self.size
            self._progress.notify_all()
        for thread in self._threads:
            thread.join()

    def _advance(self, count: int) -> None:
        with self._progress:
            self._written += count
            self._progress.notify_all()
        if self._failure:
            raise self._failure

    def _wait_beyond(self, done: int, least: int) -> int:
        """Bytes written once at least `least` more than `done` are there (fewer at the end of the file)."""
        with self._progress:
            self._progress.wait_for(lambda: self._stop or self._written >= min(done + least, self.size))
            return done if self._stop else self._written

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error

    def _hash(self) -> None:
        buffer = bytearray(FOLLOW_STEP)
        done, slots = 0, iter(self.slots)
        slot = next(slots, None)
        while done < self.size:
            # Steps end where tensors begin and end, so that a step holds elements of one type, or none.
            while slot and slot.stop <= done:
                slot = next(slots, None)
            inside = slot is not None and slot.start <= done
            stop = self.size if slot is None else slot.stop if inside else slot.start
            count = min(FOLLOW_STEP, stop - done)
            if self._wait_beyond(done, count) == done:
                return
            part = memoryview(buffer)[:count]
            got = read_into(self._reread, part, done)
            self._digest.update(part[:got])
            new = slot and inside and slot.name not in self.not_finite[-1:]
            if slot and new and not all_finite(from_bytes(part[:got], slot.dtype, (-1,))):
                self.not_finite.append(slot.name)
            done += got

    def _sync(self) -> None:
        done = 0
        while done < self.size:
            reached = self._wait_beyond(done, SYNC_STEP)
            if reached == done:
                return
            write_back(self._file)
            done = reached


class TensorFile(StreamedFile):
    """One safetensors file: its header, and the tensors in the order given.

    Args:
        path: must not exist.
        tensors: (name, dtype, shape, bytes) in file order.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, str, Shape, int]]) -> None:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        stop = 0
        for name, dtype, shape, nbytes in tensors:
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [stop, stop + nbytes]}
            stop += nbytes
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        begin = 8 + len(header)
        slots = []
        for name, dtype, shape, nbytes in tensors:
            slots.append(Slot(name, dtype, shape, begin, begin + nbytes))
            begin += nbytes
        super().__init__(path, slots, {0: struct.pack("<Q", len(header)) + header}, begin)


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
