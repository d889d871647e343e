"""Finished videos: one mp4 file each, complete on disk before any row refers to it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import CHUNK_BYTES
from chorus_rpc.errors import ChorusError

from services.runtime.startup import StartupError
from services.scheduler.jobs.passing_faults import find_passing_fault

_SUFFIX = ".mp4"
_PART = ".part"


class VideoFiles:
    """A directory of `<generation id>.mp4`. Ids are created by this service, never by a client.

    Every method raises PassingFault if it may succeed later, for instance because the disk is full.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> None:
        """Creates the directory. Raises StartupError if it cannot be created or written to."""
        try:
            with _passing_faults():
                await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"CHORUS_SCHEDULER_VIDEO_DIR: {self._directory} cannot be created: {error.strerror}"
            ) from error
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise StartupError(
                f"CHORUS_SCHEDULER_VIDEO_DIR: {self._directory} is not writable for this process"
            )

    async def save(self, generation_id: str, data: bytes) -> None:
        """Writes a video durably. Raises OSError, and keeps nothing, if it cannot be written."""
        writing = asyncio.create_task(asyncio.to_thread(self._save, generation_id, data))
        try:
            with _passing_faults():
                await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped. The canceller removes the file, so it must not do so before the
            # file has been written.
            await asyncio.wait([writing])
            raise

    async def remove(self, generation_ids: Iterable[str]) -> None:
        """Removes videos, including the partial files that a crash left."""
        with _passing_faults():
            await asyncio.to_thread(self._remove, list(generation_ids))

    async def read(self, generation_id: str, info: video_pb2.VideoInfo) -> AsyncGenerator[bytes, None]:
        """Yields chunks of about 1 MiB.

        Raises BLOB_CORRUPT if the file is not the one that was saved: before the first chunk if it is missing
        or has another length, after the last if only its digest differs.
        """
        fault = f"the video of generation {generation_id!r} is {{}}; generate it again"
        digest = hashlib.sha256()
        try:
            with _passing_faults():
                file = await asyncio.to_thread(self._path(generation_id).open, "rb")
        except FileNotFoundError:
            raise ChorusError(errors.BLOB_CORRUPT, fault.format("missing")) from None
        with file:
            if os.fstat(file.fileno()).st_size != info.size_bytes:
                raise ChorusError(errors.BLOB_CORRUPT, fault.format("not as long as when it was saved"))
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != info.digest:
            raise ChorusError(errors.BLOB_CORRUPT, fault.format("altered since it was saved"))

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
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _sync_directory(self) -> None:
        """Makes the new name durable: a file's name is part of its directory."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _remove(self, generation_ids: list[str]) -> None:
        for generation_id in generation_ids:
            self._path(generation_id).unlink(missing_ok=True)
            self._path(generation_id).with_suffix(_PART).unlink(missing_ok=True)


@contextmanager
def _passing_faults() -> Iterator[None]:
    """Converts the errors inside the block that may pass."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        fault = find_passing_fault(error, "the directory of the videos", "CHORUS_SCHEDULER_VIDEO_DIR")
        if fault is None:
            raise
        raise fault from error
