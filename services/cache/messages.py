"""Converts what the cache holds to messages."""

from __future__ import annotations

from itertools import islice
from typing import Final

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from google.protobuf import timestamp_pb2

from services.cache.entries import Blob, Entry
from services.cache.growth import Growth
from services.cache.listing import Details
from services.cache.mapping import EntryMap
from services.cache.usage import StorageUsage
from services.cache.verification import Progress

_MODELS: Final = 100  # upper bound on the models in statistics


def to_entry(entry: Entry) -> cache_pb2.Entry:
    return cache_pb2.Entry(
        entry_id=entry.entry_id,
        prompt=entry.prompt,
        prompt_hash=entry.prompt_hash,
        blobs=[to_header(blob) for blob in entry.blobs],
        cost_seconds=entry.cost_seconds,
        create_time=to_timestamp(entry.created_ms),
        traceparent=entry.traceparent,
        generation_id=entry.generation_id,
        seed=entry.seed,
    )


def to_header(blob: Blob) -> latents_pb2.BlobHeader:
    header = latents_pb2.BlobHeader(size_bytes=blob.size_bytes, digest=blob.digest)
    if blob.step is None:
        header.kind = latents_pb2.BLOB_KIND_SIDE_DATA
    else:
        header.step.CopyFrom(latents_pb2.StepRef(index=blob.step, sigma=blob.sigma))
    return header


def to_details(details: Details) -> cache_pb2.EntryDetails:
    entry, held = details.entry, details.held
    message = cache_pb2.EntryDetails(
        entry=to_entry(entry),
        model_id=entry.model_id,
        size_bytes=entry.size_bytes,
        hits=held.hits,
        seconds_saved=held.saved_seconds,
        pinned=entry.pinned,
        from_donor=entry.from_hit,
        nearest_similarity=entry.similarity,
        collection=details.space,
    )
    if held.hits:
        message.last_use_time.CopyFrom(to_timestamp(held.used_ms))
    if entry.expires_ms:
        message.expire_time.CopyFrom(to_timestamp(entry.expires_ms))
    return message


def to_report(progress: Progress) -> cache_pb2.VerifyEntriesResponse:
    return cache_pb2.VerifyEntriesResponse(
        entries=progress.entries,
        bytes=progress.size_bytes,
        damaged=[
            cache_pb2.DamagedEntry(
                entry_id=each.entry_id,
                blob=to_header(each.blob),
                missing=each.missing,
                deleted=each.deleted,
            )
            for each in progress.damaged
        ],
    )


def to_model_usages(usage: StorageUsage) -> list[cache_pb2.ModelUsage]:
    """Returns the usage of the largest models, by step boundary."""
    return [
        cache_pb2.ModelUsage(
            model_id=model,
            entries=each.entries,
            bytes=each.size_bytes,
            steps=[
                cache_pb2.StepUsage(step=step, bytes=size)
                for step, size in sorted(
                    each.bytes_by_step.items(), key=lambda item: (item[0] is None, item[0] or 0)
                )
            ],
        )
        for model, each in islice(usage.models.items(), _MODELS)
    ]


def to_growth(growth: Growth) -> list[cache_pb2.GrowthPoint]:
    return [
        cache_pb2.GrowthPoint(time=to_timestamp(each.time_ms), entries=each.entries, bytes=each.size_bytes)
        for each in growth.points
    ]


def to_map(found: EntryMap) -> cache_pb2.MapEntriesResponse:
    return cache_pb2.MapEntriesResponse(
        entries=[
            cache_pb2.MappedEntry(
                entry_id=each.entry.entry_id,
                prompt=each.prompt,
                generation_id=each.entry.generation_id,
                hits=each.held.hits,
                seconds_saved=each.held.saved_seconds,
                x=each.x,
                y=each.y,
            )
            for each in found.entries
        ],
        left_out=found.left_out,
        explained_share=found.explained_share,
    )


def to_timestamp(milliseconds: int) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp
