"""Connects to a bucket of any S3 endpoint."""

from __future__ import annotations

from typing import Final
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.providers import Provider, StaticProvider
from minio.error import InvalidResponseError, MinioException, S3Error

from services.object_store.faults import describe_s3_fault
from services.object_store.variables import S3Variables
from services.runtime.blocking_client import BlockingClient, retry_until_up
from services.runtime.startup import StartupError

FAULTS: Final[tuple[type[Exception], ...]] = (MinioException, urllib3.exceptions.HTTPError, OSError)
"""Exceptions of a client of S3 that mean the store does not answer."""

# One request for each object: no listing shows an upload in parts that a crash interrupted.
PART_BYTES: Final = 5 << 30

# Tries of one request after the first.
_RETRIES: Final = 2
# Upper bound on the time without any data during one request, in seconds.
_SILENCE_SECONDS: Final = 5.0


async def connect(
    client: BlockingClient,
    variables: S3Variables,
    *,
    endpoint: str,
    bucket: str,
    folder: str,
    access_key: str,
    secret_key: str,
    secure: bool,
    region: str,
    seconds: float,
    threads: int,
    session_token: str = "",
    provider: Provider | None = None,
    ca: str = "",
) -> Minio:
    """Connects, retrying until it succeeds or its caller is cancelled. Creates a bucket that does not exist.

    Raises StartupError for a fault that no retry can cure. If it raises, the client is closed.

    Args:
        client: runs the blocking calls, of which FAULTS are faults. Calls are suspended from now on while the
            store does not answer.
        folder: prefix of all keys, without the slash at its end; permissions may be limited to it.
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

    def list_first() -> None:
        # Not a HEAD request, whose answer has no body: it would not say what is wrong. Permissions may be
        # limited to the prefix.
        next(iter(minio.list_objects(bucket, prefix=f"{folder}/")), None)

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
        try:
            minio = Minio(
                endpoint,
                credentials=provider or StaticProvider(access_key, secret_key, session_token or None),
                secure=secure,
                region=region or None,
                http_client=pool,
            )
        except ValueError as error:
            names = f"{variables.name('endpoint')}, {variables.name('region')}"
            raise StartupError(f"{names}: {error}") from None
        await retry_until_up(
            client, make_bucket, seconds, lambda error: describe_s3_fault(error, endpoint, bucket, variables)
        )
    except BaseException:
        await client.close()
        raise
    client.suspend_when_silent(probe)
    return minio
