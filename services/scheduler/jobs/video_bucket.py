"""Finished videos in a bucket of any S3 endpoint: one object each, complete or absent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any, Final, TypeVar

from chorus_rpc.errors import ChorusError
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from services.object_store.connection import FAULTS, PART_BYTES, connect
from services.object_store.credentials import open_provider
from services.object_store.faults import ABSENT, is_storage_full
from services.object_store.variables import S3Variables
from services.runtime.blocking_client import BlockingClient
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.video_store import OWNERS, Item, StoredJob, VideoStore, make_key
from services.scheduler.settings import SchedulerSettings
from services.scheduler.video_location import SETTING, parse_location

T = TypeVar("T")

_RESOURCE: Final = "the object store of the videos"
_VARIABLES: Final = S3Variables("CHORUS_SCHEDULER_S3", SETTING)
_THREADS: Final = 8
# Code of an answer to a range that begins after the end.
_OUT_OF_RANGE: Final = "InvalidRange"


class _Client(BlockingClient):
    owner = "scheduler"

    def find_full_disk(self, error: Exception) -> ChorusError | None:
        if is_storage_full(error):
            return PassingFault(_RESOURCE, SETTING, "it has no space left", disk_full=True)
        return None


class VideoBucket(VideoStore):
    """Objects `<folder>/<job id>/<attempt>.mp4` and `.jpg` in a bucket.

    Args:
        settings: those of a scheduler whose `video_store` is not empty.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        location = parse_location(settings.video_store)
        self._bucket, self._root = location.bucket, f"{location.folder}/"
        self._client = _Client(
            "s3", _THREADS, settings.video_seconds, FAULTS, "CHORUS_SCHEDULER_VIDEO_SECONDS"
        )
        self._opened: Minio | None = None

    @property
    def _minio(self) -> Minio:
        if self._opened is None:
            raise RuntimeError("the store of the videos is not open")
        return self._opened

    async def open(self) -> None:
        """Waits for the endpoint, and creates the bucket if it does not exist."""
        settings = self._settings
        self._opened = await connect(
            self._client,
            _VARIABLES,
            endpoint=settings.s3_endpoint,
            bucket=self._bucket,
            folder=self._root.rstrip("/"),
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            session_token=settings.s3_session_token.get_secret_value(),
            provider=open_provider(
                settings.s3_credentials,
                variable=_VARIABLES.name("credentials"),
                endpoint=settings.s3_sts_endpoint,
                region=settings.s3_region,
                ca=settings.s3_ca,
                seconds=settings.video_seconds,
            ),
            ca=settings.s3_ca,
            secure=settings.s3_secure,
            region=settings.s3_region,
            seconds=settings.video_seconds,
            threads=_THREADS,
        )

    async def close(self) -> None:
        await self._client.close()

    async def make_url(self, job_id: str, attempt: int, seconds: int) -> str | None:
        key = self._root + make_key(job_id, attempt, Item.VIDEO)

        def sign() -> str:
            # Reads the region of the bucket from the server once, if no setting states it.
            url = self._minio.presigned_get_object(self._bucket, key, expires=timedelta(seconds=seconds))
            return str(url)

        return await self._run(sign)

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await self._client.run(call)
        except PassingFault:
            raise
        except ChorusError as error:
            raise PassingFault(_RESOURCE, SETTING, error.message) from error

    def _write(self, key: str, data: bytes, media_type: str) -> None:
        self._minio.put_object(
            self._bucket,
            self._root + key,
            io.BytesIO(data),
            len(data),
            content_type=media_type,
            part_size=PART_BYTES,
        )
        stored = self._find_size(key)
        if stored != len(data):
            raise OSError(f"{key} holds {stored} of {len(data)} bytes")

    def _find_size(self, key: str) -> int | None:
        try:
            found: Any = self._minio.stat_object(self._bucket, self._root + key)
            return int(found.size)
        except S3Error as error:
            if error.code in ABSENT:
                return None
            raise

    def _read(self, key: str, offset: int, length: int) -> bytes | None:
        response: Any = None
        try:
            response = self._minio.get_object(self._bucket, self._root + key, offset, length)
            return bytes(response.read())
        except S3Error as error:
            if error.code in ABSENT:
                return None
            if error.code == _OUT_OF_RANGE:
                return b""
            raise
        finally:
            if response is not None:
                response.close()
                response.release_conn()

    def _delete(self, keys: Sequence[str]) -> None:
        objects = [DeleteObject(self._root + key) for key in keys]
        faults = list(self._minio.remove_objects(self._bucket, objects)) if objects else []
        if faults:
            raise OSError(f"{len(faults)} of {len(keys)} not deleted, first: {faults[0].message}")

    def _delete_job(self, job_id: str) -> None:
        self._delete([*self._list(f"{job_id}/")])

    def _walk(self) -> Iterator[StoredJob]:
        # In the order of their keys.
        found = self._minio.list_objects(self._bucket, prefix=self._root, recursive=True)
        for job_id, items in groupby(found, lambda item: self._key(item).partition("/")[0]):
            times = [item.last_modified.timestamp() for item in items if "/" in self._key(item)]
            if times and job_id != OWNERS:
                yield StoredJob(job_id, max(times))

    def _list_folder(self, folder: str) -> list[str]:
        return [key.removeprefix(f"{folder}/") for key in self._list(f"{folder}/")]

    def _list(self, prefix: str) -> Iterator[str]:
        found = self._minio.list_objects(self._bucket, prefix=self._root + prefix, recursive=True)
        return map(self._key, found)

    def _key(self, item: Any) -> str:
        return str(item.object_name).removeprefix(self._root)
