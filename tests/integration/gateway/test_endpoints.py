"""Verifies every endpoint over real sockets: what it sends to the scheduler, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from tests.integration.client.fakes import THUMBNAIL, VIDEO
from tests.integration.gateway.world import SIGMAS, World, running_world


def read_error(response: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the error of a response, which must be the envelope of the API."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert (
        {"message", "type", "param", "code"}
        <= set(error)
        <= {"message", "type", "param", "code", "violations"}
    )
    assert error["message"]
    return error


async def test_creation_states_every_field_to_the_scheduler(world: World) -> None:
    video = await world.create(
        "a red circle",
        model="large",
        seconds="4",
        size="64x32",
        fps=8,
        seed=7,
        num_inference_steps=3,
        user="ann",
        metadata={"project": "demo"},
        chorus={
            "reuse": "fast",
            "no_store": True,
            "max_reuse_steps": 2,
            "deadline_seconds": 90,
            "priority": "high",
            "step_previews": True,
        },
    )
    spec = world.scheduler.requests[0].spec
    assert (spec.prompt, spec.model_id, spec.seed, spec.steps) == ("a red circle", "large", 7, 3)
    assert (spec.shape.frames, spec.shape.width, spec.shape.height) == (32, 64, 32)
    assert spec.labels == {"project": "demo", "user": "ann"}
    assert (spec.reuse, spec.no_store, spec.max_reuse_steps) == (plan_pb2.REUSE_POLICY_FAST, True, 2)
    assert (spec.timeout.seconds, spec.priority) == (90, scheduler_pb2.PRIORITY_HIGH)
    assert spec.step_previews
    assert video["object"] == "video"
    assert video["id"] == "video_gen-1"
    assert (video["model"], video["prompt"], video["size"]) == ("large", "a red circle", "64x32")
    assert (video["status"], video["progress"], video["error"]) == ("completed", 100, None)
    assert video["created_at"] <= video["completed_at"]
    assert video["chorus"]["metadata"] == {"project": "demo", "user": "ann"}


async def test_report_is_part_of_the_video_until_it_is_withdrawn(world: World) -> None:
    made = await world.create()
    assert made["chorus"]["report"] is None
    path = f"/v1/videos/{made['id']}/report"
    answer = await world.http.post(path, json={"problem": "donor_visible", "comment": "a square is left"})
    assert answer.status_code == 200, answer.text
    report = answer.json()["chorus"]["report"]
    assert (report["problem"], report["comment"]) == ("donor_visible", "a square is left")
    assert report["created_at"] >= made["created_at"]
    read = (await world.http.get(f"/v1/videos/{made['id']}")).json()
    assert read["chorus"]["report"] == report
    replaced = (await world.http.post(path, json={"problem": "other"})).json()
    assert (replaced["chorus"]["report"]["problem"], replaced["chorus"]["report"]["comment"]) == ("other", "")
    for _ in range(2):
        assert (await world.http.delete(path)).json()["chorus"]["report"] is None


async def test_report_that_cannot_be_stored_says_why(world: World) -> None:
    made, slow = await world.create(), await world.create("slow circle")
    for body, param in (
        ({}, "problem"),
        ({"problem": "ugly"}, "problem"),
        ({"problem": "other", "comment": "x" * 1_001}, "comment"),
        ({"problem": "other", "stars": 1}, "stars"),
    ):
        response = await world.http.post(f"/v1/videos/{made['id']}/report", json=body)
        assert read_error(response, 400)["param"] == param
    response = await world.http.post(f"/v1/videos/{slow['id']}/report", json={"problem": "other"})
    assert read_error(response, 409)["code"] == "wrong_state"
    for method in ("POST", "DELETE"):
        response = await world.http.request(method, "/v1/videos/video_none/report", json={"problem": "other"})
        read_error(response, 404)


async def test_report_is_that_of_its_tenant(world: World) -> None:
    world.scheduler.keys = {"ann", "bob"}
    made = await world.http.post(
        "/v1/videos", json={"prompt": "a red circle"}, headers={"Authorization": "Bearer ann"}
    )
    path = f"/v1/videos/{made.json()['id']}/report"
    bob = {"Authorization": "Bearer bob"}
    read_error(await world.http.post(path, json={"problem": "other"}, headers=bob), 404)
    read_error(await world.http.delete(path, headers=bob), 404)
    read_error(await world.http.post(path, json={"problem": "other"}), 401)


async def test_list_is_filtered(world: World) -> None:
    small = await world.create(model="small")
    large = await world.create("repeat a circle", model="large")
    await world.http.post(f"/v1/videos/{large['id']}/report", json={"problem": "other"})

    async def find(**filters: str) -> list[str]:
        response = await world.http.get("/v1/videos", params={f"chorus[{k}]": v for k, v in filters.items()})
        assert response.status_code == 200, response.text
        return [video["id"] for video in response.json()["data"]]

    assert await find() == [large["id"], small["id"]]
    assert await find(model="small") == [small["id"]]
    assert await find(decision="exact") == [large["id"]]
    assert await find(decision="hit", model="large") == []
    assert await find(reported="true") == [large["id"]]
    assert await find(reported="false") == [large["id"], small["id"]]
    assert await find(edit="colour") == []
    assert world.scheduler.lists[-1].edit_kind == "colour"
    for name, value in (("decision", "maybe"), ("reported", "maybe"), ("mood", "blue")):
        response = await world.http.get("/v1/videos", params={f"chorus[{name}]": value})
        assert read_error(response, 400)["param"] == f"chorus[{name}]"


async def test_form_and_json_are_the_same_request(world: World) -> None:
    fields = {"prompt": "a red circle", "seconds": "2", "seed": "7", "user": "ann"}
    nested = {"chorus[reuse]": "fast", "chorus[plan][reuse_steps]": "2", "metadata[project]": "demo"}
    form = {name: (None, value) for name, value in {**fields, **nested}.items()}
    texts = {
        "chorus": json.dumps({"reuse": "fast", "plan": "reuse_steps:2"}),
        "metadata": '{"project": "demo"}',
    }
    second = {name: (None, value) for name, value in {**fields, **texts}.items()}
    body = {
        **fields,
        "extra_body": {
            "chorus": {"reuse": "fast", "plan": {"reuse_steps": 2}},
            "metadata": {"project": "demo"},
        },
    }
    for response in (
        await world.http.post("/v1/videos", files=form),
        await world.http.post("/v1/videos", files=second),
        await world.http.post("/v1/videos", json=body),
    ):
        assert response.status_code == 200, response.text
    first, *others = [request.spec for request in world.scheduler.requests]
    assert first.explicit_reuse.reuse_steps == 2
    assert others == [first, first]


async def test_length_is_the_nearest_that_the_model_allows(world: World) -> None:
    video = await world.create(seconds="12")
    assert world.scheduler.requests[0].spec.shape.frames == 64
    assert video["seconds"] == "1", "that of the file, once it is there"
    assert "12 was requested" in video["chorus"]["warnings"][0]
    running = await world.create("slow", seconds=4)
    assert (running["seconds"], running["chorus"]["warnings"]) == ("4", [])


async def test_several_outputs_are_one_request(world: World) -> None:
    video = await world.create(n=3, seed=5)
    assert world.scheduler.requests[0].outputs == 3
    assert video["chorus"]["outputs"] == ["video_gen-1", "video_gen-2", "video_gen-3"]
    assert (video["chorus"]["output_index"], video["chorus"]["output_count"]) == (1, 3)


async def test_same_key_is_the_same_video(world: World) -> None:
    async def create(prompt: str) -> httpx.Response:
        headers = {"Idempotency-Key": "order-1"}
        return await world.http.post("/v1/videos", json={"prompt": prompt}, headers=headers)

    first, second = await create("a"), await create("a")
    assert first.json()["id"] == second.json()["id"]
    error = read_error(await create("b"), 409)
    assert (error["code"], error["type"]) == ("idempotency_key_reused", "invalid_request_error")
    response = await world.http.post("/v1/videos", json={"prompt": "a"}, headers={"Idempotency-Key": "a b"})
    assert read_error(response, 400)["param"] == "Idempotency-Key"


async def test_refusals_of_the_scheduler_name_the_fields_of_the_request(world: World) -> None:
    error = read_error(await world.http.post("/v1/videos", json={"prompt": " ", "num_frames": 65}), 400)
    assert [each["param"] for each in error["violations"]] == ["prompt", "num_frames"]


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        (ChorusError(errors.QUEUE_FULL, "full", retry_after=12.2), 429, "rate_limit_error", "queue_full"),
        (ChorusError(errors.RATE_LIMITED, "slow down"), 429, "rate_limit_error", "rate_limited"),
        (ChorusError(errors.PERMISSION_DENIED, "no"), 403, "permission_error", "permission_denied"),
        (errors.unavailable("denoiser", "gone"), 503, "server_error", "dependency_unavailable"),
        (ChorusError(errors.INTERNAL, "a bug"), 500, "server_error", "internal"),
    ],
)
async def test_faults_of_the_scheduler_have_the_envelope(
    world: World, fault: ChorusError, status: int, kind: str, code: str
) -> None:
    world.scheduler.submit_fault = fault
    response = await world.http.post("/v1/videos", json={"prompt": "a"})
    error = read_error(response, status)
    assert (error["type"], error["code"]) == (kind, code)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    if fault.retry_after == 12.2:
        assert response.headers["retry-after"] == "13"


async def test_state_of_a_video_that_is_under_way(world: World) -> None:
    created = await world.create("slow one")
    response = await world.http.get(f"/v1/videos/{created['id']}")
    video = response.json()
    assert video["status"] == "in_progress"
    assert video["progress"] == 71, "3 of 4 steps, and then decoding"
    assert 250 <= int(response.headers["openai-poll-after-ms"]) <= 10_000
    failed = await world.create("fail please")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "internal")
    assert "NaN" in failed["error"]["message"]
    world.scheduler.generations["gen-1"].state = scheduler_pb2.GENERATION_STATE_CANCELLED
    cancelled = (await world.http.get(f"/v1/videos/{created['id']}")).json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")


async def test_lists_in_both_orders_page_by_page(world: World) -> None:
    ids = [(await world.create(f"number {number}"))["id"] for number in range(5)]
    for order, expected in (("desc", ids[::-1]), ("asc", ids)):
        listed: list[str] = []
        params: dict[str, Any] = {"limit": 2, "order": order}
        while True:
            page = (await world.http.get("/v1/videos", params=params)).json()
            assert page["object"] == "list"
            assert len(page["data"]) <= 2
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            listed += [video["id"] for video in page["data"]]
            if not page["has_more"]:
                break
            params["after"] = page["last_id"]
        assert listed == expected
    assert len((await world.http.get("/v1/videos")).json()["data"]) == 5
    empty = (await world.http.get("/v1/videos", params={"after": ids[0]})).json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("limit=0", 400, "limit"),
        ("limit=101", 400, "limit"),
        ("limit=x", 400, "limit"),
        ("order=up", 400, "order"),
        ("after=video_unknown", 404, "after"),
        ("after=%00", 404, "after"),
        ("before=x", 400, "before"),
    ],
)
async def test_invalid_lists_are_refused_by_name(world: World, query: str, status: int, param: str) -> None:
    assert read_error(await world.http.get(f"/v1/videos?{query}"), status)["param"] == param


async def test_content_is_the_file_with_its_digest(world: World) -> None:
    video = await world.create()
    url = f"/v1/videos/{video['id']}/content"
    response = await world.http.get(url, headers={"Accept": "application/binary"})
    assert (response.status_code, response.content) == (200, VIDEO)
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["content-length"] == str(len(VIDEO))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == 'attachment; filename="video_gen-1.mp4"'
    etag = response.headers["etag"]
    assert etag == f'"{world.scheduler.generations["gen-1"].video.digest}"'
    cached = await world.http.get(url, headers={"If-None-Match": f'"x", W/{etag}'})
    assert (cached.status_code, cached.content, cached.headers["etag"]) == (304, b"", etag)
    repeated = await world.http.get(url, params={"video_id": video["id"]})
    assert repeated.status_code == 200
    assert read_error(await world.http.get(url, params={"video_id": "other"}), 400)["param"] == "video_id"
    thumbnail = await world.http.get(url, params={"variant": "thumbnail"})
    assert (thumbnail.content, thumbnail.headers["content-type"]) == (THUMBNAIL, "image/jpeg")
    assert read_error(await world.http.get(url, params={"variant": "spritesheet"}), 400)["param"] == "variant"


@pytest.mark.parametrize(
    "headers", [{}, {"Range": "bytes=2-5"}, {"If-None-Match": "*"}, {"Range": "bytes=999-"}]
)
@pytest.mark.parametrize("variant", ["video", "thumbnail"])
async def test_head_of_content_is_that_of_the_file(
    world: World, headers: dict[str, str], variant: str
) -> None:
    video = await world.create()
    url = f"/v1/videos/{video['id']}/content?variant={variant}"
    whole = await world.http.get(url, headers=headers)
    head = await world.http.head(url, headers=headers)
    changing = {"date", "x-request-id"}
    assert head.status_code == whole.status_code
    assert {**head.headers, **dict.fromkeys(changing, "")} == {**whole.headers, **dict.fromkeys(changing, "")}
    assert head.content == b""


async def test_content_is_sent_in_ranges(world: World) -> None:
    video = await world.create()
    url, size = f"/v1/videos/{video['id']}/content", len(VIDEO)
    for header, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, size),
        ("bytes=-10", size - 10, size),
        ("bytes=100-400000", 100, 400_001),
        (f"bytes=7-{size + 50}", 7, size),
    ):
        response = await world.http.get(url, headers={"Range": header})
        assert (response.status_code, response.content) == (206, VIDEO[begin:end]), header
        assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for header in ("bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "nonsense"):
        assert (await world.http.get(url, headers={"Range": header})).status_code == 200, header
    for header in (f"bytes={size}-", "bytes=-0"):
        response = await world.http.get(url, headers={"Range": header})
        assert read_error(response, 416)["code"] == "range_not_satisfiable"
        assert response.headers["content-range"] == f"bytes */{size}"
    stale = await world.http.get(url, headers={"Range": "bytes=0-0", "If-Range": '"old"'})
    assert stale.status_code == 200


async def test_file_that_is_not_there_is_explained(world: World) -> None:
    running, failed, done = [await world.create(prompt) for prompt in ("slow", "fail", "done")]
    response = await world.http.get(f"/v1/videos/{running['id']}/content")
    assert read_error(response, 409)["code"] == "video_not_ready"
    assert int(response.headers["retry-after"]) >= 1
    error = read_error(await world.http.get(f"/v1/videos/{failed['id']}/content"), 422)
    assert error["code"] == "video_failed"
    assert "NaN" in error["message"]
    world.scheduler.video_fault = ChorusError(errors.BLOB_CORRUPT, "the video is missing")
    error = read_error(await world.http.get(f"/v1/videos/{done['id']}/content"), 410)
    assert error["code"] == "video_expired"
    warned = await world.create("warn")
    response = await world.http.get(f"/v1/videos/{warned['id']}/content?variant=thumbnail")
    assert read_error(response, 404)["code"] == "not_found"


async def test_downloads_are_redirected_if_the_server_is_set_so() -> None:
    async with running_world(redirect_downloads=True) as world:
        video = await world.create()
        assert video["url"] == "http://store/gen-1?signature"
        response = await world.http.get(f"/v1/videos/{video['id']}/content")
        assert (response.status_code, response.headers["location"]) == (302, video["url"])
        world.scheduler.urls = False
        error = read_error(await world.http.get(f"/v1/videos/{video['id']}/content"), 409)
        assert error["code"] == "wrong_state"


async def test_list_survives_a_deletion_between_its_calls() -> None:
    async with running_world(redirect_downloads=True) as world:
        first, second = await world.create("one"), await world.create("two")
        world.scheduler.without_url.add("gen-1")
        videos = (await world.http.get("/v1/videos", params={"order": "asc"})).json()["data"]
        assert [video["id"] for video in videos] == [first["id"], second["id"]]
        assert [video["url"] for video in videos] == [None, second["url"]]


async def test_deletion_cancels_first(world: World) -> None:
    for prompt in ("done", "slow"):
        video = await world.create(prompt)
        response = await world.http.delete(f"/v1/videos/{video['id']}")
        assert response.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
        for path in ("", "/content", "/events"):
            read_error(await world.http.get(f"/v1/videos/{video['id']}{path}"), 404)
        read_error(await world.http.delete(f"/v1/videos/{video['id']}"), 404)


async def test_remix_and_edit_name_their_donor(world: World) -> None:
    source = await world.create("a red circle", model="large", size="64x32", num_frames=24, seed=9)
    identifier = source["id"]
    for path, body in (
        (f"/v1/videos/{identifier}/remix", {"prompt": "a blue circle"}),
        ("/v1/videos/edits", {"prompt": "a blue circle", "video": {"id": identifier}}),
    ):
        response = await world.http.post(path, json=body)
        assert response.status_code == 200, response.text
        video = response.json()
        spec = world.scheduler.requests[-1].spec
        assert (spec.donor_generation_id, spec.model_id, spec.prompt) == ("gen-1", "large", "a blue circle")
        assert (spec.shape.frames, spec.shape.width, spec.shape.height) == (24, 64, 32)
        assert tuple(spec.schedule.sigmas) == pytest.approx(SIGMAS)
        assert not spec.HasField("seed")
        assert video["remixed_from_video_id"] == identifier
    form: dict[str, Any] = {"prompt": (None, "a blue circle"), "video[id]": (None, identifier)}
    assert (await world.http.post("/v1/videos/edits", files=form)).status_code == 200
    upload: dict[str, Any] = {"prompt": (None, "a"), "video": ("a.mp4", b"\0\1", "video/mp4")}
    error = read_error(await world.http.post("/v1/videos/edits", files=upload), 400)
    assert (error["param"], error["code"]) == ("video", "unsupported_parameter")
    unknown = {"prompt": "a", "video": {"id": "video_unknown"}}
    assert read_error(await world.http.post("/v1/videos/edits", json=unknown), 404)["param"] == "video"
    for path in ("extensions", "characters"):
        error = read_error(await world.http.post(f"/v1/videos/{path}", json={"prompt": "a"}), 404)
        assert error["code"] == "unsupported_endpoint"


async def test_named_donor_is_passed_on(world: World) -> None:
    source = await world.create()
    await world.create("another", chorus={"donor": source["id"]})
    assert world.scheduler.requests[-1].spec.donor_generation_id == "gen-1"
    response = await world.http.post("/v1/videos", json={"prompt": "a", "chorus": {"donor": "gen-1"}})
    assert read_error(response, 400)["param"] == "chorus.donor"


async def test_models_and_their_bounds(world: World) -> None:
    listed = (await world.http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["small", "large"]
    model = (await world.http.get("/v1/models/large")).json()
    assert model == listed["data"][1]
    assert model["chorus"]["frames"] == {"min": 8, "max": 64, "multiple": 8}
    assert (model["chorus"]["frames_per_second"], model["chorus"]["default_size"]) == (8, "64x64")
    assert read_error(await world.http.get("/v1/models/huge"), 404)["code"] == "model_not_found"


async def test_sync_answers_with_the_file(world: World) -> None:
    response = await world.http.post("/v1/videos/sync", json={"prompt": "a red circle"})
    assert (response.status_code, response.content) == (200, VIDEO)
    assert response.headers["chorus-video-id"] == "video_gen-1"
    failed = await world.http.post("/v1/videos/sync", json={"prompt": "fail"})
    assert read_error(failed, 422)["code"] == "video_failed"
    several = await world.http.post("/v1/videos/sync", json={"prompt": "a", "n": 2})
    assert read_error(several, 400)["param"] == "n"


async def test_sync_has_a_bound_and_cancels() -> None:
    async with running_world(sync_seconds=1) as world:
        response = await world.http.post("/v1/videos/sync", json={"prompt": "slow"})
        assert read_error(response, 503)["code"] == "deadline_exceeded"
        assert world.scheduler.generations["gen-1"].state == scheduler_pb2.GENERATION_STATE_CANCELLED


async def test_unknown_urls_and_methods_have_the_envelope(world: World) -> None:
    for path in ("/v1", "/v1/video", "/v1/videos/a/b/c", "/v1/videos/", "/docs"):
        assert read_error(await world.http.get(path), 404)["code"] == "unknown_url"
    response = await world.http.put("/v1/videos", json={})
    assert read_error(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"]


async def test_unavailable_services_are_reported_with_a_delay(world: World) -> None:
    world.scheduler.unavailable = True
    response = await world.http.get("/v1/videos/video_a")
    assert "denoiser" in read_error(response, 503)["message"]
    assert response.headers["retry-after"] == "7"
