"""Verifies that the documentation matches the code and that its links resolve."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.processes import ROOT

FOLDERS = ("client", "docs", "examples", "infra", "models")
PAGES = [*ROOT.glob("*.md"), *(page for top in FOLDERS for page in (ROOT / top).rglob("*.md"))]
PAGES = sorted(page for page in PAGES if "node_modules" not in page.parts)


def test_settings_page_matches_the_code() -> None:
    path = ROOT / "docs" / "make_settings.py"
    spec = importlib.util.spec_from_file_location("make_settings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == module.make_page(), "run python docs/make_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: object) -> None:
    from pathlib import Path

    assert isinstance(page, Path)
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
