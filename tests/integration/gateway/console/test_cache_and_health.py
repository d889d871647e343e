"""Verifies the pages about the cache and about health: their figures, drawings and tables."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc import errors

from tests.integration.client.fakes import make_details
from tests.integration.gateway.console.world import Console, read_text, running_console

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with running_console() as running:
        yield running


async def test_cache_shows_growth_orders_and_what_is_left_out(console: Console) -> None:
    page = await console.open("/cache?order=hits")
    text = read_text(page)
    assert "Entries: 6" in text
    assert "Size: 2.6 MB" in text
    assert "a point for each hour" in text
    assert page.count("<polyline") == 2
    assert "Entries used most often" in text
    assert "2 of 7 entries" in text
    assert [each.order for each in console.cache.lists] == [cache_pb2.ENTRY_ORDER_HITS]
    assert [(each.from_memory, each.growth_points) for each in console.cache.stats] == [(True, 200)]
    await console.open("/cache?order=lost")
    assert console.cache.lists[-1].order == cache_pb2.ENTRY_ORDER_SECONDS_SAVED


async def test_map_links_to_videos_and_has_a_table(console: Console) -> None:
    first, second, third = (make_details(letter * 64) for letter in "abc")
    first.entry.prompt, first.entry.generation_id, first.hits = HOSTILE, "gen-1", 12
    second.entry.prompt, second.hits = "a circle", 0
    third.entry.prompt, third.entry.generation_id, third.hits = "", "", 1
    console.cache.entries = [first, second, third]
    page = await console.open("/cache")
    assert "<script>alert" not in page
    assert [(each.limit, each.order) for each in console.cache.maps] == [
        (200, cache_pb2.ENTRY_ORDER_SECONDS_SAVED)
    ]
    drawing = page[page.index('<svg class="map"') : page.index('<p class="key">')]
    assert drawing.count("<circle") == 3
    [link] = re.findall(r'<a href="([^"]+)"', drawing)
    assert link == "/console/videos/video_gen-1"
    assert drawing.count('tabindex="0"') == 2
    assert re.findall(r'aria-label="a circle: never used"', drawing)
    text = read_text(page)
    assert "99,800 others are left out" in text
    assert "42% of the variance" in text
    table = page[page.index('id="map-table"') :]
    assert table.index("&lt;script") < table.index("that is not kept") < table.index("a circle")


async def test_evictions_are_counted_by_reason(console: Console) -> None:
    assert "Deleted by the cache itself" not in await console.open("/cache")
    console.cache.evictions = {"capacity": 1_200, "expired": 3, "later reason": 1}
    text = read_text(await console.open("/cache"))
    assert "to make room 1,200" in text
    assert "at the end of their lifetime 3" in text
    assert "later reason 1" in text


async def test_page_is_there_without_the_map(console: Console) -> None:
    console.cache.map_fault = errors.unavailable("milvus", "no answer in 5 s")
    text = read_text(await console.open("/cache"))
    assert "The cache does not answer: milvus is not available" in text
    assert "Entries that saved most" in text


async def test_health_shows_what_reuse_saved(console: Console) -> None:
    await console.make("a red circle")
    await console.make("a blue circle")
    text = read_text(await console.open("/health"))
    assert "Reused something 50%" in text
    assert "Saved today 1.74 s" in text
    assert "Money" not in text
    assert "hit 1 50% 3.53 s 3.53 s" in text


async def test_health_shows_money_by_the_price_of_an_hour() -> None:
    async with running_console(console_denoiser_hour_price=3_600, console_currency="EUR") as console:
        await console.make("a red circle")
        await console.make("a blue circle")
        assert "Money saved today 1.74 EUR" in read_text(await console.open("/health"))


async def test_health_shows_services_with_their_versions(console: Console) -> None:
    text = read_text(await console.open("/health"))
    assert "scheduler serves 0.9" in text
    assert "cache serves 0.8 cache:7402" in text
    assert "denoiser does not serve connection refused – gpu-1:7403" in text
    assert "denoiser not known yet – gpu-2:7403" in text


async def test_health_shows_no_addresses_where_there_are_none(console: Console) -> None:
    console.scheduler.keys = {"key"}
    await console.log_in("key")
    text = read_text(await console.open("/health"))
    assert "cache serves" in text
    assert "Version" not in text
    assert "7402" not in text
