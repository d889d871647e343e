"""Verifies that the services name the version of the project."""

from __future__ import annotations

import tomllib

import yaml

from services.runtime.version import VERSION
from tests.processes import ROOT


def test_version_is_that_of_the_project_and_of_the_chart() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / "infra/helm/chorus/Chart.yaml").read_text())
    assert VERSION == project["version"] == chart["appVersion"]
