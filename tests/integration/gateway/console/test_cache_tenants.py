"""Verifies the page about the cache in front of a real cache with keys: each tenant has its own entries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from chorus_rpc.tenancy import tenant_metadata

from tests.contract.samples import admission, fetch, latents, new_entry
from tests.integration.cache.calls import admitted, connected, environment, fetched
from tests.integration.gateway.console.world import Console, running_console
from tests.processes import ServiceProcess, start_service

DENOISER_KEY = "key-of-the-denoiser"
GATEWAY_KEY = "key-of-the-gateway"
TENANTS = {"key-a": "tenant-of-key-a", "key-b": "tenant-of-key-b"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("cache")
    keys = {
        "CHORUS_CACHE_SCHEDULER_KEY": "key-of-the-scheduler",
        "CHORUS_CACHE_DENOISER_KEY": DENOISER_KEY,
        "CHORUS_CACHE_GATEWAY_KEY": GATEWAY_KEY,
    }
    with start_service("cache", environment(directory) | keys, directory) as running:
        yield running


async def fill(cache: ServiceProcess) -> None:
    """Gives each tenant three entries, one of which was used; entries that exist are kept."""
    async with connected(cache) as stub:
        for letter, tenant in zip("ab", TENANTS.values(), strict=True):
            metadata = tenant_metadata(tenant, DENOISER_KEY)
            for number in range(3):
                offered = new_entry(f"circle {number} of {letter}", vector=number)
                reply = await admitted(stub, metadata, admission(offered, {1: latents(number)}))
            await fetched(stub, metadata, fetch(reply.entry_id, 1))


@asynccontextmanager
async def keyed_console(cache: ServiceProcess, key: str = GATEWAY_KEY) -> AsyncIterator[Console]:
    options = {"console_cache_target": cache.target, "console_cache_key": key, "require_keys": True}
    async with running_console(with_cache=False, **options) as running:
        running.scheduler.keys = set(TENANTS)
        yield running


@pytest.fixture
async def console(cache: ServiceProcess) -> AsyncIterator[Console]:
    await fill(cache)
    async with keyed_console(cache) as running:
        yield running


def find_prompts(page: str) -> set[str]:
    return set(re.findall(r"circle \d of [ab]", page))


async def test_each_tenant_sees_its_own_entries(console: Console) -> None:
    for key, letter in zip(TENANTS, "ab", strict=True):
        await console.log_in(key)
        for order in ("saved", "hits", "used", "newest", "size", "unknown"):
            page = await console.open(f"/cache?order={order}")
            assert find_prompts(page) == {f"circle {number} of {letter}" for number in range(3)}, order
            assert TENANTS[key] in page
            assert "Map of prompts" in page
            assert page.count("<circle") == 3 + 4, "three dots, and the legend"


async def test_purge_of_everything_ends_at_the_tenant(console: Console) -> None:
    await console.log_in("key-a")
    shown = await console.send("/cache/purge", everything="yes")
    assert "<strong>3 entries" in shown.text
    done = await console.send("/cache/purge", everything="yes", confirmed="yes")
    assert "3 entries" in done.text
    assert "were dropped" in done.text
    assert find_prompts(await console.open("/cache")) == set()
    await console.log_in("key-b")
    assert len(find_prompts(await console.open("/cache"))) == 3


async def test_tenant_cannot_be_named_by_the_visitor(console: Console) -> None:
    await console.log_in("key-a")
    console.http.headers["chorus-tenant"] = TENANTS["key-b"]
    page = await console.open(f"/cache?tenant={TENANTS['key-b']}")
    assert {each[-1] for each in find_prompts(page)} == {"a"}
    await console.send("/cache/purge", everything="yes", confirmed="yes", tenant=TENANTS["key-b"])
    await console.log_in("key-b")
    assert len(find_prompts(await console.open("/cache"))) == 3


async def test_revoked_key_sees_and_purges_nothing(console: Console) -> None:
    await console.log_in("key-a")
    form_token = re.search(r'name="form_token" value="([0-9a-f]{64})"', await console.open("/cache"))
    assert form_token is not None
    console.scheduler.keys = {"key-b"}
    shown = await console.http.get("/console/cache")
    fields = {"form_token": form_token[1], "everything": "yes", "confirmed": "yes"}
    purged = await console.http.post("/console/cache/purge", data=fields)
    for response in (shown, purged):
        assert response.status_code == 303
        assert response.headers["location"].startswith("/console/login")
    console.scheduler.keys = set(TENANTS)
    assert len(find_prompts(await console.open("/cache"))) == 3


async def test_wrong_key_of_the_gateway_is_reported_and_ends_no_session(cache: ServiceProcess) -> None:
    async with keyed_console(cache, "not-the-key-of-the-gateway") as console:
        await console.log_in("key-a")
        page = await console.open("/cache")
        assert "CHORUS_GATEWAY_CONSOLE_CACHE_KEY" in page
        assert find_prompts(page) == set()
        refused = await console.send("/cache/purge", everything="yes")
        assert refused.status_code == 503
        assert "<h1>Not available</h1>" in refused.text
