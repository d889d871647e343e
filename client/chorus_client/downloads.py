"""Downloads of videos, and what else a client gets of a video: its thumbnail, and its URL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import ChorusError

from chorus_client.connection import Connection
from chorus_client.files import write_atomically
from chorus_client.results import to_utc

if TYPE_CHECKING:
    from chorus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

VIDEO_SECONDS: Final = 600.0
"""Upper bound on one call that downloads a video, in seconds."""
_MAX_VIDEO_BYTES: Final = 2 << 30


@dataclass(frozen=True)
class Thumbnail:
    """Small picture of a video: its middle frame.

    Attributes:
        data: the encoded picture.
        media_type: "image/jpeg".
        height, width: size in pixels.
    """

    data: bytes = field(repr=False)
    media_type: str
    height: int
    width: int

    def save(self, path: Path | str) -> Path:
        """Writes the picture atomically. Returns its path. Raises OSError."""
        return write_atomically(Path(path), self.data)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.GetThumbnailResponse) -> Self:
        info = message.info
        return cls(message.data, info.media_type, info.height, info.width)


@dataclass(frozen=True)
class VideoUrl:
    """Address of a video, for a limited time.

    Attributes:
        url: serves the mp4 by plain HTTP, also in ranges. Whoever has it can read the video.
        expires: end of its validity, in UTC on the server's clock.
    """

    url: str = field(repr=False)
    expires: datetime

    @classmethod
    def from_proto(cls, message: scheduler_pb2.GetVideoUrlResponse) -> Self:
        return cls(message.url, to_utc(message.expire_time))


class Download:
    """Receives the video of a generation, in as many calls as it takes.

    A call after one that broke continues behind the last byte.
    """

    def __init__(self, connection: Connection[SchedulerServiceAsyncStub], generation_id: str) -> None:
        self._connection = connection
        self._id = generation_id
        self._blob: BlobAssembler | None = None
        self._digest = ""

    @property
    def received(self) -> int:
        """Number of bytes that have arrived."""
        return 0 if self._blob is None else self._blob.received

    async def run(self, timeout: float) -> bytes:
        """Returns the mp4, its length and digest checked. Raises ChorusError; another call continues.

        Args:
            timeout: upper bound on this call, in seconds.
        """
        try:
            if self._blob is None or not self._blob.complete:
                await self._receive(min(timeout, VIDEO_SECONDS))
            if self._blob is None:
                raise BlobFault("the stream has no header")
            return self._blob.finish()
        except BlobFault as fault:
            raise make_damaged(self._id, fault) from fault

    async def _receive(self, timeout: float) -> None:
        request = scheduler_pb2.GetVideoRequest(generation_id=self._id, offset=self.received)
        responses = self._connection.stream(self._connection.stub.GetVideo, request, timeout)
        async with contextlib.aclosing(responses):
            async for response in responses:
                if response.HasField("header"):
                    header = response.header
                    if self._blob is None:
                        self._blob = BlobAssembler(header.size_bytes, header.digest, _MAX_VIDEO_BYTES)
                        self._digest = header.digest
                    elif header.digest != self._digest:
                        raise BlobFault("it changed during the download")
                elif self._blob is not None:
                    self._blob.add(response.chunk)


async def read_range(
    connection: Connection[SchedulerServiceAsyncStub],
    generation_id: str,
    offset: int,
    length: int,
    timeout: float,
) -> bytes:
    """Returns a range of a video, its length checked. Arguments as of AsyncGenerationHandle.video."""
    data = bytearray()
    chunks = stream_range(connection, generation_id, offset, length, timeout, _MAX_VIDEO_BYTES)
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            data += chunk
    return bytes(data)


async def stream_range(
    connection: Connection[SchedulerServiceAsyncStub],
    generation_id: str,
    offset: int,
    length: int,
    timeout: float,
    limit: int | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yields a range of a video and checks its length. Arguments as of AsyncGenerationHandle.video.

    Args:
        limit: upper bound on the length of the range, in bytes; None for none.
    """
    for name, value in (("offset", offset), ("length", length)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
            raise errors.invalid(name, f"must be 0 to 2^64 − 1, not {value!r}")
    request = scheduler_pb2.GetVideoRequest(generation_id=generation_id, offset=offset, length=length)
    received = 0
    expected: int | None = None
    responses = connection.stream(connection.stub.GetVideo, request, timeout)
    async with contextlib.aclosing(responses):
        async for response in responses:
            if response.HasField("header"):
                expected = length or response.header.size_bytes - offset
                if limit is not None and expected > limit:
                    raise errors.invalid("length", f"must select at most {limit} bytes, not {expected}")
                continue
            received += len(response.chunk)
            if expected is None or received > expected:
                break
            yield response.chunk
    if received != expected:
        fault = f"the range has {received} bytes in place of {expected}"
        raise make_damaged(generation_id, fault)


def make_damaged(generation_id: str, fault: BlobFault | str) -> ChorusError:
    return ChorusError(errors.BLOB_CORRUPT, f"the video of {generation_id} is damaged: {fault}")
