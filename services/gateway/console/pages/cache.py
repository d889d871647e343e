"""Cache: what it holds and is worth, and a purge with a preview."""

from __future__ import annotations

from typing import Final

from chorus_client import AsyncCacheClient, AsyncChorusClient, CacheEntry, CacheStats, Purged
from chorus_client.spec import parse_duration
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.visitor import Form, User, Visit, Visitor
from services.gateway.errors import ApiError

router = APIRouter()

_ENTRIES: Final = 20
_NO_TARGET: Final = (
    "This gateway does not know the cache: set CHORUS_GATEWAY_CONSOLE_CACHE_TARGET to its address."
)
_NO_CONDITION: Final = "Name a model or an age, or tick “every entry”."
_WITH_KEYS: Final = (
    "This page is open only where the scheduler needs no API keys, as a key does not say which entries"
    " its tenant may see. Use “chorus cache” on the command line."
)


@router.get("/cache")
async def show_cache(request: Request, visitor: Visit, client: User) -> Response:
    """Shows the statistics of the cache and its most useful entries."""
    return await _show(request, visitor, client)


@router.post("/cache/purge")
async def purge(request: Request, visitor: Visit, client: User, form: Form) -> Response:
    """Counts what a purge would drop, or drops it if that was shown before."""
    cache = request.app.state.cache
    if await _find_obstacle(request, visitor, client) or cache is None:
        raise ApiError(403, "no_cache", "the cache cannot be purged here")
    model, age = form.get("model", "").strip(), form.get("older_than", "").strip()
    try:
        seconds = parse_duration(age, "older_than") if age else None
        everything = not model and seconds is None
        if everything and form.get("everything") != "yes":
            return await _show(request, visitor, client, form, fault=_NO_CONDITION)
        confirmed = form.get("confirmed") == "yes"
        gone = await cache.purge(
            model=model or None, older_than=seconds, everything=everything, validate_only=not confirmed
        )
    except ChorusError as error:
        if error.reason != errors.INVALID_FIELD:
            raise
        return await _show(request, visitor, client, form, fault=error.message)
    return await _show(request, visitor, client, form, gone=gone, confirmed=confirmed)


async def _show(
    request: Request,
    visitor: Visitor,
    client: AsyncChorusClient,
    form: Form | None = None,
    *,
    fault: str = "",
    gone: Purged | None = None,
    confirmed: bool = False,
) -> Response:
    cache: AsyncCacheClient | None = request.app.state.cache
    obstacle = await _find_obstacle(request, visitor, client)
    stats: CacheStats | None = None
    entries: tuple[CacheEntry, ...] = ()
    if cache is not None and not obstacle:
        try:
            stats, entries = await cache.stats(), await cache.list("saved", _ENTRIES)
        except ChorusError as error:
            obstacle = f"The cache does not answer: {error.message}"
    values = {name: (form or {}).get(name, "") for name in ("model", "older_than", "everything")}
    return render(
        request,
        visitor,
        "cache.html",
        status=422 if fault else 200,
        obstacle=obstacle,
        stats=stats,
        entries=entries,
        values=values,
        fault=fault,
        gone=gone,
        confirmed=confirmed,
    )


async def _find_obstacle(request: Request, visitor: Visitor, client: AsyncChorusClient) -> str:
    """Returns why the visitor may not see the cache; empty if nothing prevents it."""
    if request.app.state.cache is None:
        return _NO_TARGET
    if visitor.has_key:
        return _WITH_KEYS
    await client.models()  # raises UNAUTHENTICATED if the scheduler needs a key
    return ""
