"""gRPC servicer of the cache: converts messages to entries and back. `validation` checks bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Final

import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus_rpc.chunks import chunks
from chorus_rpc.errors import CANCELLED, DEADLINE_EXCEEDED, ChorusError, Reason

from services.cache.access import Access
from services.cache.listing import Order, get_entry, list_entries
from services.cache.mapping import map_entries
from services.cache.messages import (
    to_details,
    to_entry,
    to_growth,
    to_header,
    to_map,
    to_model_usages,
    to_report,
    to_timestamp,
)
from services.cache.ownership import Ownership
from services.cache.store import LatentStore, now_ms
from services.cache.survey import survey
from services.cache.sweeper import adopt
from services.cache.upload import Upload
from services.cache.usage import measure_usage, purge
from services.cache.validation import (
    Limits,
    check_entry_id,
    check_fetch,
    check_find,
    check_list,
    check_lookup,
    check_map,
    check_purge,
    check_stats,
)
from services.cache.verification import verify
from services.contract.identity import entry_id, identity_digest

# The caller ends a call at its deadline, a little before the deadline passes here.
_CLOCK_TOLERANCE_SECONDS = 0.1
_OWNERSHIPS: Mapping[Ownership, cache_pb2.StoreOwnership.ValueType] = {
    Ownership.OWNED: cache_pb2.STORE_OWNERSHIP_OWNED,
    Ownership.FOREIGN: cache_pb2.STORE_OWNERSHIP_FOREIGN,
    Ownership.UNCLAIMED: cache_pb2.STORE_OWNERSHIP_UNCLAIMED,
}
_ORDERS: Mapping[cache_pb2.EntryOrder.ValueType, Order] = {
    cache_pb2.ENTRY_ORDER_UNSPECIFIED: "newest",
    cache_pb2.ENTRY_ORDER_LAST_USE: "used",
    cache_pb2.ENTRY_ORDER_SECONDS_SAVED: "saved",
    cache_pb2.ENTRY_ORDER_SIZE: "size",
    cache_pb2.ENTRY_ORDER_HITS: "hits",
}


NO_LIFETIMES: Final[Mapping[str, float]] = MappingProxyType({})


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Serves one store, which it does not own.

    Args:
        max_uploads: number of entries received concurrently; others wait, unread, within their deadline.
        lifetime_seconds: time after which an entry expires; 0 for never.
        tenant_lifetimes: the same for tenants that have one of their own, in seconds.
    """

    def __init__(
        self,
        store: LatentStore,
        access: Access,
        limits: Limits,
        max_uploads: int,
        lifetime_seconds: float = 0.0,
        tenant_lifetimes: Mapping[str, float] = NO_LIFETIMES,
    ) -> None:
        self._access = access
        self._lifetime_seconds = lifetime_seconds
        self._tenant_lifetimes = tenant_lifetimes
        self._store = store
        self._limits = limits
        self._uploads = asyncio.Semaphore(max_uploads)
        # One verification reads as fast as the store allows; further ones wait within their deadline.
        self._verifying = asyncio.Lock()

    async def Lookup(
        self,
        request: cache_pb2.LookupRequest,
        context: grpc.aio.ServicerContext[cache_pb2.LookupRequest, cache_pb2.LookupResponse],
    ) -> cache_pb2.LookupResponse:
        tenant = self._access.check("Lookup", context.invocation_metadata())
        space = check_lookup(request)
        hits = await self._store.lookup(
            space, tenant, identity_digest(request.identity), request.vector, request.limit, request.min_score
        )
        return cache_pb2.LookupResponse(
            donors=[cache_pb2.Donor(entry=to_entry(hit.entry), score=hit.score) for hit in hits]
        )

    async def Find(
        self,
        request: cache_pb2.FindRequest,
        context: grpc.aio.ServicerContext[cache_pb2.FindRequest, cache_pb2.FindResponse],
    ) -> cache_pb2.FindResponse:
        tenant = self._access.check("Find", context.invocation_metadata())
        space = check_find(request, self._limits)
        wanted = entry_id(tenant, identity_digest(request.identity), request.prompt, request.seed)
        entry = await self._store.find(space, tenant, wanted)
        return cache_pb2.FindResponse(entry=None if entry is None else to_entry(entry))

    async def Fetch(
        self,
        request: cache_pb2.FetchRequest,
        context: grpc.aio.ServicerContext[cache_pb2.FetchRequest, cache_pb2.FetchResponse],
    ) -> AsyncIterator[cache_pb2.FetchResponse]:
        tenant = self._access.check("Fetch", context.invocation_metadata())
        space = check_fetch(request)
        identity = identity_digest(request.identity)
        blobs = self._store.fetch(
            space,
            tenant,
            identity,
            request.entry_id,
            request.steps,
            side_data=request.side_data,
            total_steps=len(request.identity.schedule.sigmas) - 1,
        )
        async with aclosing(blobs):
            async for blob, data in blobs:
                yield cache_pb2.FetchResponse(header=to_header(blob))
                for chunk in chunks(data):
                    yield cache_pb2.FetchResponse(chunk=chunk)

    async def Admit(
        self,
        request_iterator: AsyncIterator[cache_pb2.AdmitRequest],
        context: grpc.aio.ServicerContext[cache_pb2.AdmitRequest, cache_pb2.AdmitResponse],
    ) -> cache_pb2.AdmitResponse:
        tenant = self._access.check("Admit", context.invocation_metadata())
        admission = None
        try:
            async with self._uploads:
                upload = Upload(tenant, self._limits)
                async for message in request_iterator:
                    upload.add(message)
                lifetime = self._tenant_lifetimes.get(tenant, self._lifetime_seconds)
                admission = await asyncio.to_thread(upload.finish, now_ms(), lifetime)
                created = await self._store.admit(admission)
        except (ChorusError, asyncio.CancelledError) as error:
            if admission is None:  # otherwise the store counts it, even if the caller is gone
                reason = _classify_rejection(error, context)
                self._store.counters[tenant].rejected_admissions[reason] += 1
            raise
        return cache_pb2.AdmitResponse(entry_id=admission.entry.entry_id, created=created)

    async def Purge(
        self,
        request: cache_pb2.PurgeRequest,
        context: grpc.aio.ServicerContext[cache_pb2.PurgeRequest, cache_pb2.PurgeResponse],
    ) -> cache_pb2.PurgeResponse:
        tenant = self._access.check("Purge", context.invocation_metadata())
        selection = check_purge(request, now_ms())
        purged = await purge(self._store, tenant, selection, validate_only=request.validate_only)
        return cache_pb2.PurgeResponse(entries=purged.entries, bytes=purged.size_bytes)

    async def ListEntries(
        self,
        request: cache_pb2.ListEntriesRequest,
        context: grpc.aio.ServicerContext[cache_pb2.ListEntriesRequest, cache_pb2.ListEntriesResponse],
    ) -> cache_pb2.ListEntriesResponse:
        tenant = self._access.check("ListEntries", context.invocation_metadata())
        size = check_list(request)
        page = await list_entries(self._store, tenant, _ORDERS[request.order], size, request.page_token)
        return cache_pb2.ListEntriesResponse(
            entries=map(to_details, page.entries), next_page_token=page.next_token
        )

    async def MapEntries(
        self,
        request: cache_pb2.MapEntriesRequest,
        context: grpc.aio.ServicerContext[cache_pb2.MapEntriesRequest, cache_pb2.MapEntriesResponse],
    ) -> cache_pb2.MapEntriesResponse:
        tenant = self._access.check("MapEntries", context.invocation_metadata())
        limit = check_map(request)
        return to_map(await map_entries(self._store, tenant, _ORDERS[request.order], limit))

    async def GetEntry(
        self,
        request: cache_pb2.GetEntryRequest,
        context: grpc.aio.ServicerContext[cache_pb2.GetEntryRequest, cache_pb2.GetEntryResponse],
    ) -> cache_pb2.GetEntryResponse:
        tenant = self._access.check("GetEntry", context.invocation_metadata())
        check_entry_id(request.entry_id)
        return cache_pb2.GetEntryResponse(
            entry=to_details(await get_entry(self._store, tenant, request.entry_id))
        )

    async def VerifyEntries(
        self,
        request: cache_pb2.VerifyEntriesRequest,
        context: grpc.aio.ServicerContext[cache_pb2.VerifyEntriesRequest, cache_pb2.VerifyEntriesResponse],
    ) -> AsyncIterator[cache_pb2.VerifyEntriesResponse]:
        tenant = self._access.check("VerifyEntries", context.invocation_metadata())
        if request.entry_id:
            check_entry_id(request.entry_id)
        async with self._verifying:
            reports = verify(self._store, tenant, request.entry_id, repair=request.repair)
            async with aclosing(reports):
                async for report in reports:
                    yield to_report(report)

    async def Stats(
        self,
        request: cache_pb2.StatsRequest,
        context: grpc.aio.ServicerContext[cache_pb2.StatsRequest, cache_pb2.StatsResponse],
    ) -> cache_pb2.StatsResponse:
        tenant = self._access.check("Stats", context.invocation_metadata())
        check_stats(request)
        known = await survey(self._store.ledger, tenant, request.growth_points)
        usage = None if request.from_memory else await measure_usage(self._store.index, tenant)
        counters, bounds = self._store.counters[tenant], self._store.room.capacity
        response = cache_pb2.StatsResponse(
            entries=known.entries if usage is None else usage.entries,
            bytes=known.size_bytes if usage is None else usage.size_bytes,
            lookups=counters.lookups,
            lookups_with_donor=counters.lookups_with_donor,
            fetches=counters.fetches,
            admissions=counters.admissions,
            corrupt_blobs=counters.corrupt_blobs,
            start_time=to_timestamp(self._store.start_ms),
            index_kind=self._store.index.kind,
            blobs_kind=self._store.blobs.kind,
            store_ownership=_OWNERSHIPS[self._store.claim.ownership],
            index_id=self._store.claim.index_id,
            store_owners=self._store.claim.owners,
            rejected_admissions=[
                cache_pb2.RejectedAdmissions(reason=reason, count=count)
                for reason, count in sorted(counters.rejected_admissions.items())
            ],
            failed_sweeps=self._store.failed_sweeps,
            capacity_bytes=bounds.smaller,
            evictions=[
                cache_pb2.Evictions(reason=reason, count=count)
                for reason, count in sorted(counters.evictions.items())
            ],
            hits=known.uses.hits,
            seconds_saved=known.uses.saved_seconds,
            models=() if usage is None else to_model_usages(usage),
            pinned_bytes=self._store.ledger.pinned_bytes(tenant),
            max_pinned_bytes=bounds.pinned,
        )
        if known.growth is not None:
            response.growth.extend(to_growth(known.growth))
            response.growth_step.FromMilliseconds(known.growth.step_ms)
        return response

    async def Adopt(
        self,
        request: cache_pb2.AdoptRequest,
        context: grpc.aio.ServicerContext[cache_pb2.AdoptRequest, cache_pb2.AdoptResponse],
    ) -> cache_pb2.AdoptResponse:
        self._access.check("Adopt", context.invocation_metadata())
        adoption = await adopt(self._store, validate_only=request.validate_only)
        return cache_pb2.AdoptResponse(
            index_id=self._store.claim.index_id,
            previous_owners=adoption.previous_owners,
            orphaned_blobs=adoption.orphaned_blobs,
            orphaned_bytes=adoption.orphaned_bytes,
            broken_entries=adoption.broken_entries,
        )


def _classify_rejection(error: BaseException, context: Any) -> Reason:
    """Returns the reason of a failed upload. To the server a cancelled stream looks like a complete one."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= _CLOCK_TOLERANCE_SECONDS:
        return DEADLINE_EXCEEDED
    if context.cancelled() or not isinstance(error, ChorusError):
        return CANCELLED
    return error.reason
