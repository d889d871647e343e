"""Stream to stderr that drops what cannot be written, instead of raising or waiting."""

from __future__ import annotations

import io
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import Final

STDERR: Final = 2
# Largest write that a pipe accepts without waiting once it is writable: one page.
_CHUNK_BYTES: Final = 4096
# Upper bound on the wait for a reader that is behind, in seconds. Later lines do not wait until it has read.
_WAIT_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Loss:
    """Lines that were dropped since the last report.

    Attributes:
        cause: reason of the latest loss.
    """

    lines: int
    cause: str


class LogSink(io.TextIOBase):
    """Writes text to a file descriptor, unbuffered. No method raises; writing resumes when it is possible.

    Args:
        descriptor: open file, pipe or terminal; not closed by this object.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self._lost = 0
        self._cause = ""
        self._is_failing = False
        self._is_cut = False  # whether the end of the latest line is missing

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Writes `text`, or counts it as lost. Returns its length in either case."""
        if not text:
            return 0
        data = text.encode(errors="backslashreplace")
        with self._lock:
            try:
                self._write_all(b"\n" + data if self._is_cut else data)
                self._is_failing = self._is_cut = False
            except OSError as error:
                self._is_failing = True
                self._lost += 1
                self._cause = error.strerror or str(error)
        return len(text)

    def take_loss(self) -> Loss | None:
        """Returns what was lost once lines are written again, and resets the count; None if nothing was."""
        with self._lock:
            if not self._lost or self._is_failing:
                return None
            loss = Loss(self._lost, self._cause)
            self._lost = 0
            return loss

    def _write_all(self, data: bytes) -> None:
        """Raises OSError; TimeoutError if the reader of a pipe does not read."""
        end = time.monotonic() + (0 if self._is_failing else _WAIT_SECONDS)
        rest = memoryview(data)
        while rest:
            left = end - time.monotonic()
            # A file and a broken pipe are always ready.
            if not self._writable.poll(1000 * max(0.0, left)):
                raise TimeoutError("the reader of stderr does not read")
            try:
                rest = rest[os.write(self._descriptor, rest[:_CHUNK_BYTES]) :]
            except BlockingIOError:  # a descriptor in non-blocking mode whose free space is too small
                if left <= 0:
                    raise
                time.sleep(0.001)
            else:
                self._is_cut = bool(rest)


def fill_standard_streams() -> None:
    """Opens /dev/null for every standard stream that is closed.

    Otherwise the next file that is opened, such as a database, becomes the target of what is written to
    stderr. Call it before files are opened.
    """
    for descriptor in (0, 1, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
