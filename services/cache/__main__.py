"""`python -m services.cache`: reads settings from `CHORUS_CACHE_*` and serves until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sys
from collections.abc import Iterable

import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus_rpc.addresses import is_loopback_host
from minio.credentials.providers import Provider

from services.cache.access import Access, Role
from services.cache.blobs import Blobs
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.hot import HotBlobs
from services.cache.index import Index
from services.cache.metrics import MeasuredCacheServicer, observe_store
from services.cache.milvus import MilvusIndex
from services.cache.room import Capacity
from services.cache.s3 import S3Blobs
from services.cache.settings import CacheSettings
from services.cache.store import LatentStore
from services.cache.sweeper import Sweeper, claim_if_empty
from services.cache.validation import Limits
from services.object_store import credentials
from services.runtime.logs import get_logger
from services.runtime.resources import Resources
from services.runtime.server import run
from services.runtime.settings import load_settings

log = get_logger("cache")


def open_provider(settings: CacheSettings) -> Provider | None:
    """Returns the provider of the object store's credentials; None if they are keys of the settings."""
    return credentials.open_provider(
        settings.s3_credentials,
        variable="CHORUS_CACHE_S3_CREDENTIALS",
        endpoint=settings.s3_sts_endpoint,
        region=settings.s3_region,
        ca=settings.s3_ca,
        seconds=settings.blob_seconds,
    )


async def open_index(settings: CacheSettings) -> Index:
    if settings.milvus_uri.endswith(".db"):
        return await EmbeddedIndex.open_path(settings.milvus_uri, seconds=settings.milvus_seconds)
    return await MilvusIndex.open(
        settings.milvus_uri,
        settings.milvus_token.get_secret_value(),
        ca=settings.milvus_ca,
        seconds=settings.milvus_seconds,
        threads=settings.milvus_threads,
    )


async def open_blobs(settings: CacheSettings) -> Blobs:
    if settings.blobs == "directory":
        return await DirectoryBlobs.open(
            settings.blob_dir, seconds=settings.blob_seconds, threads=settings.blob_threads
        )
    return await S3Blobs.open(
        endpoint=settings.s3_endpoint,
        bucket=settings.s3_bucket,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        session_token=settings.s3_session_token.get_secret_value(),
        provider=open_provider(settings),
        ca=settings.s3_ca,
        secure=settings.s3_secure,
        region=settings.s3_region,
        seconds=settings.blob_seconds,
        threads=settings.blob_threads,
    )


async def choose_capacity(settings: CacheSettings) -> Capacity:
    """Returns the upper bounds on the blobs; without a setting those of a directory depend on its disk."""
    total = settings.capacity_bytes
    if settings.blobs == "directory" and "capacity_bytes" not in settings.model_fields_set:
        disk = await asyncio.to_thread(shutil.disk_usage, settings.blob_dir)
        total = min(total, disk.total // 10)
    return Capacity(total, min(total, settings.tenant_capacity_bytes or total), settings.low_water)


def make_access(settings: CacheSettings) -> Access:
    keys: dict[Role, str] = {
        "scheduler": settings.scheduler_key.get_secret_value(),
        "denoiser": settings.denoiser_key.get_secret_value(),
        "gateway": settings.gateway_key.get_secret_value(),
        "operator": settings.operator_key.get_secret_value(),
    }
    if not any(keys.values()) and not is_loopback_host(settings.host):
        log.warning(
            "callers need no key: CHORUS_CACHE_SCHEDULER_KEY and CHORUS_CACHE_DENOISER_KEY are empty",
            host=settings.host,
            tenants=settings.keyless_tenants,
        )
    return Access(keys, settings.keyless_tenants)


def read_shares(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Returns for each reader the owners whose entries it may reuse, from "READER=OWNER"."""
    shares: dict[str, list[str]] = {}
    for pair in dict.fromkeys(pairs):
        reader, owner = pair.split("=")
        if reader != owner:
            shares.setdefault(reader, []).append(owner)
    return shares


async def start(settings: CacheSettings, resources: Resources, server: grpc.aio.Server) -> None:
    """Waits for index and object store; resources close in reverse order."""
    index = await open_index(settings)
    resources.push_async_callback(index.close)
    blobs: Blobs = await open_blobs(settings)
    if settings.hot_bytes:
        blobs = HotBlobs(blobs, settings.hot_bytes)
    resources.push_async_callback(blobs.close)
    shares = read_shares(settings.shares)
    store = LatentStore(index, blobs, await choose_capacity(settings), shares)
    resources.push_async_callback(store.close)
    await store.load()
    # A full collection walks every object of the ledger, during which no lookup is answered.
    gc.collect()
    gc.freeze()
    observe_store(store)
    await claim_if_empty(store)
    sweeper = Sweeper(store, settings.sweep_seconds, settings.grace_seconds)
    resources.start_task(sweeper.run(), "sweeper")
    limits = Limits(settings.max_prompt_bytes, settings.max_blob_bytes, settings.max_entry_bytes)
    cache_pb2_grpc.add_CacheServiceServicer_to_server(
        MeasuredCacheServicer(
            store,
            make_access(settings),
            limits,
            settings.max_uploads,
            settings.lifetime_seconds,
            settings.tenant_lifetimes,
        ),
        server,
    )


def main() -> None:
    settings = load_settings(CacheSettings, sys.argv[1:])
    run(
        "cache",
        cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
        settings,
        lambda resources, server: start(settings, resources, server),
    )


if __name__ == "__main__":
    main()
