"""Verifies the values of the chart for API keys, TLS and webhooks of the scheduler, and what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.scheduler.settings import SchedulerSettings
from tests.infra.manifests import (
    KUBERNETES,
    Chart,
    Manifest,
    container,
    environment,
    pod_spec,
    ports,
    select_kinds,
    workloads,
)
from tests.tls import make_certificates

pytestmark = pytest.mark.fault("helm")

KEYS = {
    "scheduler": {"apiKeys": {"existingSecret": "api-keys"}},
    "cache": {"keys": {"existingSecret": "cache-keys"}},
}


def load(scheduler: Manifest, monkeypatch: pytest.MonkeyPatch, paths: dict[str, Path]) -> SchedulerSettings:
    """Loads the settings of the scheduler's container, with other files in place of mounted ones."""
    for name, value in environment(scheduler).items():
        monkeypatch.setenv(name, str(paths.get(value, value)))
    return SchedulerSettings()


def mounted(scheduler: Manifest) -> dict[str, dict[str, Any]]:
    """Returns the volume at each read-only path."""
    volumes = {volume["name"]: volume for volume in pod_spec(scheduler)["volumes"]}
    mounts = container(scheduler)["volumeMounts"]
    assert not any("subPath" in mount for mount in mounts), "such a file does not follow its secret"
    return {mount["mountPath"]: volumes[mount["name"]] for mount in mounts if mount.get("readOnly")}


@pytest.mark.parametrize("version", KUBERNETES)
def test_keys_are_mounted_from_their_secret(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = workloads(chart.template_valid(KEYS, version))["scheduler"]
    settings = load(scheduler, monkeypatch, {})
    assert settings.api_keys == "/etc/chorus/api-keys/keys.json"
    assert not settings.trusted_network
    assert mounted(scheduler)["/etc/chorus/api-keys"]["secret"] == {"secretName": "api-keys"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_secrets_of_webhooks_are_mounted_and_receivers_can_be_reached(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    webhooks = {"existingSecret": "signing", "ca": {"existingConfigMap": "receivers"}}
    allowed = {"webhook_allowed": "10.1.0.0/16,hooks.internal"}
    values = {"scheduler": {"webhooks": webhooks, "settings": allowed}}
    manifests = chart.template_valid(values, version)
    scheduler = workloads(manifests)["scheduler"]
    files = make_certificates(tmp_path)
    settings = load(scheduler, monkeypatch, {"/etc/chorus/webhook-ca/ca.crt": files.ca})
    assert settings.webhook_secrets == "/etc/chorus/webhook-secrets/secrets.json"
    assert settings.webhook_ca == str(files.ca)
    assert settings.webhook_allowed == ("10.1.0.0/16", "hooks.internal")
    assert mounted(scheduler)["/etc/chorus/webhook-secrets"]["secret"] == {"secretName": "signing"}

    def open_blocks(found: list[Manifest]) -> set[str]:
        policy = select_kinds(found, "NetworkPolicy")["scheduler"]
        return {
            peer["ipBlock"]["cidr"]
            for rule in policy["spec"]["egress"]
            if {"protocol": "TCP", "port": 443} in rule["ports"]
            for peer in rule["to"]
            if "ipBlock" in peer
        }

    assert open_blocks(manifests) == {"0.0.0.0/0", "::/0"}
    assert open_blocks(chart.template({})) == set(), "without secrets no webhook is sent"


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("source", ["existingSecret", "existingConfigMap"])
def test_certificates_are_mounted_and_probes_use_the_health_port(
    chart: Chart, version: str, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tls = {"existingSecret": "certificate", "clientCa": {source: "clients", "key": "root.pem"}}
    scheduler = workloads(chart.template_valid({"scheduler": {"tls": tls}}, version))["scheduler"]
    files = make_certificates(tmp_path)
    paths = {
        "/etc/chorus/tls/tls.crt": files.certificate,
        "/etc/chorus/tls/tls.key": files.key,
        "/etc/chorus/client-ca/ca.crt": files.ca,
    }
    settings = load(scheduler, monkeypatch, paths)
    assert settings.tls is not None
    assert settings.tls.client_ca
    volumes = mounted(scheduler)
    assert volumes["/etc/chorus/tls"]["secret"] == {"secretName": "certificate"}
    source_of_ca = volumes["/etc/chorus/client-ca"]
    assert "clients" in (source_of_ca.get("secret") or source_of_ca["configMap"]).values()
    assert ports(scheduler)["health"] == settings.health_port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(scheduler)[probe]["grpc"]["port"] == settings.health_port


def test_network_of_the_cluster_is_trusted_unless_the_values_say_otherwise(
    chart: Chart, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(workloads(chart.template({}))["scheduler"], monkeypatch, {}).trusted_network
    values = {"scheduler": {"settings": {"trusted_network": False}}}
    variables = environment(workloads(chart.template(values))["scheduler"])
    assert variables["CHORUS_SCHEDULER_TRUSTED_NETWORK"] == "false"
    assert "CHORUS_SCHEDULER_API_KEYS" not in variables


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scheduler": {"service": {"type": "LoadBalancer"}}}, "scheduler.apiKeys.existingSecret"),
        ({"scheduler": {"service": {"type": "NodePort"}}}, "scheduler.settings.trusted_network"),
        ({"scheduler": KEYS["scheduler"]}, "cache.keys.existingSecret"),
        (
            {"scheduler": {"webhooks": {"existingSecret": "signing", "peers": []}}},
            "scheduler.webhooks.peers",
        ),
        ({"scheduler": {"webhooks": {"ca": {"existingSecret": "ca"}}}}, "scheduler.webhooks.existingSecret"),
        ({"scheduler": {"tls": {"clientCa": {"existingSecret": "ca"}}}}, "scheduler.tls.existingSecret"),
        (
            {
                "scheduler": {
                    "tls": {
                        "existingSecret": "tls",
                        "clientCa": {"existingSecret": "ca", "existingConfigMap": "ca"},
                    }
                }
            },
            "scheduler.tls.clientCa",
        ),
    ],
)
def test_values_without_what_they_need_are_rejected(chart: Chart, values: dict[str, Any], named: str) -> None:
    assert named in chart.render_invalid(values)


def test_public_service_is_accepted_with_keys_or_on_a_trusted_network(chart: Chart) -> None:
    public = {"service": {"type": "LoadBalancer"}}
    chart.template({**KEYS, "scheduler": {**KEYS["scheduler"], **public}})
    chart.template({"scheduler": {**public, "settings": {"trusted_network": True}}})
