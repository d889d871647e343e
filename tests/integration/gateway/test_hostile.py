"""Verifies that hostile requests are refused with the envelope, and that none harms the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.errors import ApiError
from services.gateway.videos.bodies import File, parse_form, parse_json_object
from services.gateway.videos.fields import CreateFields, parse_fields
from services.gateway.videos.mapping import build_submission
from tests.integration.gateway.test_endpoints import read_error
from tests.integration.gateway.world import World, running_world

BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(headers: str, body: str = "x") -> str:
    return f"--{BOUNDARY}\r\n{headers}\r\n\r\n{body}\r\n"


def field(name: str, body: str = "x") -> str:
    return part(f'Content-Disposition: form-data; name="{name}"', body)


END = f"--{BOUNDARY}--\r\n"
FORMS = {
    "empty": "",
    "only the end": END,
    "without an end": field("prompt"),
    "another boundary": field("prompt").replace(BOUNDARY, "other") + END,
    "no name": part("Content-Disposition: form-data") + END,
    "no disposition": part("Content-Type: text/plain") + END,
    "a broken header": part("Content-Disposition form-data") + END,
    "a header of control characters": part("Content-\x01\x02: \x00") + END,
    "repeated field": field("prompt") + field("prompt") + END,
    "too many fields": "".join(field(f"f{number}") for number in range(200)) + END,
    "a large field": field("prompt", "x" * 100_000) + END,
    "too many files": "".join(
        part(f'Content-Disposition: form-data; name="f{n}"; filename="{n}"') for n in range(20)
    )
    + END,
    "a file of a name with a path": part(
        'Content-Disposition: form-data; name="prompt"; filename="../../etc/passwd"'
    )
    + END,
    "brackets that do not match": field("chorus[reuse") + field("prompt") + END,
    "a list inside a list": field("prompt") + field("metadata[][]") + END,
    "an object and a value": field("prompt") + field("chorus") + field("chorus[reuse]") + END,
    "an object that is no JSON": field("prompt") + field("metadata", "{") + END,
}


@pytest.mark.parametrize("name", FORMS)
async def test_hostile_form_is_refused(world: World, name: str) -> None:
    response = await world.http.post(
        "/v1/videos", content=FORMS[name].encode(), headers={"Content-Type": FORM}
    )
    read_error(response, 400)
    assert world.scheduler.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"prompt": "a"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "seed": NaN}',
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "chorus": ' + b'{"plan": ' * 50 + b"1" + b"}" * 51,
        b'{"prompt": "a", "metadata": ' + json.dumps(dict.fromkeys(map(str, range(129)), "")).encode() + b"}",
        b'{"prompt": "a", "chorus": {"webhook_events": [' + b"1," * 5_000 + b"1]}}",
        # Each name would be compared with each other one to find the repeated one.
        b'{"prompt": "a", ' + b"".join(b'"%d": 1, ' % number for number in range(400_000)) + b'"399999": 1}',
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_hostile_json_is_refused(world: World, body: bytes) -> None:
    response = await world.http.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    read_error(response, 400)
    assert world.scheduler.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds": 0},
        {"seconds": "1.5"},
        {"seconds": True},
        {"seconds": 10**9},
        {"size": "64X64"},
        {"size": "0x64"},
        {"size": "64x64x64"},
        {"size": "999999x1"},
        {"width": 64},
        {"size": "64x64", "width": 32, "height": 64},
        {"num_frames": 2**40},
        {"num_frames": 24, "seconds": 4},
        {"fps": 24},
        {"fps": float(10**9)},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": [1, 2]},
        {"num_inference_steps": 201},
        {"guidance_scale": 7.5},
        {"true_cfg_scale": 21},
        {"n": 17},
        {"n": 2, "num_outputs_per_prompt": 3},
        {"negative_prompt": "blur"},
        {"input_reference": {"image_url": "http://x"}},
        {"lora": {"path": "/etc"}},
        {"extra_params": {}},
        {"user": "x" * 300},
        {"user": "a", "metadata": {"user": "b"}},
        {"metadata": {f"k{number}": "v" for number in range(17)}},
        {"metadata": {"a": 1}},
        {"metadata": "text"},
        {"model": "x" * 200},
        {"model": "unknown"},
        {"chorus": {"reuse": "much"}},
        {"chorus": {"plan": "reuse_steps:x"}},
        {"chorus": {"plan": {"reuse_steps": 1, "depth": 2}}},
        {"chorus": {"plan": {"region_end": 2}}},
        {"chorus": {"deadline_seconds": 0}},
        {"chorus": {"webhook_url": ""}},
        {"chorus": {"webhook_url": "https://x", "webhook_events": ["begun"]}},
        {"chorus": {"webhook_events": ["failed"]}},
        {"chorus": []},
        {"unknown": 1},
        {"extra_body": {"prompt": "twice"}},
        {"extra_body": 3},
    ],
    ids=str,
)
async def test_field_that_cannot_be_honoured_is_named(world: World, fields: dict[str, Any]) -> None:
    response = await world.http.post("/v1/videos", json={"prompt": "a", **fields})
    error = read_error(response, 400)
    named = {violation["param"].split(".")[0] for violation in error["violations"]}
    assert named & ({*fields, "prompt"} | {"height", "width", "num_outputs_per_prompt"}), error
    assert error["param"] == error["violations"][0]["param"]
    assert world.scheduler.requests == []


async def test_every_field_at_fault_is_named_at_once(world: World) -> None:
    body = {"seconds": 0, "seed": -1, "lora": {}, "chorus": {"reuse": "much", "webhook_events": []}}
    error = read_error(await world.http.post("/v1/videos", json=body), 400)
    found = {each["param"]: each["code"] for each in error["violations"]}
    assert found == {
        "prompt": "missing_required_parameter",
        "seconds": "invalid_value",
        "seed": "invalid_value",
        "lora": "unsupported_parameter",
        "chorus.reuse": "invalid_value",
        "chorus.webhook_events": "invalid_value",
    }


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "\x01", "a" * 9_000])
async def test_other_types_of_bodies_are_refused(world: World, kind: str) -> None:
    headers = {"Content-Type": kind} if kind.isprintable() else {}
    response = await world.http.post("/v1/videos", content=b'{"prompt": "a"}', headers=headers)
    assert read_error(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode"])
async def test_form_of_a_charset_that_decodes_nothing_is_refused(world: World, charset: str) -> None:
    body = part('Content-Disposition: form-data; name="prompt"', "xn--\\..--\\") + END
    headers = {"Content-Type": f"{FORM}; charset={charset}"}
    response = await world.http.post("/v1/videos", content=body.encode(), headers=headers)
    assert read_error(response, 400)["code"] == "invalid_form"


async def test_form_without_a_boundary_is_refused(world: World) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    read_error(await world.http.post("/v1/videos", content=b"x", headers=headers), 400)


def build_head(length: str) -> bytes:
    """Returns the head of a creation whose body has this many bytes."""
    lines = (
        "POST /v1/videos HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_caller_that_goes_before_its_body_leaves_nothing(world: World) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(build_head("20") + b"{")
    await writer.drain()
    writer.transport.abort()
    assert (await world.create("still here"))["status"] == "completed"
    assert len(world.scheduler.requests) == 1


async def exchange(world: World, request: bytes) -> bytes:
    """Sends bytes on a connection of its own; returns all that the gateway answers until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_body_has_a_bound() -> None:
    limit = 64 * 1024
    async with running_world(max_body_bytes=limit) as world:
        body = json.dumps({"prompt": "x" * limit}).encode()
        headers = {"Content-Type": "application/json"}

        async def stream() -> Any:
            for _ in range(2):
                yield body

        error = read_error(await world.http.post("/v1/videos", content=body, headers=headers), 413)
        assert str(limit) in error["message"]
        read_error(await world.http.post("/v1/videos", content=stream(), headers=headers), 413)
        upload = {"input_reference": ("a.png", b"\0" * limit)}
        read_error(await world.http.post("/v1/videos", files=upload), 413)
        assert (await exchange(world, build_head("9" * 15))).startswith(b"HTTP/1.1 413")
        assert (await world.create("still here"))["status"] == "completed"


async def test_body_that_does_not_arrive_is_given_up() -> None:
    async with running_world(body_seconds=0.5) as world:
        assert (await exchange(world, build_head("20") + b"{")).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("earlier", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_connection_whose_request_does_not_arrive_is_closed(earlier: bytes) -> None:
    async with running_world(header_seconds=0.5) as world:
        unfinished = earlier + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"  # the headers never end
        with contextlib.suppress(ConnectionError):  # it is closed without an answer
            answer = await exchange(world, unfinished)
            assert answer.count(b"HTTP/1.1") == bool(earlier)


@pytest.mark.parametrize("request_bytes", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n"])
async def test_bytes_that_are_not_http_get_the_envelope(world: World, request_bytes: bytes) -> None:
    answer = await exchange(world, request_bytes + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_bytes_after_an_answer_that_are_not_http_close_the_connection(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    video = await world.create("slow")
    for path, seen in (("/nothing", b"unknown_url"), (f"/v1/videos/{video['id']}/events", b"event: ")):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        await asyncio.wait_for(reader.readuntil(seen), 10)
        writer.write(b"no chunk\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    await world.until_idle()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize(
    "identifier",
    [
        "gen-1",
        "video_",
        "video_..",
        "video_a%2Fb",
        "..%2F..%2Fetc%2Fpasswd",
        "video_%00",
        "video_%ff",
        "video_%F0%9F%98%80",
        "video_" + "a" * 200,
        "video_a%0d%0aX: y",
        "video_{a}",
        "video_a;b",
        "video_$(id)",
    ],
)
async def test_path_tricks_in_ids_find_nothing(world: World, identifier: str) -> None:
    await world.create()
    for method, suffix in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("DELETE", "")):
        response = await world.http.request(method, f"/v1/videos/{identifier}{suffix}")
        error = read_error(response, 404)
        assert error["code"] in ("not_found", "unknown_url")
        assert "\n" not in error["message"]
    response = await world.http.post(f"/v1/videos/{identifier}/remix", json={"prompt": "a"})
    read_error(response, 404)


async def test_number_of_requests_at_once_is_bounded() -> None:
    async with running_world(max_concurrent_calls=2) as world:
        video = await world.create("slow")
        url = f"/v1/videos/{video['id']}/events"
        async with world.http.stream("GET", url) as first, world.http.stream("GET", url) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            response = await world.http.get("/v1/models")
            assert read_error(response, 503)["code"] == "overloaded"
            assert "retry-after" in response.headers
            assert (await world.http.get("/health")).status_code == 200
        await world.until_idle()
        assert (await world.http.get("/v1/models")).status_code == 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def find_error(call: Callable[[], object]) -> ApiError | None:
    """Returns the refusal of a call; None if it returns."""
    try:
        call()
    except ApiError as error:
        return error
    return None


NAMES = st.sampled_from([*CreateFields.model_fields, "lora", "extra_body", "unknown"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(NAMES, JSON, max_size=6))
def test_any_values_are_accepted_or_refused_by_name(fields: dict[str, Any]) -> None:
    error = find_error(lambda: build_submission(parse_fields(CreateFields, fields), [], None))
    if error is not None:
        assert error.status == 400
        assert error.faults
        assert all(fault.param and fault.message for fault in error.faults)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=8) | st.builds(File, st.text(max_size=4)))))
def test_any_form_is_read_or_refused(items: list[tuple[str, str | File]]) -> None:
    error = find_error(lambda: parse_form(items))
    assert error is None or error.status == 400


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_json_is_read_or_refused(body: bytes) -> None:
    error = find_error(lambda: json.dumps(parse_json_object(body), ensure_ascii=False).encode())
    assert error is None or error.status == 400
