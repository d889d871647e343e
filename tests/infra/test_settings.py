"""Verifies that services accept every CHORUS_* variable set by the chart and by compose."""

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

# Settings that the chart derives, and so does not offer. A pod needs no instance id: its probes reach no
# other process.
DERIVED = {"host", "port", "metrics_host", "metrics_port", "log_format", "instance_id"}
DERIVED_BY_SERVICE = {
    "scheduler": {
        "api_keys",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "health_port",
        "embedder_target",
        "cache_target",
        "denoiser_target",
        "cache_key",
        "database",
        "database_password",
        "video_dir",
        "video_store",
        "s3_endpoint",
        "s3_access_key",
        "s3_secret_key",
        "s3_secure",
        "s3_region",
        "s3_ca",
        "s3_credentials",
        "s3_session_token",
        "s3_sts_endpoint",
        "webhook_secrets",
        "webhook_ca",
    },
    "embedder": set(),
    "cache": {
        "milvus_uri",
        "milvus_token",
        "milvus_ca",
        "blobs",
        "blob_dir",
        "s3_endpoint",
        "s3_bucket",
        "s3_access_key",
        "s3_secret_key",
        "s3_secure",
        "s3_region",
        "s3_ca",
        "s3_credentials",
        "s3_session_token",
        "s3_sts_endpoint",
        "scheduler_key",
        "denoiser_key",
        "gateway_key",
        "operator_key",
        "keyless_tenants",
    },
    "denoiser": {"cache_target", "cache_key", "device", "engines"},
    "gateway": {
        "scheduler_target",
        "scheduler_tls",
        "scheduler_ca",
        "scheduler_certificate",
        "scheduler_key",
        "allow_plaintext_keys",
        "require_keys",
        "tls_certificate",
        "tls_key",
        "console_secret",
        "console_cache_target",
        "console_cache_tenant",
        "console_cache_key",
    },
}


def create_weights(value: str, directory: Path) -> str:
    """Returns the value with paths below /weights moved to `directory`, and creates them."""
    for path in re.findall(r"/weights/([\w./-]+)", value):
        created = directory / path
        created.parent.mkdir(parents=True, exist_ok=True)
        created.touch() if created.suffix else created.mkdir()
    return value.replace("/weights/", f"{directory}/")


def accept(service: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Loads the settings from these variables; fails for an unknown name or an invalid value."""
    kind = settings_class(service)
    prefix = f"CHORUS_{service.upper()}_"
    ours = {name: value for name, value in variables.items() if name.startswith("CHORUS_")}
    known = {prefix + field.upper() for field in kind.model_fields}
    assert set(ours) <= known
    assert f"{prefix}PORT" in ours
    for name, value in ours.items():
        monkeypatch.setenv(name, create_weights(value, directory))
    loaded = kind()
    assert loaded.port == kind.model_fields["port"].default, "the documented port"
    assert loaded.host == "0.0.0.0"


@pytest.mark.parametrize("service", SERVICES)
def test_chart_variables_are_accepted(
    manifests: list[Manifest], service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workload = workloads(manifests)[service]
    assert container(workload)["command"] == ["python", "-m", f"services.{service}"]
    accept(service, environment(workload), monkeypatch, tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_compose_variables_are_accepted(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(service, compose()["services"][service]["environment"], monkeypatch, tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_chart_offers_every_setting(service: str) -> None:
    schema: dict[str, Any] = yaml.safe_load((CHART / "values.schema.json").read_text())
    offered = set(schema["properties"][service]["properties"]["settings"]["properties"])
    fields = set(settings_class(service).model_fields)
    assert offered == fields - DERIVED - DERIVED_BY_SERVICE[service]


def test_every_variable_carries_the_prefix_of_its_service(manifests: list[Manifest]) -> None:
    found = {**workloads(manifests)}
    for name, workload in found.items():
        prefix = f"CHORUS_{name.upper()}_"
        for variable in environment(workload):
            assert not variable.startswith("CHORUS_") or variable.startswith(prefix)
