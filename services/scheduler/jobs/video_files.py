"""Finished videos: one mp4 file each, complete on disk before any row refers to it.

The file of each attempt has a name of its own: a scheduler that lost its lease may still write the video of a
job that another one runs again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import CHUNK_BYTES
from chorus_rpc.errors import ChorusError

from services.runtime.startup import StartupError
from services.scheduler.jobs.passing_faults import find_passing_fault

_SUFFIX = ".mp4"
_PART = ".part"


class VideoFiles:
    """A directory of `<generation id>/<attempt>.mp4`. Ids are created by this service, never by a client.

    Earlier versions wrote `<generation id>.mp4`, which is still read and removed. Several schedulers may
    share the directory. Every method raises PassingFault if it may succeed later, for instance because the
    disk is full.
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

    async def save(self, generation_id: str, attempt: int, data: bytes) -> None:
        """Writes the video of an attempt durably. Raises OSError, and keeps nothing, if it cannot be written.

        Args:
            attempt: number of the attempt, from 1.
        """
        writing = asyncio.create_task(asyncio.to_thread(self._save, generation_id, attempt, data))
        try:
            with _passing_faults():
                await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped. The canceller removes the file, so it must not do so before the
            # file has been written.
            await asyncio.wait([writing])
            raise

    async def discard(self, generation_id: str, attempt: int) -> None:
        """Removes what one attempt wrote."""
        with _passing_faults():
            await asyncio.to_thread(self._discard, generation_id, attempt)

    async def remove(self, generation_ids: Iterable[str]) -> None:
        """Removes the videos of all attempts, including the partial files that a crash left."""
        with _passing_faults():
            await asyncio.to_thread(self._remove, list(generation_ids))

    async def read(
        self, generation_id: str, attempt: int, info: video_pb2.VideoInfo
    ) -> AsyncGenerator[bytes, None]:
        """Yields the video of an attempt in chunks of about 1 MiB.

        Raises BLOB_CORRUPT if the file is not the one that was saved: before the first chunk if it is missing
        or has another length, after the last if only its digest differs.
        """
        fault = f"the video of generation {generation_id!r} is {{}}; generate it again"
        digest = hashlib.sha256()
        try:
            with _passing_faults():
                file = await asyncio.to_thread(self._open, generation_id, attempt)
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

    def _folder(self, generation_id: str) -> Path:
        return self._directory / generation_id

    def _path(self, generation_id: str, attempt: int) -> Path:
        return self._folder(generation_id) / f"{attempt}{_SUFFIX}"

    def _former_path(self, generation_id: str) -> Path:
        return self._directory / f"{generation_id}{_SUFFIX}"

    def _open(self, generation_id: str, attempt: int) -> BinaryIO:
        try:
            return self._path(generation_id, attempt).open("rb")
        except FileNotFoundError:
            return self._former_path(generation_id).open("rb")

    def _save(self, generation_id: str, attempt: int, data: bytes) -> None:
        path = self._path(generation_id, attempt)
        part = path.with_suffix(_PART)
        try:
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            # A file's name is part of its directory, and that one's name of the directory above.
            _sync(path.parent)
            _sync(self._directory)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _discard(self, generation_id: str, attempt: int) -> None:
        path = self._path(generation_id, attempt)
        path.unlink(missing_ok=True)
        path.with_suffix(_PART).unlink(missing_ok=True)
        with suppress(OSError):  # absent, or with the video of another attempt
            path.parent.rmdir()

    def _remove(self, generation_ids: list[str]) -> None:
        for generation_id in generation_ids:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._folder(generation_id))
            self._former_path(generation_id).unlink(missing_ok=True)
            self._former_path(generation_id).with_suffix(_PART).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
