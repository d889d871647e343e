"""Verifies where the chart has the scheduler store videos: on its volume, or in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.scheduler.settings import SchedulerSettings
from tests.infra.manifests import (
    KUBERNETES,
    Chart,
    container,
    environment,
    pod_spec,
    select_kinds,
    workloads,
)
from tests.tls import make_certificates

pytestmark = pytest.mark.fault("helm")

PEERS: list[dict[str, Any]] = [{"ipBlock": {"cidr": "10.2.0.0/16"}}]
URL = "postgresql://chorus@db.example:6432/chorus"
STORE = {"location": "s3://videos/chorus", "endpoint": "s3.example", "existingSecret": "0123", "peers": PEERS}
DATABASE = {"url": URL, "peers": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}


@pytest.fixture(params=KUBERNETES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scheduler(videos: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"scheduler": {"videos": videos, **values}}


def load(
    workload: dict[str, Any], monkeypatch: pytest.MonkeyPatch, ca: Path | None = None
) -> SchedulerSettings:
    """Loads the settings of the rendered variables; `ca` takes the place of the mounted file."""
    for name, value in environment(workload).items():
        if name.startswith("CHORUS_SCHEDULER_"):
            monkeypatch.setenv(name, str(ca) if ca and name.endswith("_CA") else value)
    return SchedulerSettings()


def test_replicas_with_database_and_object_store_need_no_volume(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = chart.template_valid(scheduler(STORE, replicas=3, database=DATABASE), version)
    workload = workloads(manifests)["scheduler"]
    assert [volume["name"] for volume in pod_spec(workload)["volumes"]] == ["tmp"]
    assert not [name for name in select_kinds(manifests, "PersistentVolumeClaim") if "scheduler" in str(name)]
    settings = load(workload, monkeypatch)
    assert (settings.video_store, settings.s3_endpoint) == ("s3://videos/chorus", "s3.example")
    assert (settings.s3_secure, settings.s3_credentials) == (True, "keys")
    variables = {variable["name"]: variable for variable in container(workload)["env"]}
    for variable, key in (("ACCESS_KEY", "accessKey"), ("SECRET_KEY", "secretKey")):
        source = variables[f"CHORUS_SCHEDULER_S3_{variable}"]["valueFrom"]["secretKeyRef"]
        assert source == {"name": "0123", "key": key}
    policies = select_kinds(manifests, "NetworkPolicy")
    [policy] = [policy for name, policy in policies.items() if "scheduler" in str(name)]
    [rule] = [rule for rule in policy["spec"]["egress"] if rule.get("to") == PEERS]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]


def test_jobs_in_sqlite_keep_the_volume(chart: Chart, version: str) -> None:
    manifests = chart.template_valid(scheduler(STORE), version)
    workload = workloads(manifests)["scheduler"]
    assert "/var/lib/chorus" in [mount["mountPath"] for mount in container(workload)["volumeMounts"]]
    assert "CHORUS_SCHEDULER_VIDEO_DIR" not in environment(workload)


def test_role_and_authority_of_the_object_store(
    chart: Chart, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    videos = {
        **STORE,
        "existingSecret": "",
        "credentials": "role",
        "region": "eu-west-1",
        "stsEndpoint": "https://sts.example/",
        "ca": {"existingConfigMap": "company", "key": "root.pem"},
    }
    egress = [
        {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"protocol": "TCP", "port": 80}]}
    ]
    manifests = chart.template_valid(scheduler(videos, extraEgress=egress), version)
    workload = workloads(manifests)["scheduler"]
    volumes = {volume.pop("name"): volume for volume in pod_spec(workload)["volumes"]}
    items = [{"key": "root.pem", "path": "ca.crt"}]
    assert volumes["videos-ca"] == {"configMap": {"name": "company", "items": items}}
    settings = load(workload, monkeypatch, make_certificates(tmp_path).ca)
    assert (settings.s3_credentials, settings.s3_region) == ("role", "eu-west-1")
    assert settings.s3_sts_endpoint == "https://sts.example/"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (scheduler({**STORE, "endpoint": ""}), "scheduler.videos.endpoint is empty"),
        (scheduler({**STORE, "peers": []}), "scheduler.videos.peers is empty"),
        (scheduler({**STORE, "existingSecret": ""}), "scheduler.videos.existingSecret is empty"),
        (scheduler({**STORE, "location": ""}), "set scheduler.videos.location"),
        (scheduler({**STORE, "credentials": "role"}), "scheduler.extraEgress"),
        (scheduler({**STORE, "secure": False, "ca": {"existingSecret": "a"}}), "scheduler.videos.secure"),
        (scheduler({**STORE, "location": "/videos"}), "scheduler.videos.location"),
        (scheduler({**STORE, "endpoint": "https://s3.example"}), "scheduler.videos.endpoint"),
        (
            scheduler(STORE, database=DATABASE, persistence={"existingClaim": "videos"}),
            "scheduler.persistence.existingClaim has no use",
        ),
    ],
)
def test_contradiction_is_named(chart: Chart, values: dict[str, Any], message: str) -> None:
    assert message in chart.render_invalid(values).replace("/", ".")
