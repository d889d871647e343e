"""Verifies every page of the console over a real socket: what it shows, and what its forms do."""

from __future__ import annotations

import html
import re
import time
from collections.abc import AsyncIterator

import pytest
from chorus.scheduler.v1 import scheduler_pb2

from tests.integration.gateway.console.world import Console, read_text, running_console


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with running_console(console_trace_url="https://traces.example/{trace_id}") as running:
        yield running


async def test_start_of_the_gateway_leads_to_the_studio(console: Console) -> None:
    for path in ("/", "/console"):
        response = await console.http.get(path)
        assert (response.status_code, response.headers["location"]) == (307, "/console/")
    assert "Describe a video" in await console.open()


async def test_preview_shows_the_plan_and_submits_nothing(console: Console) -> None:
    await console.make("a large red circle")
    response = await console.send("/preview", prompt="a large blue circle")
    text = read_text(response.text)
    assert "Takes 3 of 8 steps from “a large red circle” (similarity 0.93, edit: colour)" in text
    assert "1.90 s saved, if the prediction holds" in text
    assert "<del>red</del>" in response.text
    assert "<ins>blue</ins>" in response.text
    assert "/console/videos/video_gen-1/content?variant=thumbnail" in response.text
    assert "less similar" in text
    assert len(console.scheduler.requests) == 1


async def test_form_of_the_studio_states_every_field(console: Console) -> None:
    await console.make("a red circle")
    path = await console.make(
        "a blue circle",
        model="large",
        reuse="fast",
        seed="7",
        width="32",
        priority="high",
        donor="gen-1",
        labels="project=demo",
        request_id="once",
    )
    spec = console.scheduler.requests[1].spec
    assert (spec.prompt, spec.model_id, spec.seed, spec.donor_generation_id) == (
        "a blue circle",
        "large",
        7,
        "gen-1",
    )
    assert (spec.shape.width, spec.shape.height, spec.shape.frames) == (32, 64, 16)
    assert spec.labels == {"project": "demo"}
    assert spec.priority == scheduler_pb2.PRIORITY_HIGH
    assert await console.make("a blue circle", request_id="once") == path


async def test_form_that_is_refused_keeps_its_fields(console: Console) -> None:
    response = await console.send("/submit", prompt="a circle", frames="96", height="64", width="64")
    assert response.status_code == 422
    assert 'id="fault-frames"' in response.text
    assert 'aria-invalid="true" aria-describedby="fault-frames"' in response.text
    assert 'value="96"' in response.text
    response = await console.send("/submit", prompt="a circle", seed="seven")
    assert "must be a whole number, not 'seven'" in read_text(response.text)


async def test_video_page_tells_what_was_reused(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large blue circle")
    page = await console.open(path)
    text = read_text(page)
    assert "Took 3 of 8 steps from “a large red circle” (similarity 0.93, edit: colour)" in text
    assert "It saved 1.74 s." in text
    assert "/console/videos/video_gen-1/content" in page
    assert "<del>red</del>" in page
    assert "<ins>blue</ins>" in page
    assert len(re.findall(r'class="step reused"', page)) == 3
    assert len(re.findall(r'class="step region"', page)) == 3
    assert len(re.findall(r'class="step full"', page)) == 2
    assert page.count("<path d=") == 4  # one mask of three steps, for each part of the time
    assert "1.90 s" in text
    assert "https://traces.example/" + "5" * 32 in page
    assert "a large gold square moving up" in text
    assert "step_completed" in text


async def test_hit_is_compared_with_its_full_computation_once_there_is_one(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large blue circle", seed="7")
    page = await console.open(path)
    assert "data-wipe" not in page
    assert "There is no full computation to compare it with: “Compute in full” makes one." in read_text(page)
    form = await console.open(f"/?video={path.rpartition('/')[2]}&change=full")
    fields = {
        name: re.search(rf'name="{name}"[^>]* value="([^"]*)"', form)[1]  # type: ignore[index]
        for name in ("seed", "frames", "height", "width", "steps")
    }
    full = await console.make("a large blue circle", reuse="off", **fields)
    page = await console.open(path)
    assert f'<video src="/console{full}/content"' in page
    assert 'id="wipe" type="range"' in page
    assert "There is no full computation" not in read_text(page)
    request = console.scheduler.lists[-1]
    assert (request.prompt_contains, request.state) == (
        "a large blue circle",
        scheduler_pb2.GENERATION_STATE_SUCCEEDED,
    )
    assert "data-wipe" not in await console.open(full)


async def test_computed_steps_have_their_pictures(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large gold circle", step_previews="yes")
    assert console.scheduler.requests[-1].spec.step_previews
    page = await console.open(path)
    pictures = re.findall(
        r'<img src="(/console/videos/[^"]+/steps/(\d)/preview\?after=\d+)"[^>]*alt="([^"]*)"', page
    )
    assert [(int(number), alt) for _, number, alt in pictures] == [
        (number, f"What step {number} predicts") for number in range(4, 9)
    ]
    assert "&#34;preview&#34;" not in page, "the raw events leave pictures out"
    contents = set()
    for address, number, _ in pictures:
        picture = await console.http.get(address)
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
        # Without the place it is found as well.
        assert (await console.http.get(f"/console{path}/steps/{number}/preview")).content == picture.content
        contents.add(picture.content)
    assert len(contents) == 5
    events = await console.http.get(f"/console{path}/events")
    assert '"preview"' not in events.text


async def test_steps_without_pictures_show_none(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large gold circle")
    assert not console.scheduler.requests[-1].spec.step_previews
    assert "/preview" not in (await console.open(path)).partition("The 8 steps of this video")[2]
    for missing in (
        "/steps/1/preview",
        "/steps/5/preview",
        "/steps/5/preview?after=999",
        "/steps/99/preview",
    ):
        response = await console.http.get(f"/console{path}{missing}")
        assert (response.status_code, "has no picture" in response.text) == (404, True)
    for refused in ("/steps/0/preview", "/steps/x/preview", "/steps/5/preview?after=-1"):
        assert (await console.http.get(f"/console{path}{refused}")).status_code == 400


async def test_studio_asks_for_pictures_unless_told_otherwise(console: Console) -> None:
    box = re.compile(r'name="step_previews" type="checkbox" value="yes"( checked)?>')
    assert box.search(await console.open())[1]  # type: ignore[index]
    refused = await console.send("/submit", prompt="a circle", seed="seven")
    assert box.search(refused.text)[1] is None  # type: ignore[index]


async def test_deleted_donor_leaves_a_page(console: Console) -> None:
    await console.make("a red circle")
    path = await console.make("a blue circle")
    del console.scheduler.generations["gen-1"]
    assert "The donor's video was deleted" in read_text(await console.open(path))


async def test_failed_video_shows_its_cause_and_no_player(console: Console) -> None:
    page = await console.open(await console.make("fail a circle"))
    assert "Failed: the model produced NaN at step 3" in read_text(page)
    assert "<video" not in page


async def test_running_video_follows_its_events_and_is_cancelled(console: Console) -> None:
    path = await console.make("slow circle")
    page = await console.open(path)
    assert f'data-events="/console{path}/events"' in page
    assert "step 1 of 8" in read_text(page)
    response = await console.send(f"{path}/cancel")
    assert (response.status_code, response.headers["location"]) == (303, f"/console{path}")
    assert console.find(path).state == scheduler_pb2.GENERATION_STATE_CANCELLED
    assert "Cancelled before it was complete." in read_text(await console.open(path))
    events = await console.http.get(f"/console{path}/events")
    assert [line for line in events.text.splitlines() if line.startswith("event:")] == [
        "event: queued",
        "event: planned",
        "event: started",
        "event: step_completed",
        "event: cancelled",
    ]


async def test_ended_video_can_be_deleted(console: Console) -> None:
    path = await console.make("slow circle")
    assert "Delete this video" not in await console.open(path), "it has not ended"
    assert (await console.send(f"{path}/delete")).status_code == 409
    await console.send(f"{path}/cancel")
    assert "Delete this video" in await console.open(path)
    response = await console.send(f"{path}/delete")
    assert (response.status_code, response.headers["location"]) == (303, "/console/gallery")
    assert (await console.http.get(f"/console{path}")).status_code == 404


async def test_files_come_in_ranges_and_never_from_another_host() -> None:
    async with running_console(redirect_downloads=True) as console:
        path = await console.make("a red circle")
        whole = await console.http.get(f"/console{path}/content")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        part = await console.http.get(f"/console{path}/content", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        picture = await console.http.get(f"/console{path}/content?variant=thumbnail")
        assert picture.headers["content-type"] == "image/jpeg"


async def test_gallery_pages_and_filters(console: Console) -> None:
    for number in range(26):
        await console.make(f"repeat {number}" if number else "a red circle", labels=f"take={number}")
    first = await console.open("/gallery")
    assert first.count('<article class="tile">') == 24
    older = re.search(r'href="(/console/gallery\?after=[^"]+)"', first)
    assert older is not None
    second = (await console.http.get(html.unescape(older[1]))).text
    assert second.count('<article class="tile">') == 2
    assert "computed in full" in second
    labelled = await console.open("/gallery?label=take%3D3")
    assert labelled.count('<article class="tile">') == 1
    assert "exact" in labelled
    assert "saved 4.64 s" in labelled
    await console.open("/gallery?text=Circle&state=succeeded")
    request = console.scheduler.lists[-1]
    assert (request.prompt_contains, request.state) == ("Circle", scheduler_pb2.GENERATION_STATE_SUCCEEDED)
    refused = await console.http.get("/console/gallery?label=novalue&state=lost")
    assert refused.status_code == 422
    assert "must be key=value, not 'novalue'" in read_text(refused.text)


async def test_gallery_filters_by_what_was_reused_and_its_links_keep_the_filters(console: Console) -> None:
    await console.make("a red circle", model="small")
    for number in range(26):
        await console.make(f"repeat {number}", model="large")
    path = await console.make("a blue circle", model="large")
    await console.send(f"{path}/report", problem="broken_motion")
    exact = await console.open("/gallery?decision=exact&model=large&text=&edit=")
    assert exact.count('<article class="tile">') == 24
    assert re.search(r'<option value="exact" selected>', exact)
    older = re.search(r'href="(/console/gallery\?[^"]+after=[^"]+)" rel="next"', exact)
    assert older is not None
    second = (await console.http.get(html.unescape(older[1]))).text
    assert second.count('<article class="tile">') == 2
    assert '<a href="/console/gallery?model=large&amp;decision=exact">Newest</a>' in second
    reported = await console.open("/gallery?reported=yes")
    assert reported.count('<article class="tile">') == 1
    assert 'title="the motion is broken">reported</span>' in reported
    edited = await console.open("/gallery?edit=colour&model=gone")
    assert "Nothing matches." in edited
    assert '<option value="gone" selected>' in edited
    assert console.scheduler.lists[-1].edit_kind == "colour"
    refused = await console.http.get("/console/gallery?decision=maybe&edit=mauve&reported=no")
    assert refused.status_code == 422
    text = read_text(refused.text)
    for name in ("Reuse", "Edit", "Report"):
        assert f"{name}: must be one of" in text


async def test_report_is_made_replaced_and_withdrawn_by_a_form(console: Console) -> None:
    await console.make("a red circle")
    path = await console.make("a blue circle")
    assert "Looks wrong?" in await console.open(path)
    response = await console.send(
        f"{path}/report", problem="donor_visible", comment="red <b>edge</b>\r\nleft "
    )
    assert (response.status_code, response.headers["location"]) == (303, f"/console{path}#report")
    report = console.find(path).report
    assert report.comment == "red <b>edge</b> left", "one line"
    page = await console.open(path)
    assert "Reported: something of the donor is left – “red &lt;b&gt;edge&lt;/b&gt; left”." in page
    assert '<option value="donor_visible" selected>' in page
    await console.send(f"{path}/report", problem="other", comment="")
    assert console.find(path).report.problem == scheduler_pb2.REPORTED_PROBLEM_OTHER
    await console.send(f"{path}/report", problem="other", withdraw="yes")
    assert not console.find(path).HasField("report")
    refused = await console.http.post(f"/console{path}/report", data={"problem": "other"})
    assert refused.status_code == 403, "without the token of the session"
    assert not console.find(path).HasField("report")
    running = await console.make("slow circle")
    assert "Looks wrong?" not in await console.open(running)
    assert (await console.send(f"{running}/report", problem="other")).status_code == 409


async def test_queue_shows_classes_and_moves(console: Console) -> None:
    first, second = await console.make("queued circle"), await console.make("queued square")
    in_a_minute = console.find(second)
    in_a_minute.queue_position = 2
    in_a_minute.predicted_start_time.FromSeconds(int(time.time()) + 3_661)
    page = await console.open("/queue")
    text = read_text(page)
    assert "queued circle normal, start unknown small normal unknown" in text
    assert "small normal in about 61 min" in text
    assert page.count(">Move up</button>") == page.count(">Move down</button>") == 2
    response = await console.send(f"{second}/priority", priority="high")
    assert (response.status_code, response.headers["location"]) == (303, "/console/queue")
    assert console.find(second).spec.priority == scheduler_pb2.PRIORITY_HIGH
    page = await console.open("/queue")
    assert (page.count(">Move up</button>"), page.count(">Move down</button>")) == (1, 2)
    refused = await console.http.post(f"/console{first}/priority", data={"priority": "high"})
    assert refused.status_code == 403
    assert (await console.send(f"{first}/priority", priority="urgent")).status_code == 400
    console.find(first).state = scheduler_pb2.GENERATION_STATE_RUNNING
    late = await console.send(f"{first}/priority", priority="high")
    assert late.headers["location"] == "/console/queue", "it has started meanwhile: the page shows it"


async def test_family_shows_donor_and_descendants(console: Console) -> None:
    await console.make("a red circle")
    middle = await console.make("a blue circle")
    await console.make("a gold circle")
    await console.make("a stranger", reuse="off")
    page = await console.open(f"{middle}/family")
    text = read_text(page)
    assert (
        text.index("a red circle")
        < text.index("a blue circle", text.index("Family"))
        < text.index("a gold circle")
    )
    assert "a stranger" not in text
    assert page.count('aria-current="true"') == 1


async def test_queue_lists_and_cancels(console: Console) -> None:
    running, waiting = await console.make("slow circle"), await console.make("queued square")
    text = read_text(await console.open("/queue"))
    assert "Running: 1" in text
    assert "Waiting: 1" in text
    response = await console.send(f"{waiting}/cancel", back="queue")
    assert response.headers["location"] == "/console/queue"
    assert console.find(waiting).state == scheduler_pb2.GENERATION_STATE_CANCELLED
    assert console.find(running).state == scheduler_pb2.GENERATION_STATE_RUNNING
    assert "Nothing waits." in await console.open("/queue")


async def test_purge_is_shown_before_it_is_done(console: Console) -> None:
    assert "Searches that found one 45%" in read_text(await console.open("/cache"))
    shown = await console.send("/cache/purge", model="shapes", older_than="7d")
    assert "3 entries, 1.0 kB , would be dropped; model shapes; older than 7d." in read_text(shown.text)
    done = await console.send("/cache/purge", model="shapes", older_than="7d", confirmed="yes")
    assert "3 entries, 1.0 kB, were dropped" in read_text(done.text)
    assert [
        (each.model_id, each.older_than.seconds, each.validate_only) for each in console.cache.purges
    ] == [
        ("shapes", 604_800, True),
        ("shapes", 604_800, False),
    ]


async def test_purge_of_everything_must_be_asked_for(console: Console) -> None:
    refused = await console.send("/cache/purge", confirmed="yes")
    assert refused.status_code == 422
    assert "Name a model or an age" in refused.text
    assert "90x" in (await console.send("/cache/purge", older_than="90x")).text
    assert console.cache.purges == []
    await console.send("/cache/purge", everything="yes")
    assert [(each.all, each.validate_only) for each in console.cache.purges] == [(True, True)]


async def test_cache_page_without_an_address_says_what_to_set() -> None:
    async with running_console(with_cache=False) as console:
        assert "CHORUS_GATEWAY_CONSOLE_CACHE_TARGET" in await console.open("/cache")
        assert (await console.send("/cache/purge", everything="yes")).status_code == 403


async def test_health_shows_a_denoiser_that_is_not_there(console: Console) -> None:
    await console.make("a red circle")
    console.scheduler.starting = True
    text = read_text(await console.open("/health"))
    assert "denoiser is not available: it is still starting" in text
    assert "Complete 1" in text


async def test_errors_are_pages(console: Console) -> None:
    for path, status in (("/nowhere", 404), ("/videos/video_gen-99", 404), ("/videos/x", 404)):
        response = await console.http.get(f"/console{path}")
        assert response.status_code == status
        assert "<h1>Not found</h1>" in response.text
    console.scheduler.unavailable = True
    response = await console.http.get("/console/gallery")
    assert response.status_code == 503
    assert "<h1>Not available</h1>" in response.text


async def test_gateway_may_be_without_a_console() -> None:
    async with running_console(console=False) as console:
        for path in ("/", "/console/"):
            response = await console.http.get(path)
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "unknown_url"
