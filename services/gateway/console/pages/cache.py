"""Cache: what it holds and is worth, and a purge with a preview."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chorus_client import AsyncCacheClient, AsyncChorusClient, CacheMap, Purged
from chorus_client.spec import parse_duration
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.views.cache_drawings import draw_growth, draw_map
from services.gateway.console.visitor import Form, User, Visit, Visitor
from services.gateway.errors import ApiError

router = APIRouter()

_LISTED: Final = 20
_MAPPED: Final = 200
_GROWTH_POINTS: Final = 200
# Orders of entries: their names, and what the page calls the first entries.
_ORDERS: Final[Mapping[str, tuple[str, str]]] = {
    "saved": ("saved most", "that saved most"),
    "hits": ("used most", "used most often"),
    "used": ("used last", "used last"),
    "newest": ("newest", "admitted last"),
    "size": ("largest", "that are largest"),
}
_EVICTIONS: Final[Mapping[str, str]] = {
    "capacity": "to make room",
    "tenant_capacity": "to make room within the bound of one tenant",
    "expired": "at the end of their lifetime",
}
_NO_TARGET: Final = (
    "This gateway does not know the cache: set CHORUS_GATEWAY_CONSOLE_CACHE_TARGET to its address."
)
_KEY_WITHOUT_TENANT: Final = (
    "The scheduler has no API keys, so that a key opens nothing: log out, and use http://localhost."
)
_NO_CONDITION: Final = "Name a model or an age, or tick “every entry”."


@dataclass(frozen=True)
class _Access:
    """The visitor's access to the cache: its entries of one tenant, or what prevents it.

    Attributes:
        tenant: tenant of the visitor's key; empty without keys.
    """

    cache: AsyncCacheClient | None
    tenant: str = ""
    obstacle: str = ""


@router.get("/cache")
async def show_cache(request: Request, visitor: Visit, client: User, order: str = "saved") -> Response:
    """Shows the statistics of the cache, its growth, its first entries in an order, and a map of them."""
    return await _show(request, visitor, await _find_access(request, visitor, client), order=order)


@router.post("/cache/purge")
async def purge(request: Request, visitor: Visit, client: User, form: Form) -> Response:
    """Counts what a purge would drop, or drops it if that was shown before."""
    access = await _find_access(request, visitor, client)
    if access.cache is None:
        raise ApiError(403, "no_cache", "the cache cannot be purged here")
    model, age = form.get("model", "").strip(), form.get("older_than", "").strip()
    try:
        seconds = parse_duration(age, "older_than") if age else None
        everything = not model and seconds is None
        if everything and form.get("everything") != "yes":
            return await _show(request, visitor, access, form, fault=_NO_CONDITION)
        confirmed = form.get("confirmed") == "yes"
        gone = await access.cache.purge(
            model=model or None, older_than=seconds, everything=everything, validate_only=not confirmed
        )
    except ChorusError as error:
        if error.reason == errors.INVALID_FIELD:
            return await _show(request, visitor, access, form, fault=error.message)
        # Not the visitor's own: a key that the cache refuses is the gateway's.
        raise ApiError(503, "cache_unavailable", _describe(error)) from error
    return await _show(request, visitor, access, form, gone=gone, confirmed=confirmed)


async def _find_access(request: Request, visitor: Visitor, client: AsyncChorusClient) -> _Access:
    """Returns the visitor's access. Raises ChorusError (UNAUTHENTICATED) without a key that is in force."""
    cache: AsyncCacheClient | None = request.app.state.cache
    tenant = (await client.server_info()).tenant
    if cache is None:
        return _Access(None, tenant, _NO_TARGET)
    if tenant:
        return _Access(cache.with_tenant(tenant), tenant)
    if visitor.has_key:
        return _Access(None, obstacle=_KEY_WITHOUT_TENANT)
    return _Access(cache)


async def _show(
    request: Request,
    visitor: Visitor,
    access: _Access,
    form: Form | None = None,
    *,
    order: str = "saved",
    fault: str = "",
    gone: Purged | None = None,
    confirmed: bool = False,
) -> Response:
    order = order if order in _ORDERS else "saved"
    obstacle, found = access.obstacle, None
    if access.cache is not None:
        try:
            found = await _read(access.cache, order)
        except ChorusError as error:
            obstacle = _describe(error)
    values = {name: (form or {}).get(name, "") for name in ("model", "older_than", "everything")}
    return render(
        request,
        visitor,
        "cache.html",
        status=422 if fault else 200,
        obstacle=obstacle,
        tenant=access.tenant,
        found=found,
        orders=_ORDERS,
        order=order,
        reasons=_EVICTIONS,
        values=values,
        fault=fault,
        gone=gone,
        confirmed=confirmed,
    )


async def _read(cache: AsyncCacheClient, order: str) -> dict[str, Any]:
    """Returns what the page shows of the cache. Raises ChorusError."""
    stats, entries, (mapped, fault) = await asyncio.gather(
        cache.stats(from_memory=True, growth_points=_GROWTH_POINTS),
        cache.list(order, _LISTED),
        _read_map(cache, order),
    )
    return {
        "stats": stats,
        "entries": entries,
        "growth": draw_growth(stats.growth, stats.growth_step),
        "mapped": mapped,
        "map": None if mapped is None else draw_map(mapped.entries),
        "map_fault": fault,
    }


async def _read_map(cache: AsyncCacheClient, order: str) -> tuple[CacheMap | None, str]:
    """Returns the map, or why there is none: the rest of the page does not need the vectors."""
    try:
        return await cache.map(order, _MAPPED), ""
    except ChorusError as error:
        return None, _describe(error)


def _describe(error: ChorusError) -> str:
    return f"The cache does not answer: {error.message}"
