"""Port of the store of finished videos and their thumbnails.

The video of each attempt has a name of its own: a scheduler that lost its lease may still write the video of
a job that another one runs again. No row of the job store refers to a video that is not stored completely.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import CHUNK_BYTES, chunks
from chorus_rpc.errors import ChorusError

T = TypeVar("T")

# Bytes that are read at once.
_READ_BYTES: Final = 4 * CHUNK_BYTES
# Number of jobs in a page of a list.
_PAGE: Final = 500
OWNERS: Final = "owners"
"""Folder of the marks of job databases; no job has this id."""
_OWNED: Final = b"owned\n"
_SHARED: Final = b"shared\n"


class Item(Enum):
    """What is stored of an attempt, by the end of its name."""

    VIDEO = ".mp4"
    THUMBNAIL = ".jpg"

    @property
    def media_type(self) -> str:
        return "video/mp4" if self is Item.VIDEO else "image/jpeg"


@dataclass(frozen=True)
class StoredJob:
    """A job of which something is stored.

    Attributes:
        modified: time of the latest write, in Unix seconds.
    """

    job_id: str
    modified: float


class VideoStore(ABC):
    """Stores the items of attempts under the keys `<job id>/<attempt>.mp4` and `.jpg`.

    Ids are created by this service, never by a client. Several schedulers may share a store. Every method
    raises PassingFault if it may succeed later. Implementations provide blocking operations on keys.
    """

    @abstractmethod
    async def open(self) -> None:
        """Prepares the store. Raises StartupError for a fault that no wait can cure."""

    @abstractmethod
    async def close(self) -> None: ...

    async def save(self, job_id: str, attempt: int, item: Item, data: bytes) -> None:
        """Writes an item durably; keeps nothing if it cannot be written.

        Args:
            attempt: number of the attempt, from 1.
        """
        key = make_key(job_id, attempt, item)
        writing = asyncio.create_task(self._run(lambda: self._write(key, data, item.media_type)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped. The canceller removes the item, so it must not do so before the
            # item has been written.
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()  # asyncio logs one that is never retrieved
            raise

    async def read(
        self,
        job_id: str,
        attempt: int,
        info: video_pb2.VideoInfo | video_pb2.ImageInfo,
        offset: int = 0,
        length: int = 0,
    ) -> AsyncGenerator[bytes, None]:
        """Yields an item, or a range of it, in chunks of at most CHUNK_BYTES.

        Raises BLOB_CORRUPT if the item is not the one that was saved: before the first chunk if it is missing
        or has another length, after the last if all of it was read and only its digest differs.

        Args:
            info: describes the item as it was saved.
            offset, length: range within the item; a length of 0 means all bytes from the offset to the end.
        """
        item = Item.VIDEO if isinstance(info, video_pb2.VideoInfo) else Item.THUMBNAIL
        key = make_key(job_id, attempt, item)
        name = f"the {item.name.lower()} of generation {job_id!r}"
        size = await self._run(lambda: self._find_size(key))
        if size is None:
            raise _damaged(name, "missing")
        if size != info.size_bytes:
            raise _damaged(name, "not as long as when it was saved")
        end = offset + length if length else size
        digest = hashlib.sha256()
        position = offset
        while position < end:
            data = await self._run(partial(self._read, key, position, min(_READ_BYTES, end - position)))
            if not data:
                raise _damaged(name, "missing" if data is None else "not as long as when it was saved")
            position += len(data)
            for chunk in chunks(data):
                digest.update(chunk)
                yield chunk
        if (offset, end) == (0, size) and digest.hexdigest() != info.digest:
            raise _damaged(name, "altered since it was saved")

    async def find_size(self, job_id: str, attempt: int, item: Item) -> int | None:
        """Returns the size of an item in bytes; None if it is missing."""
        return await self._run(lambda: self._find_size(make_key(job_id, attempt, item)))

    async def discard(self, job_id: str, attempt: int) -> None:
        """Removes what one attempt wrote."""
        await self._run(lambda: self._delete([make_key(job_id, attempt, item) for item in Item]))

    async def remove(self, job_ids: Iterable[str]) -> None:
        """Removes the items of all attempts at jobs, including what a crash left of them."""
        for job_id in job_ids:  # one at a time: the bound on an operation does not depend on their number
            await self._run(partial(self._delete_job, job_id))

    @abstractmethod
    async def make_url(self, job_id: str, attempt: int, seconds: int) -> str | None:
        """Returns a URL that serves the video by HTTP for some time; None if the store cannot serve it."""

    async def list_jobs(self) -> AsyncGenerator[Sequence[StoredJob], None]:
        """Yields pages of the jobs of which anything is stored, each job once."""
        found = self._walk()
        while page := await self._run(lambda: [*islice(found, _PAGE)]):
            yield page

    async def read_marks(self) -> dict[str, bool]:
        """Returns the ids of the job databases that marked the store, and whether as owned by it alone."""

        def read() -> dict[str, bool]:
            names = self._list_folder(OWNERS)
            return {name: self._read(f"{OWNERS}/{name}", 0, len(_OWNED)) == _OWNED for name in names}

        return await self._run(read)

    async def write_mark(self, database_id: str, *, owned: bool) -> None:
        """Marks the store as used by a job database, and as owned by it alone or not."""
        data = _OWNED if owned else _SHARED
        await self._run(lambda: self._write(f"{OWNERS}/{database_id}", data, "text/plain"))

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Runs a blocking operation off the event loop. Raises PassingFault for a fault that may pass."""

    @abstractmethod
    def _write(self, key: str, data: bytes, media_type: str) -> None: ...

    @abstractmethod
    def _find_size(self, key: str) -> int | None: ...

    @abstractmethod
    def _read(self, key: str, offset: int, length: int) -> bytes | None:
        """Returns at most `length` bytes, fewer at the end of the item; None if it is missing."""

    @abstractmethod
    def _delete(self, keys: Sequence[str]) -> None: ...

    @abstractmethod
    def _delete_job(self, job_id: str) -> None: ...

    @abstractmethod
    def _walk(self) -> Iterator[StoredJob]:
        """Yields each job once, without OWNERS."""

    @abstractmethod
    def _list_folder(self, folder: str) -> list[str]:
        """Returns the names of the keys in a folder, without those of unfinished writes."""


def make_key(job_id: str, attempt: int, item: Item) -> str:
    return f"{job_id}/{attempt}{item.value}"


def _damaged(name: str, fault: str) -> ChorusError:
    return ChorusError(errors.BLOB_CORRUPT, f"{name} is {fault}; generate it again")
