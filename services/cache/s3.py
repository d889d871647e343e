"""Object store in a bucket of any S3 endpoint."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.providers import Provider, StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error

from services.cache.blobs import Blobs, BlobStat
from services.cache.blocking_client import BlockingClient, retry_until_up
from services.cache.entries import BLOB_ROOT
from services.cache.store_faults import describe_s3_fault
from services.runtime.startup import StartupError

_PAGE = 500
_ABSENT = ("NoSuchKey", "NoSuchObject")
# One request for each blob: no listing shows an upload in parts that a crash interrupted.
_PART_BYTES = 5 << 30

# Tries of one request after the first.
_RETRIES = 2
# Upper bound on the time without any data during one request, in seconds.
_SILENCE_SECONDS = 5.0


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
        # All tries together stay below the limit of the operation.
        silence = min(_SILENCE_SECONDS, seconds / (_RETRIES + 1))
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=silence, read=silence),
            maxsize=threads,
            ca_certs=ca or None,
            retries=urllib3.Retry(
                total=_RETRIES,
                backoff_factor=0.2,
                status_forcelist=(500, 502, 503, 504),
                respect_retry_after_header=False,  # the server could ask for any time
            ),
        )
        try:
            minio = Minio(
                endpoint,
                credentials=provider or StaticProvider(access_key, secret_key, session_token or None),
                secure=secure,
                region=region or None,
                http_client=pool,
            )
        except ValueError as error:
            raise StartupError(f"CHORUS_CACHE_S3_ENDPOINT, CHORUS_CACHE_S3_REGION: {error}") from None
        faults = (MinioException, urllib3.exceptions.HTTPError, OSError)
        client = BlockingClient("s3", threads, seconds, faults, "CHORUS_CACHE_BLOB_SECONDS")

        def list_first() -> None:
            # Not a HEAD request, whose answer has no body: it would not say what is wrong. Permissions may be
            # limited to the prefix.
            next(iter(minio.list_objects(bucket, prefix=f"{BLOB_ROOT}/")), None)

        def probe() -> None:
            try:
                list_first()
            except S3Error as error:
                # A refusal is an answer.
                if error.response.status >= 500:
                    raise

        def make_bucket() -> None:
            try:
                list_first()
            except (ValueError, ParseError) as error:
                # A page, not a list of objects.
                raise InvalidResponseError(200, None, str(error)) from None
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise
                try:
                    minio.make_bucket(bucket)
                except S3Error as refusal:
                    # Another replica may have created it first.
                    if refusal.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise

        try:
            await retry_until_up(
                client, make_bucket, seconds, lambda error: describe_s3_fault(error, endpoint, bucket)
            )
        except BaseException:
            await client.close()
            raise
        client.suspend_when_silent(probe)
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
                part_size=_PART_BYTES,
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
                if error.code in _ABSENT:
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
                if error.code in _ABSENT:
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
