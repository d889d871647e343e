"""A walk through the console in front of the real services, from the first prompt to an empty cache."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from tests.integration.client.up import Up
from tests.integration.gateway.console.browser import (
    DEADLINE_SECONDS,
    Inspection,
    Observed,
    browsing,
    inspect_page,
    until,
)

FIRST: Final = "a large red circle moving right on a navy background"
EDITED: Final = "a large green circle moving right on a navy background"
REMIXED: Final = "a large blue circle moving right on a navy background"
LONG: Final = "a small yellow square moving up on a black background"
QUEUED: Final = "a small white square moving down on a black background"
# A plan with a second stage, which the planner does not choose on the shipped model.
REGION: Final[Mapping[str, Any]] = {
    "reuse_steps": 1,
    "region_end": 3,
    "region": "probe",
    "threshold": 0.05,
    "budget": 0.9,
}
_STEPS, _LONG_STEPS = 4, 50
_IN_FULL: Final = re.compile(rf"all {_STEPS} steps will be computed")
_TIMES: Final = "[...document.querySelectorAll('.screen video')].map((each) => each.currentTime)"
_READY: Final = "[...document.querySelectorAll('.screen video')].every((each) => each.readyState >= 2)"


@dataclass(frozen=True)
class Deployed:
    """A running deployment.

    Attributes:
        url: address of its gateway.
        denoiser: process id of its denoiser.
    """

    url: str
    denoiser: int


@dataclass
class Walk:
    """The parts of the walk, in the order of their definition.

    Attributes:
        inspections: the pages, as they were met.
    """

    deployed: Deployed
    seen: Observed
    http: httpx.AsyncClient
    inspections: list[Inspection] = field(default_factory=list)

    @property
    def page(self) -> Page:
        return self.seen.page

    @property
    def plan(self) -> Locator:
        return self.page.get_by_role("region", name="The plan")

    async def inspect(self, name: str) -> None:
        self.inspections.append(await inspect_page(self.page, name))

    async def make_in_studio(
        self, name: str, prompt: str, plan: re.Pattern[str], reuse: str = "", **fields: str
    ) -> str:
        """Writes a request, waits for its plan and sends it; returns the path of the video.

        Args:
            name: what the request is, in the list of pages.
            plan: text that its plan contains.
        """
        await self.seen.open("/")
        if reuse:
            await self.page.get_by_label("Reuse", exact=True).select_option(reuse)
        if "Steps" in fields:
            await self.page.get_by_text("Size, steps, donor and labels").click()
        for label, text in fields.items():
            await self.page.get_by_label(label, exact=True).fill(text)
        await self.page.get_by_label("Prompt").fill(prompt)
        await self.page.keyboard.press("Tab")
        await expect(self.plan).to_contain_text(plan, timeout=1000 * DEADLINE_SECONDS)
        await self.inspect(f"Studio with the plan of {name}")
        await self.page.get_by_role("button", name="Make the video").click()
        await expect(self.page.get_by_role("heading", level=1)).to_have_text(prompt)
        return self.page.url.removeprefix(f"{self.deployed.url}/console")

    async def wait_for_video(self) -> None:
        """Waits until the page shows a complete video, for which it loads itself again."""
        await expect(self.page.locator("#live:not([data-events])")).to_be_visible(
            timeout=1000 * DEADLINE_SECONDS
        )
        await expect(self.page.get_by_label("This video", exact=True)).to_be_visible()
        await until(self.page, _READY)

    async def play(self) -> None:
        """Plays what the page shows, and stops it."""
        await self.page.get_by_role("button", name="Play").click()
        await until(self.page, f"{_TIMES}.every((time) => time > 0)")
        await self.page.get_by_role("button", name="Pause").click()

    async def unfold(self) -> None:
        for summary in await self.page.locator("summary").all():
            await summary.click()

    async def wait_for_entry(self, prompt: str) -> None:
        """Waits until the cache holds latents of a prompt: a video is ready before they are admitted."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            entry = self.page.get_by_role("link", name=prompt)
            await self.seen.open("/cache")
            while await entry.count() == 0:
                await self.seen.open("/cache")

    async def create(self, path: str = "", **fields: Any) -> str:
        """Asks the API for a video; returns its path in the console."""
        response = await self.http.post(f"/v1/videos{path}", json=fields)
        assert response.status_code == 200, response.text
        return f"/videos/{response.json()['id']}"

    async def finish(self, path: str) -> dict[str, Any]:
        """Returns the object of a video once it has ended."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.http.get(f"/v1{path}/events")  # ends with the video
        video: dict[str, Any] = (await self.http.get(f"/v1{path}")).json()
        assert video["status"] == "completed", video
        return video

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the denoiser inside the block, so that nothing ends while the pages are inspected."""
        os.kill(self.deployed.denoiser, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.deployed.denoiser, signal.SIGCONT)

    async def compute_in_full(self) -> str:
        """The first request: nothing to reuse."""
        await self.seen.open("/")
        await self.inspect("Studio")
        await self.seen.open("/gallery")
        await self.inspect("Gallery without videos")
        path = await self.make_in_studio("a first video", FIRST, _IN_FULL, Seed="7")
        await self.wait_for_video()
        strip = self.page.get_by_role("region", name=f"The {_STEPS} steps of this video")
        steps = strip.get_by_role("listitem")
        await expect(steps).to_contain_text([re.compile(r"computed")] * _STEPS)
        await self.play()
        await self.unfold()
        await self.inspect("Video computed in full")
        await self.wait_for_entry(FIRST)
        await self.inspect("Cache")
        return path

    async def reuse(self, first: str) -> str:
        """An edited prompt: the plan names the donor, and both videos follow one clock."""
        path = await self.make_in_studio(
            "an edited prompt", EDITED, re.compile(rf"Takes \d of {_STEPS} steps from “{FIRST}”")
        )
        await self.wait_for_video()
        await expect(self.page.locator("#live")).to_contain_text(
            re.compile(rf"Took \d of {_STEPS} steps from “{FIRST}” .*It saved")
        )
        await expect(self.page.get_by_role("link", name="open")).to_have_attribute(
            "href", re.compile(re.escape(first))
        )
        await self.page.get_by_label("Position in").fill("500")
        times = await self.page.evaluate(_TIMES)
        assert len(times) >= 2
        assert times == pytest.approx([times[0]] * len(times), abs=0.01)
        assert times[0] > 0
        await self.play()
        await self.unfold()
        await self.inspect("Video that reused another")
        return path

    async def show_region(self) -> None:
        """A plan with a second stage: the mask shows which part of the picture was computed."""
        path = await self.create(prompt=EDITED, chorus={"plan": dict(REGION), "no_store": True})
        assert (await self.finish(path))["chorus"]["warnings"] == []
        await self.seen.open(path)
        await self.wait_for_video()
        await expect(self.page.locator("#live")).to_contain_text("only the region that differs")
        masks = self.page.get_by_label("Computed region")
        shown = self.page.locator(".mask path:not(.away)").filter(visible=True)
        await expect(shown).to_have_count(0)
        await masks.select_option(index=1)
        await expect(shown).to_have_count(1)
        area = await shown.bounding_box()
        screen = await self.page.get_by_label("This video", exact=True).bounding_box()
        assert area is not None
        assert screen is not None
        assert 0 < area["width"] * area["height"] < screen["width"] * screen["height"]
        await self.inspect("Video with the mask of its region")

    async def remix(self, first: str, edited: str) -> None:
        """A remix through the API joins the family."""
        path = await self.create(f"{first.removeprefix('/videos')}/remix", prompt=REMIXED)
        video = await self.finish(path)
        assert video["remixed_from_video_id"] == first.removeprefix("/videos/")
        assert video["chorus"]["decision"] == "hit"
        await self.seen.open(first)
        await self.page.get_by_role("link", name="Family").click()
        for prompt, member in ((FIRST, first), (EDITED, edited), (REMIXED, path)):
            link = self.page.get_by_role("listitem").get_by_role("link", name=prompt)
            await expect(link.and_(self.page.locator(f"[href$='{member}']"))).to_be_visible()
        await self.inspect("Family")

    async def follow_steps(self) -> None:
        """Steps appear while they are computed."""
        await self._start_long(0)
        live = self.page.locator("#live")
        with self.paused():
            await self.inspect("Video that is being made")
            shown = re.search(rf"step \d+ of {_LONG_STEPS}", await live.inner_text())
        assert shown is not None
        await expect(live).not_to_contain_text(shown[0], timeout=1000 * DEADLINE_SECONDS)
        await self.wait_for_video()

    async def cancel(self) -> None:
        """A waiting and a running video are cancelled."""
        running = await self._start_long(1)
        with self.paused():
            waiting = await self.create(prompt=QUEUED)
            await self.seen.open(waiting)
            await expect(self.page.locator("#live")).to_contain_text("In the queue")
            await self.inspect("Video in the queue")
            await self.page.get_by_role("link", name="Queue").click()
            await expect(self.page.get_by_role("heading", name="Waiting: 1")).to_be_visible()
            await self.inspect("Queue")
            await self.page.get_by_role("button", name=f"Cancel: {QUEUED}").click()
            await expect(self.page.get_by_role("heading", name="Waiting: 0")).to_be_visible()
            await self.seen.open(running)
            await self.page.get_by_role("button", name="Cancel").click()
        for path in (running, waiting):
            await self.seen.open(path)
            await expect(self.page.locator("#live")).to_contain_text("Cancelled before it was complete.")
        await self.inspect("Cancelled video")

    async def look_around(self) -> None:
        await self.seen.open("/gallery")
        await self.inspect("Gallery")
        await self.page.get_by_label("Text in the prompt").fill("green")
        await self.page.get_by_role("button", name="Search").click()
        tiles = self.page.get_by_role("article")
        await expect(tiles.filter(has_text=EDITED).first).to_be_visible()
        await expect(tiles.filter(has_text=FIRST)).to_have_count(0)
        for name in ("Health", "Studio"):
            await self.page.get_by_role("link", name=name, exact=True).click()
            await expect(self.page.get_by_role("heading", level=1)).to_have_text(name)
            await self.inspect(f"{name} after some videos")
        await self.seen.open("/login")
        await self.inspect("Login")

    async def purge(self) -> None:
        """A purge is shown first; afterwards nothing is left to reuse."""
        await self.seen.open("/cache")
        await expect(self.page.get_by_role("link", name=FIRST).first).to_be_visible()
        await self.page.get_by_label("Every entry").check()
        await self.page.get_by_role("button", name="Show what would be dropped").click()
        await expect(self.page.get_by_text("would be dropped").first).to_be_visible()
        await expect(self.page.get_by_role("link", name=FIRST).first).to_be_visible()
        await self.inspect("Purge, before it is confirmed")
        await self.page.get_by_role("button", name="Drop them").click()
        await expect(self.page.get_by_text("were dropped").first).to_be_visible()
        await expect(self.page.get_by_role("link", name=FIRST)).to_have_count(0)
        await self.inspect("Cache after a purge")
        await self.make_in_studio("an edited prompt after a purge", EDITED, _IN_FULL)
        await self.wait_for_video()
        await expect(self.page.locator("#live")).to_contain_text(f"all {_STEPS} steps were computed")

    async def delete(self, path: str) -> None:
        await self.seen.open(path)
        await self.page.locator("summary", has_text="Delete").click()
        await self.page.get_by_role("button", name="Delete this video").click()
        await expect(self.page.get_by_role("heading", level=1)).to_have_text("Gallery")
        await expect(self.page.locator(f"[href$='{path}']")).to_have_count(0)
        await self.seen.open(path)
        assert self.seen.faults, "the browser did not report that the page is gone"
        assert all("404" in fault for fault in self.seen.faults), self.seen.faults
        self.seen.faults.clear()
        await self.inspect("Page that is not there")

    async def _start_long(self, number: int) -> str:
        """Sends a request of many steps; returns when the page shows one."""
        path = await self.make_in_studio(
            f"a long video, number {number}",
            f"{LONG}, take {number}",
            re.compile(rf"all {_LONG_STEPS} steps"),
            reuse="off",
            Steps=str(_LONG_STEPS),
        )
        await expect(self.page.locator("#live")).to_contain_text(
            re.compile(rf"step [1-9]\d* of {_LONG_STEPS}"), timeout=1000 * DEADLINE_SECONDS
        )
        return path


async def walk_through(up: Up) -> list[Inspection]:
    """Walks through the console of a `chorus up` that is starting; returns the pages that it met.

    Raises AssertionError for what is not as it should be, a fault of the browser's console and a request to
    another host among it.
    """
    ready = up.read("up")
    deployed = Deployed(f"http://{ready['targets']['gateway']}", ready["pids"]["denoiser"])
    async with (
        httpx.AsyncClient(base_url=deployed.url, timeout=60, trust_env=False) as http,
        browsing(deployed) as seen,
    ):
        walk = Walk(deployed, seen, http)
        first = await walk.compute_in_full()
        edited = await walk.reuse(first)
        await walk.show_region()
        await walk.remix(first, edited)
        await walk.follow_steps()
        await walk.cancel()
        await walk.look_around()
        await walk.purge()
        await walk.delete(edited)
        return walk.inspections
