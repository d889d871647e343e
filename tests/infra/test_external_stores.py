"""Verifies the chart's values for external stores: certificate authorities, session tokens, roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.cache.settings import CacheSettings
from tests.infra.manifests import KUBERNETES, Chart, Manifest, container, environment, pod_spec, workloads
from tests.tls import make_certificates

pytestmark = pytest.mark.fault("helm")

PEERS = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
METADATA = [{"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"protocol": "TCP", "port": 80}]}]


def external(milvus: dict[str, Any], s3: dict[str, Any], **store: Any) -> dict[str, Any]:
    """Returns values of external stores with further values of Milvus, of the endpoint and of the store."""
    return {
        "milvus": {"enabled": False, "external": {"uri": "https://m:19530", "peers": PEERS, **milvus}},
        "minio": {"enabled": False},
        "objectStore": {**store, "external": {"endpoint": "s3.example", "peers": PEERS, **s3}},
    }


@pytest.fixture(params=KUBERNETES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(workload: Manifest, monkeypatch: pytest.MonkeyPatch, ca: Path | None = None) -> CacheSettings:
    """Loads the settings of the rendered variables; `ca` takes the place of the mounted files."""
    for name, value in environment(workload).items():
        if name.startswith("CHORUS_CACHE_"):
            monkeypatch.setenv(name, str(ca) if ca and name.endswith("_CA") else value)
    return CacheSettings()


@pytest.mark.parametrize("source", ["existingSecret", "existingConfigMap"])
def test_authorities_are_mounted_and_named(
    chart: Chart, version: str, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = external(
        {"ca": {source: "1e3", "key": "root.pem"}}, {"ca": {source: "0123"}}, existingSecret="keys"
    )
    cache = workloads(chart.template_valid(values, version))["cache"]
    variables = environment(cache)
    mounts = {mount["name"]: mount for mount in container(cache)["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod_spec(cache)["volumes"]}
    for name, variable, store, key in (
        ("milvus-ca", "CHORUS_CACHE_MILVUS_CA", "1e3", "root.pem"),
        ("s3-ca", "CHORUS_CACHE_S3_CA", "0123", "ca.crt"),
    ):
        assert variables[variable] == f"{mounts[name]['mountPath']}/ca.crt"
        assert mounts[name]["readOnly"] is True
        items = [{"key": key, "path": "ca.crt"}]
        assert volumes[name] == (
            {"secret": {"secretName": store, "items": items}}
            if source == "existingSecret"
            else {"configMap": {"name": store, "items": items}}
        )
    load(cache, monkeypatch, make_certificates(tmp_path).ca)


def test_store_without_tls_or_bundled_has_no_authority(chart: Chart) -> None:
    ca = {"ca": {"existingSecret": "ca"}}
    for values in (
        {"milvus": {"external": ca}, "objectStore": {"external": ca}},
        {**external(ca, ca), "cache": {"blobs": "directory"}},
    ):
        cache = workloads(chart.template(values))["cache"]
        assert "CHORUS_CACHE_S3_CA" not in environment(cache)
        assert "s3-ca" not in str(pod_spec(cache))


def test_session_token_is_optional_in_the_secret(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = workloads(chart.template_valid(external({}, {}, existingSecret="0123"), version))["cache"]
    [token] = [e for e in container(cache)["env"] if e["name"] == "CHORUS_CACHE_S3_SESSION_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "0123", "key": "sessionToken", "optional": True}
    assert load(cache, monkeypatch).s3_credentials == "keys"


def test_role_needs_no_keys(chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sts = "https://sts.example/"
    values = external({}, {"stsEndpoint": sts}, credentials="role")
    values["cache"] = {"serviceAccountName": "chorus-cache", "extraEgress": METADATA}
    manifests = chart.template_valid(values, version)
    cache = workloads(manifests)["cache"]
    assert pod_spec(cache)["serviceAccountName"] == "chorus-cache"
    assert pod_spec(workloads(manifests)["denoiser"])["serviceAccountName"] == "demo-chorus"
    settings = load(cache, monkeypatch)
    assert (settings.s3_credentials, settings.s3_sts_endpoint) == ("role", sts)
    assert not [name for name in environment(cache) if name.endswith(("_KEY", "_TOKEN"))]


def test_keys_of_the_environment_come_from_a_secret(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = external({}, {}, credentials="environment")
    values["cache"] = {"extraEnvFrom": [{"secretRef": {"name": "bucket"}}]}
    cache = workloads(chart.template_valid(values, version))["cache"]
    assert container(cache)["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "0123456")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "1e3")
    assert load(cache, monkeypatch).s3_credentials == "environment"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            external({"ca": {"existingSecret": "a", "existingConfigMap": "b"}}, {}),
            "milvus.external.ca: set existingSecret or existingConfigMap, not both",
        ),
        (
            external({"uri": "http://m:19530", "ca": {"existingSecret": "a"}}, {}),
            "milvus.external.ca is set, but the connection does not use TLS",
        ),
        (
            external({}, {"secure": False, "ca": {"existingConfigMap": "a"}}),
            "objectStore.external.ca is set, but the connection does not use TLS",
        ),
        (
            {"objectStore": {"credentials": "role"}},
            "objectStore.credentials must be keys while minio.enabled",
        ),
        (external({}, {}, credentials="role"), "cache.extraEgress"),
        (external({}, {}, credentials="environment"), "cache.extraEnv"),
    ],
)
def test_contradiction_is_named(chart: Chart, values: dict[str, Any], message: str) -> None:
    assert message in chart.render_invalid(values)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["FOO"], "AWS_ACCESS_KEY_ID"),
        (["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY"),
        (["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"], "AWS_ACCESS_KEY_ID"),
    ],
)
def test_keys_of_the_environment_must_be_complete(chart: Chart, names: list[str], missing: str) -> None:
    values = external({}, {}, credentials="environment")
    values["cache"] = {"extraEnv": [{"name": name, "value": "x"} for name in names]}
    assert f"objectStore.credentials is environment, but {missing} is missing" in chart.render_invalid(values)


@pytest.mark.parametrize(
    "names", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_ACCESS_KEY", "AWS_SECRET_KEY")]
)
def test_keys_of_the_environment_may_be_variables(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """Verifies both names of each key, because the cache reads either."""
    values = external({}, {}, credentials="environment")
    values["cache"] = {"extraEnv": [{"name": name, "value": "x"} for name in names]}
    cache = workloads(chart.template_valid(values, version))["cache"]
    for name in names:
        monkeypatch.setenv(name, environment(cache)[name])
    assert load(cache, monkeypatch).s3_credentials == "environment"


def test_keys_of_the_cache_come_from_one_secret(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = chart.template_valid({"cache": {"keys": {"existingSecret": "cache-keys"}}}, version)
    found = {}
    for service in ("cache", "scheduler", "denoiser", "gateway"):
        for variable in container(workloads(manifests)[service])["env"]:
            if variable["name"].endswith("_KEY") and "_S3_" not in variable["name"]:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "cache-keys"
                assert reference.get("optional", False) == (reference["key"] in ("operator", "gateway"))
                found[variable["name"]] = reference["key"]
    assert found == {
        "CHORUS_CACHE_SCHEDULER_KEY": "scheduler",
        "CHORUS_CACHE_DENOISER_KEY": "denoiser",
        "CHORUS_CACHE_GATEWAY_KEY": "gateway",
        "CHORUS_CACHE_OPERATOR_KEY": "operator",
        "CHORUS_SCHEDULER_CACHE_KEY": "scheduler",
        "CHORUS_DENOISER_CACHE_KEY": "denoiser",
        "CHORUS_GATEWAY_CONSOLE_CACHE_KEY": "gateway",
    }


def test_cache_without_keys_serves_the_tenant_of_the_scheduler(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for values, tenant in (({}, "default"), ({"scheduler": {"settings": {"tenant": "studio"}}}, "studio")):
        cache = workloads(chart.template_valid(values, version))["cache"]
        assert load(cache, monkeypatch).keyless_tenants == (tenant,)
