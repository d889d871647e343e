"""Object store in a bucket of any S3 endpoint."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any

from minio import Minio
from minio.credentials.providers import Provider
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from services.cache.blobs import Blobs, BlobStat
from services.cache.blocking_client import BlockingClient
from services.cache.entries import BLOB_ROOT
from services.object_store.connection import FAULTS, PART_BYTES, connect
from services.object_store.faults import ABSENT
from services.object_store.variables import S3Variables

_PAGE = 500
_VARIABLES = S3Variables("CHORUS_CACHE_S3", "CHORUS_CACHE_S3_BUCKET")


class S3Blobs(Blobs):
    """Stores blobs as objects. Create it with `open`, which waits for the endpoint and creates the bucket."""

    kind = "s3"

    def __init__(self, minio: Minio, bucket: str, client: BlockingClient) -> None:
        self._minio = minio
        self._bucket = bucket
        self._client = client

    @classmethod
    async def open(
        cls,
        *,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        secure: bool,
        region: str,
        seconds: float,
        threads: int,
        session_token: str = "",
        provider: Provider | None = None,
        ca: str = "",
    ) -> S3Blobs:
        """Connects, retrying until it succeeds or its caller is cancelled.

        Raises StartupError for a fault that no retry can cure.

        Args:
            session_token: token of temporary keys.
            provider: source of credentials in place of the keys.
            ca: PEM file with the authorities that may have signed the server's certificate; "": the system's.
            seconds: upper bound on one operation, in seconds, including retries.
            threads: number of concurrent operations.
        """
        client = BlockingClient("s3", threads, seconds, FAULTS, "CHORUS_CACHE_BLOB_SECONDS")
        minio = await connect(
            client,
            _VARIABLES,
            endpoint=endpoint,
            bucket=bucket,
            folder=BLOB_ROOT,
            access_key=access_key,
            secret_key=secret_key,
            secure=secure,
            region=region,
            seconds=seconds,
            threads=threads,
            session_token=session_token,
            provider=provider,
            ca=ca,
        )
        return cls(minio, bucket, client)

    async def close(self) -> None:
        await self._client.close()

    async def put(self, key: str, data: bytes) -> None:
        def write() -> None:
            self._minio.put_object(
                self._bucket,
                key,
                io.BytesIO(data),
                len(data),
                content_type="application/octet-stream",
                part_size=PART_BYTES,
            )
            stored = self._minio.stat_object(self._bucket, key).size
            if stored != len(data):
                raise OSError(f"{key} holds {stored} of {len(data)} bytes")

        await self._client.run(write)

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        def read() -> bytes | None:
            response: Any = None
            try:
                response = self._minio.get_object(self._bucket, key)
                return bytes(response.read(size_bytes + 1))
            except S3Error as error:
                if error.code in ABSENT:
                    return None
                raise
            finally:
                if response is not None:
                    response.close()
                    response.release_conn()

        return await self._client.run(read)

    async def stat(self, key: str) -> BlobStat | None:
        def head() -> BlobStat | None:
            try:
                return _to_stat(self._minio.stat_object(self._bucket, key))
            except S3Error as error:
                if error.code in ABSENT:
                    return None
                raise

        return await self._client.run(head)

    async def delete(self, keys: Sequence[str]) -> None:
        def remove() -> None:
            faults = list(self._minio.remove_objects(self._bucket, [DeleteObject(key) for key in keys]))
            if faults:
                raise OSError(f"{len(faults)} of {len(keys)} not deleted, first: {faults[0].message}")

        if keys:
            await self._client.run(remove)

    async def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        found: Iterator[Any] = self._minio.list_objects(self._bucket, prefix=f"{folder}/", recursive=True)
        while page := await self._client.run(lambda: [_to_stat(each) for each in islice(found, _PAGE)]):
            yield page


def _to_stat(item: Any) -> BlobStat:
    return BlobStat(item.object_name, int(item.size), int(item.last_modified.timestamp() * 1000))
