"""Finished videos: one mp4 file each, whole on the disk before any row says so."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import CHUNK_BYTES
from chorus_rpc.errors import ChorusError

_SUFFIX = ".mp4"
_PART = ".part"


class Videos:
    """A directory of `<generation id>.mp4`. Ids are made by this service, never by a client."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> None:
        """Makes the directory. Raises OSError that names it."""
        await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)

    async def save(self, generation_id: str, data: bytes) -> None:
        """Durable when it returns. Raises OSError, and leaves nothing, when the disk does not take it."""
        writing = asyncio.create_task(asyncio.to_thread(self._save, generation_id, data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped: who cancelled removes the file, and must not be too early.
            await asyncio.wait([writing])
            raise

    async def remove(self, generation_ids: Iterable[str]) -> None:
        """Also what a crash left of a video that was not finished."""
        await asyncio.to_thread(self._remove, list(generation_ids))

    async def read(self, generation_id: str, info: video_pb2.VideoInfo) -> AsyncGenerator[bytes, None]:
        """Chunks of about 1 MiB.

        Raises BLOB_CORRUPT when the file is not the one that was saved: before the first chunk if it is
        missing or of another length, after the last if only its digest differs.
        """
        fault = f"the video of generation {generation_id!r} is {{}}; generate it again"
        digest = hashlib.sha256()
        try:
            file = await asyncio.to_thread(self._path(generation_id).open, "rb")
        except FileNotFoundError:
            raise ChorusError(errors.BLOB_CORRUPT, fault.format("missing")) from None
        with file:
            if os.fstat(file.fileno()).st_size != info.size_bytes:
                raise ChorusError(errors.BLOB_CORRUPT, fault.format("of another length than was saved"))
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != info.digest:
            raise ChorusError(errors.BLOB_CORRUPT, fault.format("not what was saved"))

    def _path(self, generation_id: str) -> Path:
        return self._directory / f"{generation_id}{_SUFFIX}"

    def _save(self, generation_id: str, data: bytes) -> None:
        path = self._path(generation_id)
        part = path.with_suffix(_PART)
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._sync_directory()
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _sync_directory(self) -> None:
        """The name is durable only when its directory is."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _remove(self, generation_ids: list[str]) -> None:
        for generation_id in generation_ids:
            self._path(generation_id).unlink(missing_ok=True)
            self._path(generation_id).with_suffix(_PART).unlink(missing_ok=True)
