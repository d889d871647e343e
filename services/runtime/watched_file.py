"""Files of settings that are read again when they change, such as mounted secrets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

from services.runtime.logs import get_logger

log = get_logger("watched_file")

T = TypeVar("T")

# Interval between two looks at a file, in seconds.
_INTERVAL: Final = 1.0

# What differs between two versions of a file, also if it is replaced by another one of the same size.
_Version: TypeAlias = tuple[int, int, int, int, int]


class InvalidFile(ValueError):
    """Fault of a file; the message names the file and the fault."""


class WatchedFile(Generic[T]):
    """The parsed contents of a file. Raises InvalidFile if it cannot be read or parsed.

    Args:
        parse: returns the value of the contents; raises ValueError.
        noun: what the file contains, for the log, such as "API keys".
        variable: environment variable that names the file.
        max_bytes: upper bound on the size of the file.

    Attributes:
        value: value of the last version of the file that was valid.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], T], noun: str, variable: str, max_bytes: int
    ) -> None:
        self._path = path
        self._parse = parse
        self._noun = noun
        self._variable = variable
        self._max_bytes = max_bytes
        self._seen = _find_version(path)
        self.value = self._read()

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
            self.value = self._read()
        except InvalidFile as error:
            fault = str(error)
        else:
            log.info(f"{self._noun} reloaded")
            return
        log.error(
            f"{self._noun} not reloaded: the former ones stay in force", variable=self._variable, error=fault
        )

    def _read(self) -> T:
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > self._max_bytes:
                    raise InvalidFile(
                        f"{self._path} has {size:,} bytes; at most {self._max_bytes:,} are read"
                    )
                data = file.read(self._max_bytes + 1)
        except OSError as error:
            raise InvalidFile(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            return self._parse(data)
        except ValueError as error:
            raise InvalidFile(f"{self._path}: {error}") from None


def _find_version(path: Path) -> _Version | None:
    """Returns the version of a file; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
