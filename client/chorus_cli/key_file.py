"""File of API keys on this machine: read, and changed by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import fasteners
from chorus_rpc.api_keys import ApiKey, InvalidKeys, format_keys, parse_keys
from chorus_rpc.errors import WRONG_STATE, ChorusError, invalid

# Time for which another process may hold the lock, in seconds; a change takes milliseconds.
_LOCK_SECONDS: Final = 10.0


def read_keys(path: Path) -> dict[str, ApiKey]:
    """Returns the records of a file by id. Raises ChorusError for an invalid file, OSError without a file."""
    try:
        return parse_keys(path.read_bytes())
    except InvalidKeys as error:
        raise invalid("file", f"{path}: {error}") from None


def edit_keys(
    path: Path, change: Callable[[dict[str, ApiKey]], dict[str, ApiKey]], *, create: bool = False
) -> dict[str, ApiKey]:
    """Replaces the records of a file by what `change` returns for them; returns those.

    Readers see the former file or the new one. Only its owner may read it.

    Args:
        create: whether a file that does not exist is created.
    """
    target = path.resolve()
    lock = fasteners.InterProcessLock(target.with_name(f".{target.name}.lock"))
    if not target.parent.is_dir():
        raise invalid("file", f"the folder {target.parent} does not exist")
    if not lock.acquire(timeout=_LOCK_SECONDS):
        raise ChorusError(WRONG_STATE, f"another process changes {path}: try again later")
    try:
        keys = {} if create and not target.exists() else read_keys(target)
        changed = change(keys)
        try:
            data = format_keys(list(changed.values()))
        except InvalidKeys as error:
            raise invalid("file", f"{path}: {error}") from None
        _replace(target, data)
        return changed
    finally:
        lock.release()


def _replace(path: Path, data: bytes) -> None:
    """Replaces a file durably and atomically. The caller holds its lock."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
