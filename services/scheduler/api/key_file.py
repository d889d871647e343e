"""File of the API keys in force, which is read again when it changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chorus_rpc.api_keys import ApiKey, InvalidKeys, parse_keys

from services.runtime.watched_file import InvalidFile, WatchedFile

# A record has less than 1 kB.
_MAX_KEY_FILE_BYTES: Final = 16 << 20


class KeyFile:
    """API keys of a file. Raises InvalidKeys if it cannot be read, or is no such file."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = WatchedFile(
                path, parse_keys, "API keys", "CHORUS_SCHEDULER_API_KEYS", _MAX_KEY_FILE_BYTES
            )
        except InvalidFile as error:
            raise InvalidKeys(str(error)) from None

    @property
    def keys(self) -> Mapping[str, ApiKey]:
        """Records by id, as of the last version of the file that was valid."""
        return self._file.value

    async def watch(self) -> None:
        """Reads the file again after each change, until cancelled. An invalid file changes nothing."""
        await self._file.watch()

    def reload(self) -> None:
        """Reads the file again if it has changed; logs once why a version of it is invalid."""
        self._file.reload()
