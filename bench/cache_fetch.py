"""Throughput of Fetch and Admit over gRPC, from a cache process on this machine: one part of `bench.cache`.

Fetch is compared with a bare gRPC server-stream, in a process of its own, that sends the same bytes in the
same chunks from memory; with an object store, with bare `get_object` calls for the same objects. Each
receiver computes one SHA-256 over the bytes. Fetch itself receives verified bytes in one piece.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio
from chorus_rpc.chunks import sha256
from minio import Minio
from minio.deleteobjects import DeleteObject

from bench import results
from bench.cache_bare import METHOD
from bench.cache_process import CALL_SECONDS, Upload, admit, fetch, make_upload, start_cache
from bench.cache_rows import TENANT, divide, time_alternately, time_call
from bench.results import Figure
from services.cache.entries import make_blob_key
from services.contract.identity import identity_digest

S3_ENDPOINT: Final = "CHORUS_TEST_S3_ENDPOINT"
S3_ACCESS_KEY: Final = "CHORUS_TEST_S3_ACCESS_KEY"
S3_SECRET_KEY: Final = "CHORUS_TEST_S3_SECRET_KEY"
# Shapes of latents of 4 MB and 12 MB in float32.
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {"4mb": (10, 10, 100, 100), "12mb": (30, 10, 100, 100)}
# Latents of 440 kB.
ADMITTED_SHAPE: Final = (11, 10, 25, 40)
ADMITTED_STEPS: Final = (1, 2, 3, 4)
STEP: Final = 2
ENTRIES: Final = 8  # of each size
_WARM_UPS: Final = 3
_REGION: Final = "us-east-1"

Call = Callable[[int], Awaitable[object]]


@asynccontextmanager
async def start_bare_server(folder: Path, blobs: Sequence[bytes]) -> AsyncIterator[Call]:
    """Runs the bare server; yields a function that receives the blob of a number and checks its digest."""
    files = [folder / str(number) for number in range(len(blobs))]
    await asyncio.to_thread(_write, files, blobs)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.cache_bare", *map(str, files), stdin=PIPE, stdout=PIPE, cwd=results.ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    digests = [sha256(blob) for blob in blobs]
    try:
        port = int(await process.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_stream(METHOD)

            async def receive(number: int) -> None:
                digest = hashlib.sha256()
                async for chunk in call(str(number).encode(), timeout=CALL_SECONDS):
                    digest.update(chunk)
                assert digest.hexdigest() == digests[number]

            yield receive
    finally:
        process.stdin.close()
        await process.wait()


def _write(files: Sequence[Path], blobs: Sequence[bytes]) -> None:
    for file, blob in zip(files, blobs, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob)


@asynccontextmanager
async def start_cache_with(
    folder: Path, variables: Mapping[str, str], uploads: Sequence[Upload]
) -> AsyncIterator[Call]:
    """Runs a cache process that holds entries; yields a function that fetches the latents of a number."""
    async with start_cache(folder, variables) as stub:
        ids = [await admit(stub, upload.make_messages()) for upload in uploads]

        async def receive(number: int) -> None:
            await fetch(stub, uploads[number], ids[number], STEP)

        yield receive


def make_uploads() -> list[Upload]:
    """Returns as many entries of each size, one size after the other."""
    return [make_upload(number, shape, [STEP]) for shape in SHAPES.values() for number in range(ENTRIES)]


async def compare(
    through: Call, bare: Call, blobs: Sequence[bytes], requests: int, names: tuple[str, str, str]
) -> dict[str, Figure]:
    """Receives blobs in two ways, alternately, and computes the MB/s and their ratio, by size.

    Args:
        through, bare: Functions that receive the blob of a number.
        blobs: The blobs of `make_uploads`.
        requests: Number of blobs of each size, in each way.
        names: Names of the MB/s in both ways, and of the ratio, whose lowest value has this name alone.
    """
    figures: dict[str, Figure] = {}
    ratios: dict[str, Figure] = {}
    for place, size in enumerate(SHAPES):
        numbers = [place * ENTRIES + each % ENTRIES for each in range(_WARM_UPS + requests)]

        def choose(call: Call, numbers: Sequence[int] = numbers) -> Call:
            return lambda i: call(numbers[i])

        both = await time_alternately(choose(through), choose(bare), len(numbers))
        seconds, bare_seconds = (durations[_WARM_UPS:] for durations in both)
        sent = [len(blobs[number]) / 1e6 for number in numbers[_WARM_UPS:]]
        figures[f"{names[0]}_{size}"] = results.median(divide(sent, seconds), "MB/s")
        figures[f"{names[1]}_{size}"] = results.median(divide(sent, bare_seconds), "MB/s")
        ratios[size] = results.median(divide(bare_seconds, seconds), "x")
    return figures | choose_lower(ratios, names[2])


def choose_lower(ratios: Mapping[str, Figure], name: str) -> dict[str, Figure]:
    """Returns the ratio of each size by name, and the lowest of them as `name` itself."""
    lowest = min(ratios.values(), key=lambda figure: figure.value)
    return {name: lowest, **{f"{name}_{size}": figure for size, figure in ratios.items()}}


async def measure_fetch(folder: Path, requests: int) -> dict[str, Figure]:
    """Measures fetches from the directory store.

    Args:
        folder: Empty folder for the stores.
        requests: Number of fetches of each kind and size.
    """
    uploads = make_uploads()
    blobs = [upload.blobs[STEP] for upload in uploads]
    names = ("fetch_mb_per_s_embedded", "bare_grpc_mb_per_s", "fetch_ratio_embedded")
    async with (
        start_cache_with(folder / "cache", {}, uploads) as through,
        start_bare_server(folder / "bare", blobs) as bare,
    ):
        return await compare(through, bare, blobs, requests, names)


async def measure_fetch_s3(folder: Path, requests: int) -> dict[str, Figure]:
    """Measures fetches from the S3 server that CHORUS_TEST_S3_ENDPOINT names, in a bucket of their own.

    Args:
        folder: Empty folder for the index.
        requests: Number of fetches of each kind and size.
    """
    endpoint = os.environ[S3_ENDPOINT].removeprefix("http://")
    access_key, secret_key = os.environ[S3_ACCESS_KEY], os.environ[S3_SECRET_KEY]
    minio = Minio(endpoint, access_key, secret_key, secure=False, region=_REGION)
    bucket = f"chorus-bench-{uuid.uuid4().hex[:12]}"
    variables = {
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_S3_ENDPOINT": endpoint,
        "CHORUS_CACHE_S3_BUCKET": bucket,
        "CHORUS_CACHE_S3_ACCESS_KEY": access_key,
        "CHORUS_CACHE_S3_SECRET_KEY": secret_key,
        "CHORUS_CACHE_S3_SECURE": "false",
        "CHORUS_CACHE_S3_REGION": _REGION,
    }
    uploads = make_uploads()
    blobs = [upload.blobs[STEP] for upload in uploads]
    names = ("fetch_mb_per_s_s3", "bare_minio_mb_per_s", "fetch_ratio_s3")
    try:
        async with start_cache_with(folder, variables, uploads) as through:
            bare = _make_bare_reader(minio, bucket, uploads)
            return await compare(through, bare, blobs, requests, names)
    finally:
        _remove_bucket(minio, bucket)


def _make_bare_reader(minio: Any, bucket: str, uploads: Sequence[Upload]) -> Call:
    """Returns a function that gets the object of a number and checks its digest."""
    digests = [sha256(upload.blobs[STEP]) for upload in uploads]
    keys = [
        make_blob_key(TENANT, identity_digest(upload.identity), digest)
        for upload, digest in zip(uploads, digests, strict=True)
    ]

    async def receive(number: int) -> None:
        response = minio.get_object(bucket, keys[number])
        try:
            assert sha256(response.read()) == digests[number]
        finally:
            response.close()
            response.release_conn()

    return receive


def _remove_bucket(minio: Any, bucket: str) -> None:
    if minio.bucket_exists(bucket):
        found: Iterator[Any] = minio.list_objects(bucket, recursive=True)
        list(minio.remove_objects(bucket, [DeleteObject(each.object_name) for each in found]))
        minio.remove_bucket(bucket)


async def measure_admit(folder: Path, requests: int) -> dict[str, Figure]:
    """Measures admissions of four boundaries each, one after the other, into the directory store.

    Args:
        folder: Empty folder for the stores.
        requests: Number of admissions.
    """
    seconds: list[float] = []
    async with start_cache(folder, {}) as stub:
        for number in range(_WARM_UPS + requests):
            messages = make_upload(number, ADMITTED_SHAPE, ADMITTED_STEPS).make_messages()

            async def send(_: int, messages: Sequence[Any] = messages) -> None:
                await admit(stub, messages)

            seconds.append(await time_call(send, number))
    seconds = seconds[_WARM_UPS:]
    return {
        "admit_per_second": results.ratio([1.0] * requests, seconds, "1/s"),
        "admit_ms": results.median([1000 * each for each in seconds], "ms"),
    }
