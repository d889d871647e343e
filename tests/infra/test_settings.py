"""Every CHORUS_* variable that the chart and compose set is one that its service knows and accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.manifests import (
    CHART,
    SERVICES,
    Manifest,
    compose,
    container,
    environment,
    settings_class,
    workloads,
)

# What the chart works out by itself, and so does not offer.
DERIVED = {"host", "port", "log_format"}
DERIVED_OF = {
    "scheduler": {"embedder_target", "cache_target", "denoiser_target", "database", "video_dir"},
    "embedder": set(),
    "cache": {
        "milvus_uri",
        "milvus_token",
        "blobs",
        "blob_dir",
        "s3_endpoint",
        "s3_bucket",
        "s3_access_key",
        "s3_secret_key",
        "s3_secure",
        "s3_region",
    },
    "denoiser": {"cache_target", "device", "engines"},
}


def weights(value: str, directory: Path) -> str:
    """The value with its paths below /weights moved to a directory of this machine, where they are made."""
    for path in re.findall(r"/weights/([\w./-]+)", value):
        made = directory / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch() if made.suffix else made.mkdir()
    return value.replace("/weights/", f"{directory}/")


def accept(service: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Starts from these variables as the process would; a name or a value that is unknown fails."""
    kind = settings_class(service)
    prefix = f"CHORUS_{service.upper()}_"
    ours = {name: value for name, value in variables.items() if name.startswith("CHORUS_")}
    known = {prefix + field.upper() for field in kind.model_fields}
    assert set(ours) <= known
    assert f"{prefix}PORT" in ours
    for name, value in ours.items():
        monkeypatch.setenv(name, weights(value, directory))
    loaded = kind()
    assert loaded.port == kind.model_fields["port"].default, "the port everybody is told"
    assert loaded.host == "0.0.0.0"


@pytest.mark.parametrize("service", SERVICES)
def test_chart(
    manifests: list[Manifest], service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workload = workloads(manifests)[service]
    assert container(workload)["command"] == ["python", "-m", f"services.{service}"]
    accept(service, environment(workload), monkeypatch, tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_compose(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accept(service, compose()["services"][service]["environment"], monkeypatch, tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_chart_offers_every_setting(service: str) -> None:
    schema: dict[str, Any] = yaml.safe_load((CHART / "values.schema.json").read_text())
    offered = set(schema["properties"][service]["properties"]["settings"]["properties"])
    fields = set(settings_class(service).model_fields)
    assert offered == fields - DERIVED - DERIVED_OF[service]


def test_no_variable_goes_to_the_wrong_service(manifests: list[Manifest]) -> None:
    found = {**workloads(manifests)}
    for name, workload in found.items():
        prefix = f"CHORUS_{name.upper()}_"
        for variable in environment(workload):
            assert not variable.startswith("CHORUS_") or variable.startswith(prefix)
