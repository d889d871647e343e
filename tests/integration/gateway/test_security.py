"""Verifies who may call: keys, foreign ids, TLS, other origins, and the settings that are refused."""

from __future__ import annotations

import ssl
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
from chorus_client import AsyncChorusClient
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings
from tests.integration.gateway.test_endpoints import read_error
from tests.integration.gateway.world import World, running_world
from tests.tls import make_certificates

KEYS = {name: {"Authorization": f"Bearer {name}-key"} for name in ("ann", "bob", "eve")}


@pytest.fixture
async def two_tenants(world: World) -> World:
    world.scheduler.keys = {"ann-key", "bob-key"}
    return world


async def test_key_is_the_schedulers(two_tenants: World) -> None:
    http = two_tenants.http
    assert (await http.get("/v1/models", headers=KEYS["ann"])).status_code == 200
    for headers in ({}, KEYS["eve"]):
        response = await http.get("/v1/models", headers=headers)
        error = read_error(response, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for value in (
        "ann-key",
        "Basic YTpi",
        "Bearer",
        "Bearer a b",
        "Bearer é",
        "Bearer " + "k" * 5_000,
    ):
        response = await http.get("/v1/models", headers={b"Authorization": value.encode()})
        error = read_error(response, 401)
        assert "ann-key" not in error["message"]


async def test_environment_gives_no_caller_a_key(two_tenants: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_TOKEN", "ann-key")
    async with running_world() as world:
        world.scheduler.keys = {"ann-key"}
        read_error(await world.http.get("/v1/models"), 401)


async def test_foreign_videos_do_not_exist(two_tenants: World) -> None:
    http = two_tenants.http
    created = await http.post("/v1/videos", json={"prompt": "slow"}, headers=KEYS["ann"])
    identifier = created.json()["id"]
    for method, path, body in (
        ("GET", identifier, None),
        ("GET", f"{identifier}/content", None),
        ("GET", f"{identifier}/events", None),
        ("DELETE", identifier, None),
        ("POST", f"{identifier}/remix", {"prompt": "a"}),
        ("POST", "edits", {"prompt": "a", "video": {"id": identifier}}),
    ):
        response = await http.request(method, f"/v1/videos/{path}", json=body, headers=KEYS["bob"])
        own = await http.request(
            method,
            f"/v1/videos/{path}".replace(identifier, "video_nothing"),
            json=body if body is None or "video" not in body else {**body, "video": {"id": "video_nothing"}},
            headers=KEYS["bob"],
        )
        error, unknown = read_error(response, 404), read_error(own, 404)
        assert error["message"].replace(identifier, "video_nothing") == unknown["message"]
    assert (await http.get("/v1/videos", headers=KEYS["bob"])).json()["data"] == []
    after = await http.get("/v1/videos", params={"after": identifier}, headers=KEYS["bob"])
    read_error(after, 404)
    assert len((await http.get("/v1/videos", headers=KEYS["ann"])).json()["data"]) == 1


async def test_required_key_is_asked_for_before_the_scheduler() -> None:
    async with running_world(require_keys=True) as world:
        read_error(await world.http.get("/v1/models"), 401)
        assert (await world.http.get("/v1/models", headers=KEYS["ann"])).status_code == 200
        assert (await world.http.get("/health")).status_code == 200


async def test_port_speaks_tls(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    async with running_world(tls_certificate=str(files.certificate), tls_key=str(files.key)) as world:
        context = ssl.create_default_context(cafile=str(files.ca))
        async with httpx.AsyncClient(verify=context, trust_env=False) as http:
            response = await http.get(f"https://127.0.0.1:{world.port}/v1/models")
            assert response.status_code == 200
        with pytest.raises(httpx.HTTPError):
            await world.http.get("/v1/models")


async def test_other_origins_are_let_in_by_name_only() -> None:
    page = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with running_world() as world:
        response = await world.http.options("/v1/videos", headers=page)
        assert "access-control-allow-origin" not in response.headers
    async with running_world(cors_origins=("https://app.example",)) as world:
        response = await world.http.options("/v1/videos", headers=page)
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        other = await world.http.options("/v1/videos", headers={**page, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        simple = await world.http.get("/v1/models", headers={"Origin": "https://app.example"})
        assert simple.headers["access-control-allow-origin"] == "https://app.example"


async def test_page_that_may_call_reads_every_answer() -> None:
    page = {"Origin": "https://app.example"}
    async with running_world(cors_origins=("https://app.example",), max_concurrent_calls=1) as world:
        wanted = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-stainless-lang",
        }
        assert (await world.http.options("/v1/videos", headers={**page, **wanted})).status_code == 200
        made = await world.http.post("/v1/videos/sync", json={"prompt": "a"}, headers=page)
        assert "chorus-video-id" in made.headers["access-control-expose-headers"]
        video = await world.create("slow")
        async with world.http.stream("GET", f"/v1/videos/{video['id']}/events"):
            busy = await world.http.get("/v1/models", headers=page)
        await world.until_idle()
        with patch.object(AsyncChorusClient, "models", side_effect=ZeroDivisionError):
            broken = await world.http.get("/v1/models", headers=page)
        for response, status in ((busy, 503), (broken, 500)):
            read_error(response, status)
            assert response.headers["access-control-allow-origin"] == "https://app.example"


FORM = {"prompt": (None, "a circle")}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", **KEYS["eve"]},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Host": "evil.example:7404"},
        {"Host": "evil.example", "Origin": "http://evil.example", **KEYS["eve"]},
        {"Host": "["},
        {"Host": "127.0.0.1.example"},
    ],
)
async def test_page_of_another_site_cannot_use_an_open_api(world: World, headers: dict[str, str]) -> None:
    response = await world.http.post("/v1/videos", files=FORM, headers=headers)
    expected = "host_refused" if "Host" in headers else "origin_refused"
    assert read_error(response, 403)["code"] == expected
    response = await world.http.get("/v1/videos", headers=headers)
    read_error(response, 403)
    assert world.scheduler.requests == []


async def test_programs_and_own_pages_use_an_open_api() -> None:
    async with running_world(cors_origins=("https://app.example",)) as world:
        own = f"http://localhost:{world.port}"
        for headers in (
            {},
            {"Host": f"localhost:{world.port}", "Origin": own},
            {"Host": "[::1]:7404"},
            {"Origin": "https://app.example"},
            {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        ):
            response = await world.http.post("/v1/videos", files=FORM, headers=headers)
            assert response.status_code == 200, response.text
    async with running_world(trusted_network=True) as world:
        assert (await world.http.get("/v1/videos", headers={"Host": "gateway:7404"})).status_code == 200
        foreign = {"Host": "gateway:7404", "Origin": "https://evil.example"}
        read_error(await world.http.post("/v1/videos", files=FORM, headers=foreign), 403)
    async with running_world(require_keys=True) as world:
        headers = {"Host": "a.example", "Origin": "https://evil.example"}
        read_error(await world.http.get("/v1/videos", headers=headers), 401)
        assert (await world.http.get("/v1/videos", headers={**headers, **KEYS["ann"]})).status_code == 200


async def test_answers_carry_an_id_and_are_not_guessed_to_be_pages(world: World) -> None:
    response = await world.http.get("/v1/models")
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, "REQUIRE_KEYS"),
        ({"host": "0.0.0.0", "require_keys": True}, "TLS_CERTIFICATE"),
        ({"scheduler_target": "scheduler.example:7400"}, "ALLOW_PLAINTEXT_KEYS"),
        ({"tls_key": "/missing"}, "TLS_KEY"),
        ({"tls_certificate": "/missing", "tls_key": "/missing"}, "cannot be read"),
        ({"scheduler_certificate": "/x"}, "SCHEDULER_KEY"),
        ({"scheduler_certificate": "/x", "scheduler_key": "/x"}, "SCHEDULER_TLS"),
        ({"cors_origins": "*"}, "origins"),
        ({"cors_origins": "https://app.example/path"}, "origins"),
        ({"cors_origins": "https://a.example,https://a.example"}, "twice"),
    ],
)
def test_unsafe_settings_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GatewaySettings(**settings)  # type: ignore[arg-type]


def test_public_address_needs_keys_and_tls_or_a_trusted_network(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    GatewaySettings(host="0.0.0.0", trusted_network=True)
    GatewaySettings(
        host="0.0.0.0", require_keys=True, tls_certificate=str(files.certificate), tls_key=str(files.key)
    )
    GatewaySettings(scheduler_target="scheduler.example:7400", scheduler_tls=True)
    GatewaySettings(scheduler_target="scheduler.example:7400", allow_plaintext_keys=True)
