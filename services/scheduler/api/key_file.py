"""File of the API keys in force, which is read again when it changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from chorus_rpc.api_keys import ApiKey, InvalidKeys, parse_keys

from services.runtime.logs import get_logger

log = get_logger("api_keys")

# Interval between two looks at the file, in seconds.
_INTERVAL: Final = 1.0
# A record has less than 1 kB.
_MAX_FILE_BYTES: Final = 16 << 20

# What differs between two versions of a file, also if it is replaced by another one of the same size.
_Version: TypeAlias = tuple[int, int, int, int, int]


class KeyFile:
    """API keys of a file. Raises InvalidKeys if it cannot be read, or is no such file.

    Attributes:
        keys: records by id, as of the last version of the file that was valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _find_version(path)
        self.keys: Mapping[str, ApiKey] = _read(path)

    async def watch(self) -> None:
        """Reads the file again after each change, until cancelled. An invalid file changes nothing."""
        while True:
            await asyncio.sleep(_INTERVAL)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Reads the file again if it has changed; logs once why a version of it is invalid."""
        # Before the contents, so that a change in between is noticed next time.
        version = _find_version(self._path)
        if version == self._seen:
            return
        self._seen = version
        try:
            self.keys = _read(self._path)
        except InvalidKeys as error:
            fault = str(error)
        else:
            log.info("API keys reloaded", keys=len(self.keys))
            return
        log.error(
            "API keys not reloaded: the former ones stay in force",
            variable="CHORUS_SCHEDULER_API_KEYS",
            error=fault,
        )


def _find_version(path: Path) -> _Version | None:
    """Returns the version of a file; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> dict[str, ApiKey]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_FILE_BYTES:
                raise InvalidKeys(f"{path} has {size:,} bytes; at most {_MAX_FILE_BYTES:,} are read")
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidKeys(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse_keys(data)
    except InvalidKeys as error:
        raise InvalidKeys(f"{path}: {error}") from None
