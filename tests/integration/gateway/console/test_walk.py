"""Verifies the console in a browser against the real services, with the shipped model and embedded stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.client.up import running_up
from tests.integration.gateway.console.walk import walk_through

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


async def test_walk_through_the_console(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        inspections = await walk_through(up)
        assert "Traceback" not in (tmp_path / ".chorus" / "logs" / "gateway.log").read_text()
    reports = [report for each in inspections for report in each.reports]
    assert not reports, "\n".join(reports)
    assert [each.name for each in inspections if each.excess > 0] == []
    names = [each.name for each in inspections]
    assert len(names) == len(set(names)), "each page is counted once"
