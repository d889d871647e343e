"""A browser in front of the console: what goes wrong on a page, waits with a deadline, accessibility."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import ConsoleMessage, Page, async_playwright

DEADLINE_SECONDS: Final = 30.0
WIDTHS: Final = (390, 1280)
_HEIGHT: Final = 900


class Site(Protocol):
    """Something with a console.

    Attributes:
        url: address of its gateway, without a path.
    """

    @property
    def url(self) -> str: ...


@dataclass
class Observed:
    """A page, and what went wrong on it.

    Attributes:
        faults: errors of scripts, violations of the policy, and addresses outside the console's host.
    """

    page: Page
    site: Site
    faults: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        await self.page.goto(f"{self.site.url}/console{path}")


@contextlib.asynccontextmanager
async def browsing(
    site: Site, *, width: int = 1280, dark: bool = False, script: bool = True
) -> AsyncIterator[Observed]:
    """Opens a browser inside the block; at its end nothing may have gone wrong.

    Args:
        script: whether pages run their script.
    """
    program = shutil.which("chromium")
    assert program is not None, "Debian's package chromium is not installed"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = await browser.new_context(
            viewport={"width": width, "height": _HEIGHT},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        page = await context.new_page()
        observed = Observed(page, site)

        def note(message: ConsoleMessage) -> None:
            if message.type == "error":
                observed.faults.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: observed.faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(f"{site.url}/") else observed.faults.append(request.url)
            ),
        )
        yield observed
        await browser.close()
    assert observed.faults == []


async def until(page: Page, condition: str) -> None:
    """Waits until an expression of JavaScript is true.

    `Page.wait_for_function` evaluates its text again inside the page, which the console's policy forbids
    unless the first look succeeds.
    """
    look = f"if ({condition}) resolve(); else requestAnimationFrame(look);"
    async with asyncio.timeout(DEADLINE_SECONDS):
        await page.evaluate(f"new Promise((resolve) => {{ function look() {{ {look} }} look(); }})")


@dataclass(frozen=True)
class Inspection:
    """A page in every width, light and dark.

    Attributes:
        name: what the page shows.
        violations: rules of axe that it breaks, by their impact: "critical", "serious", …
        reports: axe's description of each look with violations.
        excess: largest number of pixels by which it is wider than the window.
    """

    name: str
    violations: dict[str, int]
    reports: tuple[str, ...]
    excess: int


async def inspect_page(page: Page, name: str) -> Inspection:
    """Looks at a page in each of WIDTHS, light and dark; afterwards it is 1,280 pixels wide and light."""
    violations: dict[str, int] = {}
    reports, excess = [], 0
    # Without transitions, in the middle of which the contrast is that of neither colour.
    await page.emulate_media(reduced_motion="reduce")
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": _HEIGHT})
        for dark in (True, False):
            await page.emulate_media(color_scheme="dark" if dark else "light")
            found = await Axe().run(page)
            for violation in found.response["violations"]:
                impact = violation["impact"] or "unknown"
                violations[impact] = violations.get(impact, 0) + 1
            if found.violations_count:
                scheme = "dark" if dark else "light"
                reports.append(f"{name}, {width} px, {scheme}\n{found.generate_report()}")
        excess = max(excess, await page.evaluate("document.documentElement.scrollWidth - innerWidth"))
    await page.emulate_media(reduced_motion="no-preference")
    return Inspection(name, violations, tuple(reports), excess)
