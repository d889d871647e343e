"""Object store in a directory, the default of the embedded deployment."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from pathlib import Path

from chorus_rpc.errors import ChorusError

from services.cache.blobs import Blobs, BlobStat
from services.cache.blocking_client import BlockingClient
from services.cache.entries import BLOB_ROOT
from services.runtime.startup import StartupError

_PAGE = 500


class DirectoryBlobs(Blobs):
    """Stores blobs as files; keys are paths below `root`, which is created if it does not exist.

    Args:
        seconds: upper bound on one operation, in seconds.
        threads: number of concurrent operations.
    """

    kind = "directory"

    def __init__(self, root: Path, *, seconds: float, threads: int) -> None:
        self._root = root.resolve()
        self._client = BlockingClient(
            "blob directory", threads, seconds, (OSError,), "CHORUS_CACHE_BLOB_SECONDS"
        )

    @classmethod
    async def open(cls, root: Path, *, seconds: float, threads: int) -> DirectoryBlobs:
        """Opens a directory. Raises StartupError when it cannot be created or written to."""
        blobs = cls(root, seconds=seconds, threads=threads)
        folder = blobs._root / BLOB_ROOT
        try:
            await blobs._client.run(lambda: folder.mkdir(parents=True, exist_ok=True))
        except ChorusError as error:
            await blobs.close()
            cause = error.__cause__
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else error.message
            raise StartupError(f"CHORUS_CACHE_BLOB_DIR: {folder} cannot be created: {reason}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            await blobs.close()
            raise StartupError(f"CHORUS_CACHE_BLOB_DIR: {folder} is not writable for this process")
        blobs._client.suspend_when_silent(blobs._root.stat)
        return blobs

    async def close(self) -> None:
        await self._client.close()

    async def put(self, key: str, data: bytes) -> None:
        path = self._path(key)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No key, but below the root, so that the sweeper removes what a crash leaves.
            part = path.with_name(f"{uuid.uuid4().hex}.part")
            try:
                with part.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if part.stat().st_size != len(data):
                    raise OSError(f"{part} holds {part.stat().st_size} of {len(data)} bytes")
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            # The rename is durable only once the directory is synced.
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

        await self._client.run(write)

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        path = self._path(key)

        def read() -> bytes | None:
            try:
                with path.open("rb") as file:
                    return file.read(size_bytes + 1)
            except FileNotFoundError:
                return None

        return await self._client.run(read)

    async def stat(self, key: str) -> BlobStat | None:
        path = self._path(key)
        return await self._client.run(lambda: self._stat(path))

    async def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]

        def unlink() -> None:
            for path in paths:
                path.unlink(missing_ok=True)

        await self._client.run(unlink)

    async def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        found = self._walk(folder)
        while page := await self._client.run(lambda: list(islice(found, _PAGE))):
            yield page

    def _walk(self, folder: str) -> Iterator[BlobStat]:
        for directory, _, names in os.walk(self._root / folder):
            for name in names:
                stat = self._stat(Path(directory) / name)
                if stat is not None:
                    yield stat

    def _stat(self, path: Path) -> BlobStat | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        key = path.relative_to(self._root).as_posix()
        return BlobStat(key, found.st_size, found.st_mtime_ns // 1_000_000)

    def _path(self, key: str) -> Path:
        path = self._root / key
        if ".." in Path(key).parts or not path.is_relative_to(self._root / BLOB_ROOT):
            raise ValueError(f"{key!r} is not a key below {BLOB_ROOT}/")
        return path
