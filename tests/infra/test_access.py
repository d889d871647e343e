"""Verifies the values of the chart for API keys, TLS and webhooks of the scheduler, and what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.gateway.settings import GatewaySettings
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
    scheduler = workloads(
        chart.template_valid({"scheduler": {"tls": tls}, "gateway": {"replicas": 0}}, version)
    )["scheduler"]
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


GATEWAY_TLS = {"gateway": {"tls": {"existingSecret": "gateway-tls"}}}


def load_gateway(
    gateway: Manifest, monkeypatch: pytest.MonkeyPatch, paths: dict[str, Path]
) -> GatewaySettings:
    """Loads the settings of the gateway's container, with other files in place of mounted ones."""
    for name, value in environment(gateway).items():
        monkeypatch.setenv(name, str(paths.get(value, value)))
    return GatewaySettings()


@pytest.mark.parametrize("version", KUBERNETES)
def test_gateway_has_the_schedulers_keys_and_tls_of_its_own(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = make_certificates(tmp_path)
    gateway = workloads(chart.template_valid({**KEYS, **GATEWAY_TLS}, version))["gateway"]
    paths = {"/etc/chorus/tls/tls.crt": files.certificate, "/etc/chorus/tls/tls.key": files.key}
    settings = load_gateway(gateway, monkeypatch, paths)
    assert settings.require_keys
    assert not settings.trusted_network, "keys and TLS suffice"
    assert mounted(gateway)["/etc/chorus/tls"]["secret"] == {"secretName": "gateway-tls"}
    probe = container(gateway)["readinessProbe"]["httpGet"]
    assert (probe["scheme"], probe["port"]) == ("HTTPS", ports(gateway)["http"])


def find_variables(workload: Manifest) -> dict[str, Any]:
    return {each["name"]: each for each in container(workload)["env"]}


@pytest.mark.parametrize("version", KUBERNETES)
def test_console_has_its_secret_and_reaches_the_cache(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "scheduler": {"settings": {"tenant": "studio"}},
        "cache": KEYS["cache"],
        "gateway": {"replicas": 2, "console": {"existingSecret": "console"}},
    }
    found = workloads(chart.template_valid(values, version))
    variables = find_variables(found["gateway"])
    secret = variables["CHORUS_GATEWAY_CONSOLE_SECRET"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "console", "key": "secret"}
    assert (
        variables["CHORUS_GATEWAY_CONSOLE_CACHE_KEY"]["valueFrom"]
        == (find_variables(found["cache"])["CHORUS_CACHE_GATEWAY_KEY"]["valueFrom"])
    )
    settings = load_gateway(found["gateway"], monkeypatch, {})
    assert settings.console_cache_target == "demo-chorus-cache:7402"
    assert settings.console_cache_tenant == "studio"


@pytest.mark.parametrize(
    "gateway", [{"console": {"cache": False}}, {"replicas": 2, "settings": {"console": False}}]
)
def test_gateway_does_not_reach_the_cache_without_that_page(chart: Chart, gateway: dict[str, Any]) -> None:
    manifests = chart.template({**KEYS, "gateway": gateway})
    found = workloads(manifests)
    assert not [name for name in find_variables(found["gateway"]) if "_CACHE_" in name]
    policies = select_kinds(manifests, "NetworkPolicy")
    rules = (*policies["gateway"]["spec"]["egress"], *policies["cache"]["spec"]["ingress"])
    components = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in rules
        if any(port["port"] == 7402 for port in rule["ports"])
        for peer in (*rule.get("to", ()), *rule.get("from", ()))
    }
    assert components == {"scheduler", "denoiser"}


def test_gateway_connects_to_a_scheduler_with_tls(
    chart: Chart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = make_certificates(tmp_path)
    values = {
        "scheduler": {
            "tls": {"existingSecret": "tls", "clientCa": {"existingConfigMap": "clients", "key": "ca.crt"}}
        },
        "gateway": {
            "scheduler": {"ca": {"existingSecret": "authority"}, "certificateSecret": "own-certificate"}
        },
    }
    gateway = workloads(chart.template_valid(values, KUBERNETES[-1]))["gateway"]
    paths = {
        "/etc/chorus/scheduler-ca/ca.crt": files.ca,
        "/etc/chorus/scheduler-certificate/tls.crt": files.certificate,
        "/etc/chorus/scheduler-certificate/tls.key": files.key,
    }
    settings = load_gateway(gateway, monkeypatch, paths)
    assert (settings.scheduler_tls, settings.scheduler_ca) == (True, str(files.ca))
    assert settings.scheduler_certificate == str(files.certificate)
    assert not settings.allow_plaintext_keys
    volumes = mounted(gateway)
    assert volumes["/etc/chorus/scheduler-ca"]["secret"]["secretName"] == "authority"
    assert volumes["/etc/chorus/scheduler-certificate"]["secret"] == {"secretName": "own-certificate"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gateway": {"service": {"type": "LoadBalancer"}}}, "gateway.service.type"),
        ({**KEYS, "gateway": {"service": {"type": "LoadBalancer"}}}, "gateway.tls.existingSecret"),
        ({"gateway": {"scheduler": {"ca": {"existingSecret": "x"}}}}, "gateway.scheduler.ca"),
        ({"gateway": {"scheduler": {"certificateSecret": "x"}}}, "gateway.scheduler.certificateSecret"),
        (
            {"scheduler": {"tls": {"existingSecret": "t", "clientCa": {"existingSecret": "c"}}}},
            "gateway.scheduler.certificateSecret",
        ),
        ({"gateway": {"replicas": 2}}, "gateway.console.existingSecret"),
        (
            {"gateway": {"console": {"existingSecret": "x"}, "settings": {"console": False}}},
            "gateway.console.existingSecret",
        ),
    ],
)
def test_gateway_that_could_not_work_or_is_open_is_rejected(
    chart: Chart, values: dict[str, Any], named: str
) -> None:
    assert named in chart.render_invalid(values)


def test_gateway_of_another_type_is_permitted_with_keys_and_tls_or_by_name(chart: Chart) -> None:
    service = {"service": {"type": "LoadBalancer"}}
    chart.template({**KEYS, "gateway": {**service, **GATEWAY_TLS["gateway"]}})
    chart.template({"gateway": {**service, "settings": {"trusted_network": True}}})
