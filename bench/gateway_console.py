"""Figures of the console, from a walk through it in a browser in front of the real services."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Final

from bench import results
from bench.results import Figure
from tests.integration.client.up import running_up
from tests.integration.gateway.console.browser import WIDTHS
from tests.integration.gateway.console.walk import walk_through

_GRAVE: Final = ("serious", "critical")
_SCHEMES: Final = 2  # light and dark


def measure_console() -> dict[str, Figure]:
    """Walks through the console of a `chorus up` with the shipped model; counts pages and what axe finds.

    Raises AssertionError if a page does not show what it should, its script fails, or it loads something from
    another host.
    """
    with tempfile.TemporaryDirectory() as folder, running_up(Path(folder)) as up:
        inspections = asyncio.run(walk_through(up))
    for report in (report for each in inspections for report in each.reports):
        print(report)
    looks = len(inspections) * len(WIDTHS) * _SCHEMES
    serious = sum(each.violations.get(impact, 0) for each in inspections for impact in _GRAVE)
    found = sum(sum(each.violations.values()) for each in inspections)
    too_wide = sum(each.excess > 0 for each in inspections)
    return {
        "pages_walked": results.single(len(inspections), "pages"),
        "axe_serious": results.single(serious, f"serious or critical violations in {looks} looks"),
        "axe_violations": results.single(found, f"violations of any impact in {looks} looks"),
        "pages_too_wide": results.single(too_wide, "pages wider than the window"),
    }
