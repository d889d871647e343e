"""Metrics of the cache: its calls are measured here, all else is read from the store's own counters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc.aio
from chorus.cache.v1 import cache_pb2
from chorus_rpc import semconv
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import read_tenant
from opentelemetry.metrics import CallbackOptions, Observation

from services.cache.counters import TENANT_LABELS, Counters
from services.cache.hot import HotBlobs
from services.cache.servicer import CacheServicer
from services.cache.store import LatentStore
from services.runtime.metrics import METER, OTHER, BoundedLabels, create_histogram

_Value: TypeAlias = "tuple[float, Mapping[str, str]]"
_Read: TypeAlias = Callable[[Counters], Iterable[_Value]]
_Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]

_MODEL_LABELS = BoundedLabels(100)
_LOOKUPS = METER.create_counter(
    semconv.METRIC_CACHE_LOOKUPS, "{lookup}", "Lookups, by whether they found a similar entry."
)
_FETCH_BYTES = METER.create_counter(semconv.METRIC_CACHE_FETCH_BYTES, "By", "Bytes of blobs sent to readers.")
_LOOKUP_SECONDS = create_histogram(semconv.METRIC_CACHE_LOOKUP, "Duration of a lookup that did not fail.")
_FETCH_SECONDS = create_histogram(
    semconv.METRIC_CACHE_FETCH, "Duration of a complete fetch, which a slow reader prolongs."
)
_ADMIT_SECONDS = create_histogram(
    semconv.METRIC_CACHE_ADMIT, "Duration of an admission that did not fail, with its upload."
)


class MeasuredCacheServicer(CacheServicer):
    """CacheServicer that measures its lookups, fetches and admissions."""

    async def Lookup(
        self,
        request: cache_pb2.LookupRequest,
        context: grpc.aio.ServicerContext[cache_pb2.LookupRequest, cache_pb2.LookupResponse],
    ) -> cache_pb2.LookupResponse:
        begin = time.perf_counter()
        model, outcome = _MODEL_LABELS.find(request.identity.model_id), "error"
        tenant = _label_tenant(context, TENANT_LABELS.find)
        try:
            response = await super().Lookup(request, context)
            # Only a request that is valid, from a caller who may make it, gives its model and tenant a label.
            model = _MODEL_LABELS.add(request.identity.model_id)
            tenant = _label_tenant(context, TENANT_LABELS.add)
            outcome = "found" if response.donors else "none"
            _LOOKUP_SECONDS.record(time.perf_counter() - begin, {semconv.OUTCOME: outcome})
        finally:
            _LOOKUPS.add(1, {semconv.MODEL: model, semconv.TENANT: tenant, semconv.OUTCOME: outcome})
        return response

    async def Fetch(
        self,
        request: cache_pb2.FetchRequest,
        context: grpc.aio.ServicerContext[cache_pb2.FetchRequest, cache_pb2.FetchResponse],
    ) -> AsyncIterator[cache_pb2.FetchResponse]:
        begin = time.perf_counter()
        size = 0
        try:
            fetch = cast("AsyncGenerator[cache_pb2.FetchResponse]", super().Fetch(request, context))
            async with aclosing(fetch) as responses:
                async for response in responses:
                    yield response
                    size += len(response.chunk)
            _FETCH_SECONDS.record(time.perf_counter() - begin)
        finally:
            label = TENANT_LABELS.add if size else TENANT_LABELS.find
            _FETCH_BYTES.add(size, {semconv.TENANT: _label_tenant(context, label)})

    async def Admit(
        self,
        request_iterator: AsyncIterator[cache_pb2.AdmitRequest],
        context: grpc.aio.ServicerContext[cache_pb2.AdmitRequest, cache_pb2.AdmitResponse],
    ) -> cache_pb2.AdmitResponse:
        begin = time.perf_counter()
        response = await super().Admit(request_iterator, context)
        outcome = "created" if response.created else "existing"
        _ADMIT_SECONDS.record(time.perf_counter() - begin, {semconv.OUTCOME: outcome})
        return response


def observe_store(store: LatentStore) -> None:
    """Registers the metrics that are read from a store whenever they are exported, in another thread."""

    def by_tenant(read: _Read) -> list[_Callback]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for tenant, counters in store.counters.by_label().items():
                for value, attributes in read(counters):
                    yield Observation(value, {semconv.TENANT: tenant, **attributes})

        return [observe]

    for name, unit, description, read in _COUNTERS:
        METER.create_observable_counter(name, by_tenant(read), unit, description)
    METER.create_observable_counter(
        semconv.METRIC_CACHE_FAILED_SWEEPS,
        [lambda _: [Observation(store.failed_sweeps)]],
        "{sweep}",
        "Sweeps that failed.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_CACHE_ENTRIES,
        [lambda _: _observe_usage(store, 0)],
        "{entry}",
        "Entries that the cache holds.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_CACHE_BYTES, [lambda _: _observe_usage(store, 1)], "By", "Bytes of their blobs."
    )
    METER.create_observable_gauge(
        semconv.METRIC_CACHE_CAPACITY,
        [lambda _: [Observation(store.room.capacity.total)]],
        "By",
        "Upper bound on the bytes of all blobs.",
    )
    if isinstance(store.blobs, HotBlobs):
        _observe_hot(store.blobs)


def _observe_hot(hot: HotBlobs) -> None:
    METER.create_observable_counter(
        semconv.METRIC_CACHE_HOT_HITS,
        [lambda _: [Observation(hot.hits)]],
        "{read}",
        "Reads of blobs that memory answered.",
    )
    METER.create_observable_counter(
        semconv.METRIC_CACHE_HOT_MISSES,
        [lambda _: [Observation(hot.misses)]],
        "{read}",
        "Reads of blobs that memory could not answer.",
    )


def _observe_usage(store: LatentStore, position: int) -> list[Observation]:
    """Returns the entries (position 0) or bytes (1) by tenant; the largest tenants get labels first."""
    usage = sorted(store.ledger.measure_tenants().items(), key=lambda item: item[1][1], reverse=True)
    sums: Counter[str] = Counter()
    for tenant, sizes in usage:
        sums[TENANT_LABELS.add(tenant)] += sizes[position]
    return [Observation(value, {semconv.TENANT: tenant}) for tenant, value in sums.items()]


def _read_admissions(counters: Counters) -> list[_Value]:
    return [
        (counters.admissions, {semconv.OUTCOME: "created"}),
        (counters.existing_admissions, {semconv.OUTCOME: "existing"}),
        (counters.rejected_admissions.total(), {semconv.OUTCOME: "rejected"}),
    ]


def _read_evictions(counters: Counters) -> list[_Value]:
    return [(count, {semconv.REASON: reason}) for reason, count in counters.evictions.items()]


_COUNTERS: tuple[tuple[str, str, str, _Read], ...] = (
    (semconv.METRIC_CACHE_FETCHES, "{fetch}", "Complete fetches.", lambda each: [(each.fetches, {})]),
    (semconv.METRIC_CACHE_ADMISSIONS, "{admission}", "Admissions, by their outcome.", _read_admissions),
    (semconv.METRIC_CACHE_EVICTIONS, "{entry}", "Entries that the cache deleted itself.", _read_evictions),
    (
        semconv.METRIC_CACHE_CORRUPT,
        "{blob}",
        "Blobs of entries that were missing or altered.",
        lambda each: [(each.corrupt_blobs, {})],
    ),
    (
        # Without the unit, which would become a second suffix of the name.
        semconv.METRIC_CACHE_SECONDS_SAVED,
        "",
        "Seconds of computation that fetches saved.",
        lambda each: [(each.saved_seconds, {})],
    ),
)


def _label_tenant(context: Any, label: Callable[[str], str]) -> str:
    """Returns the label of a call's tenant; an invalid tenant has none.

    Args:
        label: returns the label of a valid tenant.
    """
    try:
        return label(read_tenant(context.invocation_metadata()))
    except ChorusError:
        return OTHER
