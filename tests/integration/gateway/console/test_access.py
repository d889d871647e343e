"""Verifies who sees the console, and that pages and forms of other sites cannot use it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.integration.gateway.console.world import Console, running_console

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"
PAGES = ("/", "/gallery", "/queue", "/cache", "/health", "/login")


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with running_console() as running:
        yield running


@pytest.fixture
async def keyed() -> AsyncIterator[Console]:
    async with running_console(require_keys=True) as running:
        running.scheduler.keys = {"key-a", "key-b"}
        yield running


async def find_form_token(console: Console) -> str:
    page = (await console.http.get("/console/login")).text
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


async def log_in(console: Console, key: str, following: str = "") -> httpx.Response:
    token = await find_form_token(console)
    fields = {"form_token": token, "key": key, "next": following}
    return await console.http.post("/console/login", data=fields)


@pytest.mark.parametrize("kind", ["", "slow ", "fail ", "queued "])
async def test_hostile_prompt_is_text_on_every_page(console: Console, kind: str) -> None:
    await console.make("a red circle")
    path = await console.make(kind + HOSTILE, labels="note=<b>bold</b>")
    pages = [*PAGES[:-1], path, f"{path}/family", "/gallery?text=%3Cscript%3E%22", "/?prompt=%3Cscript%3E%22"]
    for page in [await console.open(page) for page in pages]:
        scripts = re.findall(r"<script[^>]*>", page)
        assert scripts == ['<script src="/console/static/console.js" defer>']
        assert "<img src=x" not in page
        assert "<b>bold" not in page
        assert not re.search(r"\son\w+=", re.sub(r"&[a-z#0-9]+;[^<]*", "", page))


@pytest.mark.parametrize("path", [*PAGES, "/nowhere", "/static/console.js"])
async def test_answers_carry_a_strict_policy(console: Console, path: str) -> None:
    headers = (await console.http.get(f"/console{path}")).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"


async def test_pages_have_no_inline_code_or_style(console: Console) -> None:
    await console.make("a red circle")
    path = await console.make("a blue circle")
    for page in [await console.open(each) for each in (*PAGES, path)]:
        assert "style=" not in page
        assert "<style" not in page
        assert not re.search(r"(src|href|action)=\"(?!/console|#)", page)


async def test_api_has_no_policy_of_the_console(console: Console) -> None:
    response = await console.http.get("/v1/videos")
    assert response.status_code == 200
    assert "content-security-policy" not in response.headers


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, ""),
        ({}, "0" * 64),
        ({"Origin": "https://example.org"}, None),
        ({"Origin": "null"}, None),
        ({"Origin": "http://["}, None),
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
    ],
)
async def test_form_of_another_site_is_refused(
    console: Console, headers: dict[str, str], token: str | None
) -> None:
    own = await find_form_token(console)
    fields = {"form_token": own if token is None else token, "prompt": "a circle"}
    response = await console.http.post("/console/submit", data=fields, headers=headers)
    assert response.status_code == 403
    assert "load the page again" in response.text
    assert console.scheduler.requests == []


async def test_form_of_another_session_is_refused(console: Console) -> None:
    token = await find_form_token(console)
    console.http.cookies.clear()
    response = await console.http.post("/console/submit", data={"form_token": token, "prompt": "a circle"})
    assert response.status_code == 403
    assert console.scheduler.requests == []


async def test_form_of_the_page_is_accepted_with_the_headers_of_a_browser(console: Console) -> None:
    fields = {"form_token": await find_form_token(console), "prompt": "a circle"}
    headers = {"Origin": console.url, "Sec-Fetch-Site": "same-origin"}
    response = await console.http.post("/console/submit", data=fields, headers=headers)
    assert response.status_code == 303


async def test_every_form_is_protected(console: Console) -> None:
    path = await console.make("slow circle")
    for target in ("/submit", "/preview", "/cache/purge", "/login", "/logout", f"{path}/cancel"):
        response = await console.http.post(f"/console{target}", data={"prompt": "a circle", "key": "k"})
        assert response.status_code == 403, target


async def test_without_keys_only_the_machine_itself_is_answered(console: Console) -> None:
    for host in ("chorus.example", "10.0.0.7:7404", "localhost.example.org", "", "["):
        response = await console.http.get("/console/gallery", headers={"Host": host})
        assert response.status_code in (400, 403), host
    for host in ("localhost:7404", "127.0.0.1", "[::1]:7404"):
        assert (await console.http.get("/console/gallery", headers={"Host": host})).status_code == 200


async def test_pages_need_a_login_where_keys_are_required(keyed: Console) -> None:
    response = await keyed.http.get("/console/gallery")
    assert (response.status_code, response.headers["location"]) == (
        303,
        "/console/login?next=/console/gallery",
    )
    for path in ("/videos/video_gen-1/content", "/videos/video_gen-1/events", "/cache", "/health", "/"):
        assert (await keyed.http.get(f"/console{path}")).status_code == 303, path


async def test_login_starts_a_session_that_sees_its_own_videos(keyed: Console) -> None:
    response = await log_in(keyed, "key-a", "/console/gallery?text=red")
    assert (response.status_code, response.headers["location"]) == (303, "/console/gallery?text=red")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/console" in cookie
    assert "key-a" not in cookie
    path = await keyed.make("a red circle")
    assert "a red circle" in await keyed.open(path)
    await log_in(keyed, "key-b")
    assert (await keyed.http.get(f"/console{path}")).status_code == 404
    assert "a red circle" not in await keyed.open("/gallery")


async def test_cache_is_asked_for_the_tenant_of_the_key_alone(keyed: Console) -> None:
    await log_in(keyed, "key-a")
    await keyed.open("/cache")
    await log_in(keyed, "key-b")
    await keyed.open("/cache")
    assert keyed.cache.tenants == ["tenant-of-key-a", "tenant-of-key-b"]


async def test_key_opens_no_cache_where_the_scheduler_has_no_keys(keyed: Console) -> None:
    await log_in(keyed, "key-a")
    keyed.scheduler.keys = set()
    assert "a key opens nothing" in await keyed.open("/cache")
    assert (await keyed.send("/cache/purge", everything="yes")).status_code == 403
    assert keyed.cache.purges == []
    assert keyed.cache.tenants == []


@pytest.mark.parametrize("key", ["wrong", "", "with space", "x" * 1_025, "é"])
async def test_wrong_key_is_refused(keyed: Console, key: str) -> None:
    response = await log_in(keyed, key)
    assert response.status_code == 401
    assert 'role="alert"' in response.text
    assert "set-cookie" not in response.headers
    assert (await keyed.http.get("/console/gallery")).status_code == 303


async def test_login_leads_to_no_other_site(keyed: Console) -> None:
    response = await log_in(keyed, "key-a", "//example.org/console")
    assert response.headers["location"] == "/console/"


async def test_login_opens_nothing_where_the_scheduler_has_no_keys(console: Console) -> None:
    response = await log_in(console, "any-key")
    assert response.status_code == 401
    assert "has no API keys" in response.text
    assert (await console.http.get("/console/gallery", headers={"Host": "a.example"})).status_code == 403


async def test_logout_ends_the_session(keyed: Console) -> None:
    await log_in(keyed, "key-a")
    assert (await keyed.send("/logout")).status_code == 303
    assert (await keyed.http.get("/console/gallery")).status_code == 303


async def test_revoked_key_leads_to_the_login(keyed: Console) -> None:
    await log_in(keyed, "key-a")
    keyed.scheduler.keys = {"key-b"}
    response = await keyed.http.get("/console/gallery")
    assert response.headers["location"].startswith("/console/login")
