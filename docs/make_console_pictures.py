"""Draws the pictures of the console in docs/images, from the real services with the shipped model.

python docs/make_console_pictures.py [FOLDER]    needs Debian's package chromium
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from PIL import Image
from playwright.async_api import Page, expect

from tests.integration.client.up import Up, running_up
from tests.integration.gateway.console.browser import DEADLINE_SECONDS, browsing, until

IMAGES: Final = Path(__file__).with_name("images")
DONOR: Final = "a large red circle moving right on a navy background"
EDITS: Final = (
    "a large green circle moving right on a navy background",
    "a large red square moving right on a navy background",
    "a large yellow circle moving right on a navy background",
)
PLANNED: Final = "a large purple circle moving right on a navy background"
SEED: Final = 21
_WIDTH: Final = 1280
_MOST_BYTES: Final = 200_000


@dataclass(frozen=True)
class Deployed:
    """The address of a gateway."""

    url: str


async def make(http: httpx.AsyncClient, prompt: str, seed: int | None = None, reuse: str = "balanced") -> str:
    """Makes a video; returns its id once it is complete."""
    chorus = {"reuse": reuse, "step_previews": True}
    response = await http.post("/v1/videos", json={"prompt": prompt, "seed": seed, "chorus": chorus})
    video = str(response.raise_for_status().json()["id"])
    async with asyncio.timeout(DEADLINE_SECONDS):
        await http.get(f"/v1/videos/{video}/events")  # ends with the video
    return video


def compress(picture: bytes) -> bytes:
    """Returns a PNG file with the same pixels, as small as Pillow makes it."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


async def draw(page: Page, path: Path, height: int) -> None:
    """Writes the top of a page. Raises ValueError for a picture that is too large for a README."""
    await page.set_viewport_size({"width": _WIDTH, "height": height})
    await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    picture = compress(await page.screenshot())
    print(f"{path.name}: {len(picture):,} bytes")
    if len(picture) > _MOST_BYTES:
        raise ValueError(f"{path} must have at most {_MOST_BYTES:,} bytes, not {len(picture):,}")
    await asyncio.to_thread(path.write_bytes, picture)


async def draw_studio(page: Page, path: Path) -> None:
    await page.get_by_label("Prompt").fill(PLANNED)
    await page.keyboard.press("Tab")
    plan = page.get_by_role("region", name="The plan")
    await expect(plan).to_contain_text(re.compile("Takes . of 4 steps"), timeout=1000 * DEADLINE_SECONDS)
    await draw(page, path, 800)


async def draw_video(page: Page, path: Path) -> None:
    """Draws donor, video and full computation at the middle of their clock."""
    videos = "[...document.querySelectorAll('.screen video')]"
    await until(page, f"{videos}.every((each) => each.readyState >= 2)")
    await page.get_by_label("Position in").fill("500")
    await until(page, f"{videos}.every((each) => each.currentTime > 0 && !each.seeking)")
    await until(page, "[...document.querySelectorAll('.strip img')].every((each) => each.complete)")
    await draw(page, path, 1_390)


async def draw_all(up: Up, folder: Path) -> None:
    deployed = Deployed(f"http://{up.read('up')['targets']['gateway']}")
    async with (
        httpx.AsyncClient(base_url=deployed.url, timeout=60, trust_env=False) as http,
        browsing(deployed, width=_WIDTH) as seen,
    ):
        donor = await make(http, DONOR, SEED)
        await asyncio.to_thread(up.wait_for_entries, "1")
        hits = [await make(http, prompt) for prompt in EDITS]
        await make(http, EDITS[0], SEED, reuse="off")  # to which its page compares the first hit
        await seen.open("/")
        await draw_studio(seen.page, folder / "console-studio.png")
        await seen.open(f"/videos/{hits[0]}")
        await draw_video(seen.page, folder / "console.png")
        await seen.open(f"/videos/{donor}/family")
        await expect(seen.page.get_by_role("listitem").get_by_role("link", name=EDITS[-1])).to_be_visible()
        await until(seen.page, "[...document.images].every((each) => each.complete)")
        await draw(seen.page, folder / "console-family.png", 740)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, running_up(Path(directory)) as up:
        asyncio.run(draw_all(up, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
