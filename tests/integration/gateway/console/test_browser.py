"""Verifies the console in a browser: accessibility, width, its script; no request leaves the host."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import async_playwright, expect

from tests.integration.client.fakes import make_details
from tests.integration.gateway.console.browser import browsing, until
from tests.integration.gateway.console.world import STEPS, Console, running_console

pytestmark = pytest.mark.servers


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with running_console() as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_every_page_is_accessible_and_fits(console: Console, width: int, dark: bool) -> None:
    await console.make("a large red circle moving to the right")
    video = await console.make("a large royalblue circle moving to the right", labels="project=demo")
    failed, slow = await console.make("fail a circle"), await console.make("slow circle")
    await console.send(f"{video}/report", problem="broken_motion", comment="w" * 300)
    await console.make("a large royalblue circle moving to the right", reuse="off", seed="7")
    compared = await console.make(
        "a large royalblue circle moving to the right", seed="7", step_previews="yes"
    )
    waiting = await console.make("queued " + "w" * 200)
    console.find(waiting).predicted_start_time.FromSeconds(int(time.time()) + 3_661)
    states = (video, compared, failed, slow)
    pages = ("/", "/gallery", *states, f"{video}/family", "/queue", "/cache", "/health", "/login")
    async with browsing(console, width=width, dark=dark) as seen:
        for path in pages:
            await seen.open(path)
            if path in (video, compared):
                for summary in reversed(await seen.page.locator("details:not([open]) > summary").all()):
                    await summary.click()
            found = await Axe().run(seen.page)
            assert found.violations_count == 0, f"{path}\n{found.generate_report()}"
            excess = await seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert excess <= 0, path


async def test_plan_appears_while_one_writes_and_the_keyboard_suffices(console: Console) -> None:
    await console.make("a large red circle")
    async with browsing(console) as seen:
        page = seen.page
        await seen.open("/")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.get_by_label("Prompt").focus()
        await page.keyboard.type("a large blue circle")
        await page.keyboard.press("Tab")
        plan = page.get_by_role("region", name="The plan")
        await expect(plan).to_contain_text("Takes 3 of 8 steps from “a large red circle”")
        await expect(plan).to_contain_text("1.90 s saved, if the prediction holds")
        assert len(console.scheduler.requests) == 1
        await page.get_by_role("button", name="Make the video").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("a large blue circle")
        assert len(console.scheduler.requests) == 2


async def test_fault_of_a_preview_is_announced(console: Console) -> None:
    async with browsing(console) as seen:
        await seen.open("/")
        await seen.page.get_by_label("Prompt").fill("a circle")
        await seen.page.get_by_label("Seed").fill("seven")
        await seen.page.get_by_role("button", name="Show the plan").click()
        await expect(seen.page.get_by_role("alert")).to_contain_text("must be a whole number")
        seen.faults.clear()  # the browser logs the status 422 of the answer


async def test_both_videos_and_the_mask_follow_one_clock(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large royalblue circle")
    async with browsing(console) as seen:
        page = seen.page
        await seen.open(path)
        ready = "[...document.querySelectorAll('.screen video')].every((each) => each.readyState >= 2)"
        await until(page, ready)
        await page.get_by_label("Computed region").select_option("1")
        clock = page.get_by_label("Position in both videos")
        shown = "[...document.querySelectorAll('.mask path')].map((each) => !each.classList.contains('away'))"
        times = "[...document.querySelectorAll('.screen video')].map((each) => each.currentTime)"
        for share, part in (("100", 0), ("900", 3)):
            await clock.fill(share)
            assert await page.evaluate(shown) == [index == part for index in range(4)]
            donor, own = await page.evaluate(times)
            assert donor == pytest.approx(own, abs=0.01)
            assert own == pytest.approx(2 * int(share) / 1000, abs=0.05)
        await page.get_by_role("button", name="One frame back").click()
        donor, own = await page.evaluate(times)
        assert own == pytest.approx(1.8 - 1 / 8, abs=0.02)
        assert donor == pytest.approx(own, abs=0.01)
        await page.get_by_role("button", name="Play").click()
        await expect(page.get_by_role("button", name="Pause")).to_be_visible()
        await until(page, "![...document.querySelectorAll('.screen video')].some((each) => each.paused)")
        await page.get_by_label("Computed region").select_option("")
        await expect(page.locator(".mask")).to_be_hidden()


async def test_wipe_follows_the_keyboard_and_the_clock(console: Console) -> None:
    await console.make("a large red circle")
    path = await console.make("a large royalblue circle", seed="7")
    await console.make("a large royalblue circle", seed="7", reuse="off")
    async with browsing(console) as seen:
        page = seen.page
        await seen.open(path)
        wipe = page.get_by_label("Share of this video, from the left")
        await wipe.focus()
        await page.keyboard.press("End")
        clip = "getComputedStyle(document.querySelector('.wipe .over')).clipPath"
        whole = await page.evaluate(clip)
        await page.keyboard.press("Home")
        assert await page.evaluate(clip) != whole
        await expect(wipe).to_have_attribute("aria-valuetext", "0 %")
        ready = "[...document.querySelectorAll('.screen video')].every((each) => each.readyState >= 2)"
        await until(page, ready)
        await page.get_by_label("Position in all videos").fill("700")
        times = await page.evaluate(
            "[...document.querySelectorAll('.screen video')].map((each) => each.currentTime)"
        )
        assert times == pytest.approx([1.4] * 4, abs=0.05)


async def test_steps_appear_as_they_are_computed(console: Console) -> None:
    path = await console.make("slow circle", step_previews="yes")
    generation = console.find(path)
    async with browsing(console) as seen:
        page = seen.page
        await seen.open(path)
        await expect(page.locator("#live")).to_contain_text("step 1 of 8")
        await page.evaluate("window.sameDocument = true")
        await page.get_by_role("button", name="Cancel").focus()
        for step in range(2, STEPS + 1):
            await console.scheduler.compute_step(generation, step)
            picture = page.get_by_alt_text(f"What step {step} predicts")
            await expect(picture).to_be_visible()
            await expect(picture).to_have_js_property("complete", True)
            await expect(picture).to_have_js_property("naturalWidth", 128)
        await expect(page.locator(".step.full")).to_have_count(STEPS)
        await expect(page.locator("#live")).to_contain_text("step 8 of 8")
        await expect(page.get_by_role("status")).to_contain_text("step 8 of 8")
        await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        assert await page.evaluate("window.sameDocument") is True
        await console.scheduler.succeed(generation)
        await expect(page.get_by_label("This video")).to_be_visible()


async def test_map_of_the_cache_is_used_by_keyboard(console: Console) -> None:
    video = await console.make("a large red circle")
    details = make_details("a" * 64)
    details.entry.generation_id = console.find(video).generation_id
    console.cache.entries = [details]
    async with browsing(console) as seen:
        page = seen.page
        await seen.open("/cache")
        await page.get_by_role("link", name="Skip the dots of the map").focus()
        await page.keyboard.press("Tab")
        dot = page.get_by_role("link", name="a red circle: used 2 times", exact=True)
        await expect(dot).to_be_focused()
        await page.get_by_text("The map as a table").click()
        await expect(page.get_by_role("group", name="The map as a table")).to_contain_text("a red circle")
        await dot.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("a large red circle")


async def test_video_of_the_gallery_plays_on_hover(console: Console) -> None:
    await console.make("a large red circle")
    async with browsing(console) as seen:
        await seen.open("/gallery")
        video = seen.page.locator(".tile video")
        assert await video.get_attribute("src") is None
        await video.hover()
        await until(seen.page, "document.querySelector('.tile video').currentTime > 0")


async def test_report_is_made_and_found_without_the_script(console: Console) -> None:
    video = await console.make("a large red circle")
    await console.make("a large gold circle", reuse="off")
    async with browsing(console, script=False) as seen:
        await seen.open(video)
        report = seen.page.locator("#report")
        await report.get_by_text("Looks wrong?").click()
        await report.get_by_label("What is wrong").select_option("the picture is broken")
        await report.get_by_label("Comment").fill("it flickers")
        await report.get_by_role("button", name="Report", exact=True).click()
        await expect(report.get_by_text("Reported: the picture is broken – “it flickers”.")).to_be_visible()
        await seen.open("/gallery")
        await expect(seen.page.locator(".tile")).to_have_count(2)
        await expect(seen.page.locator(".tile").get_by_text("reported", exact=True)).to_have_count(1)
        await seen.page.get_by_label("Reports").select_option("reported")
        await seen.page.get_by_role("button", name="Search").click()
        await expect(seen.page.locator(".tile")).to_have_count(1)
        await seen.open(video)
        await report.get_by_role("button", name="Withdraw the report").click()
        await expect(report.get_by_text("Reported:")).to_have_count(0)


async def test_queue_is_moved_by_its_buttons(console: Console) -> None:
    await console.make("queued circle")
    async with browsing(console) as seen:
        await seen.open("/queue")
        row = seen.page.get_by_role("row").filter(has_text="queued circle")
        await row.get_by_role("button", name="Move up to high").click()
        await expect(row.get_by_role("cell", name="high", exact=True)).to_be_visible()
        await expect(row.get_by_role("button", name="Move up")).to_have_count(0)
        await row.get_by_role("button", name="Move down to normal").click()
        await expect(row.get_by_role("cell", name="normal", exact=True)).to_be_visible()


async def test_request_can_be_sent_without_the_script(console: Console) -> None:
    async with async_playwright() as playwright:
        program = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        await page.goto(f"{console.url}/console/")
        await page.get_by_label("Prompt").fill("a circle")
        await page.get_by_role("button", name="Show the plan").click()
        await expect(page.get_by_text("Nothing to reuse: all 8 steps will be computed.")).to_be_visible()
        await page.get_by_role("button", name="Make the video").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("a circle")
        await browser.close()
