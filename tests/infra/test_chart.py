"""Verifies the rendered Helm chart: manifests, rejected values, hardening, agreement with the services."""

from __future__ import annotations

import json
import math
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.infra.manifests import (
    CHART,
    GRPC_SERVICES,
    INSTALLATIONS,
    KUBERNETES,
    SERVICES,
    Chart,
    Manifest,
    component,
    container,
    environment,
    images,
    pinned,
    pod_spec,
    ports,
    proto_services,
    select_kinds,
    workloads,
)


@pytest.mark.parametrize("values", INSTALLATIONS.values(), ids=INSTALLATIONS)
def test_chart_passes_lint(chart: Chart, values: dict[str, Any]) -> None:
    done = chart.run("lint --strict", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_match_the_schemas_of_kubernetes(rendered: dict[str, list[Manifest]], version: str) -> None:
    distinct = {json.dumps(found, sort_keys=True) for manifests in rendered.values() for found in manifests}
    for text in distinct:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


def test_every_service_has_deployment_service_and_budget(manifests: list[Manifest]) -> None:
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        assert set(SERVICES) <= set(select_kinds(manifests, kind)), kind
    names = [(found["kind"], found["metadata"]["name"]) for found in manifests]
    assert len(names) == len(set(names))


def test_bundled_components_can_be_disabled(rendered: dict[str, list[Manifest]]) -> None:
    def bundled_components(installation: str) -> set[str]:
        return set(workloads(rendered[installation])) - set(SERVICES)

    assert bundled_components("defaults") == {"milvus", "minio", "collector", "jaeger"}
    assert bundled_components("external stores") == set()
    assert bundled_components("own trace store") == {"milvus", "minio", "collector"}
    assert bundled_components("blobs in a directory, no telemetry") == {"milvus"}


def test_names_do_not_repeat_the_release(chart: Chart) -> None:
    names = {found["metadata"]["name"] for found in chart.template({}, release="chorus")}
    assert "chorus-cache" in names
    assert not any("chorus-chorus" in name for name in names)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cach": {}}, "cach"),
        ({"cache": {"settings": {"drain_second": 3}}}, "drain_second"),
        ({"cache": {"settings": {"port": 1}}}, "port"),
        ({"scheduler": {"replicas": 2}}, "replicas"),
        ({"cache": {"blobs": "tape"}}, "cache.blobs"),
        ({"denoiser": {"gpu": {"count": 0}}}, "denoiser.gpu.count"),
        ({"minio": {"image": "minio/minio:latest"}}, "minio.image"),
        ({"minio": {"image": "minio/minio"}}, "minio.image"),
        ({"telemetry": {"sampleRatio": 2}}, "telemetry.sampleRatio"),
        ({"objectStore": {"existingSecret": ""}}, "objectStore.existingSecret"),
        ({"milvus": {"enabled": False}}, "milvus.external.uri"),
        ({"milvus": {"enabled": False, "external": {"uri": "http://m:19530"}}}, "milvus.external.peers"),
        ({"minio": {"enabled": False}}, "objectStore.external.endpoint"),
        (
            {"minio": {"enabled": False}, "objectStore": {"external": {"endpoint": "s"}}},
            "objectStore.external.peers",
        ),
        ({"collector": {"enabled": False}}, "telemetry.endpoint"),
        ({"jaeger": {"enabled": False}}, "collector.endpoint"),
        ({"metrics": {"port": 7402}}, "metrics.port"),
        ({"metrics": {"enabled": True}}, "metrics.scrapers"),
        ({"telemetry": {"metrics": True}}, "metrics.scrapers"),
        ({"telemetry": {"metrics": True, "enabled": False}}, "telemetry.enabled"),
        ({"metrics": {"podMonitor": {"enabled": True}}}, "metrics.enabled"),
    ],
)
def test_invalid_values_are_rejected_by_name(chart: Chart, values: dict[str, Any], named: str) -> None:
    assert named in chart.render_invalid(values)


def test_values_and_schema_have_the_same_keys() -> None:
    """Verifies that no value is missing in the schema, and no option is missing in the values."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(value: Any, rule: dict[str, Any], path: str) -> None:
        while "$ref" in rule:
            rule = schema["definitions"][rule["$ref"].rpartition("/")[2]]
        if "properties" not in rule or not isinstance(value, dict):
            return
        assert set(value) <= set(rule["properties"]), path
        if not path.endswith((".settings", ".resources", "SecurityContext")):
            assert set(rule["properties"]) - {"global"} == set(value), path
        for key, inner in value.items():
            compare(inner, rule["properties"][key], f"{path}.{key}")

    compare(values, schema, "")


def test_images_are_pinned(manifests: list[Manifest]) -> None:
    found = sorted(images(manifests))
    assert len(found) == len(workloads(manifests))
    assert [image for image in found if not pinned(image)] == []


def test_probes_use_the_name_and_port_of_the_service(manifests: list[Manifest]) -> None:
    known = proto_services()
    for service in GRPC_SERVICES:
        workload = workloads(manifests)[service]
        port = ports(workload)["grpc"]
        assert environment(workload)[f"CHORUS_{service.upper()}_PORT"] == str(port)
        expected = {"port": port, "service": f"chorus.{service}.v1.{service.title()}Service"}
        assert expected["service"] in known
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container(workload)[probe]["grpc"] == expected
    gateway = workloads(manifests)["gateway"]
    assert environment(gateway)["CHORUS_GATEWAY_PORT"] == str(ports(gateway)["http"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        expected = {"path": "/health", "port": ports(gateway)["http"], "scheme": "HTTP"}
        assert container(gateway)[probe]["httpGet"] == expected


def test_services_target_open_ports(manifests: list[Manifest]) -> None:
    for name, found in select_kinds(manifests, "Service").items():
        workload = workloads(manifests)[name]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert found["spec"]["selector"].items() <= labels.items()
        for port in found["spec"]["ports"]:
            assert ports(workload)[port["targetPort"]] == port["port"]


def test_targets_are_services_of_the_release(manifests: list[Manifest]) -> None:
    reachable = {
        f"{found['metadata']['name']}:{port['port']}"
        for found in select_kinds(manifests, "Service").values()
        for port in found["spec"]["ports"]
    }
    seen = set()
    for workload in workloads(manifests).values():
        for name, value in environment(workload).items():
            inside = value.removeprefix("http://").removeprefix("dns:///")
            if inside.startswith("demo-"):
                assert inside in reachable, name
                seen.add(name)
    assert {
        "CHORUS_SCHEDULER_EMBEDDER_TARGET",
        "CHORUS_SCHEDULER_CACHE_TARGET",
        "CHORUS_SCHEDULER_DENOISER_TARGET",
        "CHORUS_DENOISER_CACHE_TARGET",
        "CHORUS_GATEWAY_SCHEDULER_TARGET",
    } <= seen


def test_probes_and_grace_period_cover_start_and_drain(manifests: list[Manifest]) -> None:
    for service in SERVICES:
        workload = workloads(manifests)[service]
        variables = environment(workload)
        drain = float(variables[f"CHORUS_{service.upper()}_DRAIN_SECONDS"])
        startup = float(variables[f"CHORUS_{service.upper()}_STARTUP_SECONDS"])
        assert pod_spec(workload)["terminationGracePeriodSeconds"] >= math.ceil(drain) + 5
        probe = container(workload)["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] > startup
        assert probe.get("initialDelaySeconds", 0) == 0


def test_pods_have_no_privileges(manifests: list[Manifest]) -> None:
    for name, workload in workloads(manifests).items():
        pod, inner = pod_spec(workload), container(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        # Otherwise the cluster sets CHORUS_CACHE_PORT=tcp://… for a service named chorus-cache.
        assert pod["enableServiceLinks"] is False
        assert inner["securityContext"]["allowPrivilegeEscalation"] is False
        assert inner["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert inner["securityContext"]["readOnlyRootFilesystem"] is (name != "milvus")
        assert inner["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in inner["resources"]["limits"]


def test_writable_paths_are_mounted(manifests: list[Manifest]) -> None:
    for service in SERVICES:
        workload = workloads(manifests)[service]
        mounts = [
            mount["mountPath"] for mount in container(workload)["volumeMounts"] if not mount.get("readOnly")
        ]
        assert "/tmp" in mounts
        for name, value in environment(workload).items():
            if name.endswith(("_DIR", "_DATABASE")):
                assert any(value.startswith(f"{mount}/") for mount in mounts), name


def test_single_writers_have_one_pod(manifests: list[Manifest]) -> None:
    for service in ("scheduler", "cache"):
        spec = workloads(manifests)[service]["spec"]
        assert spec["replicas"] == 1
        assert spec["strategy"] == {"type": "Recreate"}
    claims = select_kinds(manifests, "PersistentVolumeClaim")
    for service, claim in claims.items():
        volumes = pod_spec(workloads(manifests)[service])["volumes"]
        named = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes
            if "persistentVolumeClaim" in volume
        ]
        assert named == [claim["metadata"]["name"]]


def test_disruption_budgets_select_their_pods(manifests: list[Manifest]) -> None:
    for service, budget in select_kinds(manifests, "PodDisruptionBudget").items():
        labels = workloads(manifests)[service]["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_chart_contains_no_secret(manifests: list[Manifest]) -> None:
    assert not [found for found in manifests if found["kind"] == "Secret"]
    for workload in workloads(manifests).values():
        for entry in container(workload).get("env", []):
            if entry["name"].endswith(("_KEY", "_TOKEN", "_USER", "_PASSWORD")):
                assert "secretKeyRef" in entry["valueFrom"], f"{component(workload)} {entry['name']}"


def test_gpu_values_reach_denoiser_and_scheduler(rendered: dict[str, list[Manifest]]) -> None:
    workload = workloads(rendered["GPUs"])["denoiser"]
    pod, inner = pod_spec(workload), container(workload)
    assert inner["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert inner["resources"]["limits"]["memory"]
    assert environment(workload)["CHORUS_DENOISER_DEVICE"] == "cuda"
    assert pod["runtimeClassName"] == "nvidia"
    assert {found["key"] for found in pod["tolerations"]} == {"dedicated", "nvidia.com/gpu"}
    assert workload["spec"]["replicas"] == 3
    # A surge would wait for a spare GPU.
    assert workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    plain = workloads(rendered["defaults"])["denoiser"]
    assert environment(plain)["CHORUS_DENOISER_DEVICE"] == "cpu"
    assert "nvidia.com/gpu" not in container(plain)["resources"]["limits"]
    assert "tolerations" not in pod_spec(plain)


def test_each_pod_of_the_headless_service_is_a_denoiser(rendered: dict[str, list[Manifest]]) -> None:
    for manifests in rendered.values():
        service = select_kinds(manifests, "Service")["denoiser"]
        assert service["spec"]["clusterIP"] == "None"
        variables = environment(workloads(manifests)["scheduler"])
        name = service["metadata"]["name"]
        assert variables["CHORUS_SCHEDULER_DENOISER_TARGET"] == f"dns:///{name}:7403"
        assert "CHORUS_SCHEDULER_CONCURRENCY" not in variables, "the number for one denoiser"


def test_external_stores_reach_the_cache(rendered: dict[str, list[Manifest]]) -> None:
    variables = environment(workloads(rendered["external stores"])["cache"])
    assert variables["CHORUS_CACHE_MILVUS_URI"] == "https://milvus.example:19531"
    assert "CHORUS_CACHE_MILVUS_TOKEN" in variables
    assert variables["CHORUS_CACHE_S3_ENDPOINT"] == "s3.example"
    assert variables["CHORUS_CACHE_S3_SECURE"] == "true"
    assert variables["CHORUS_CACHE_S3_BUCKET"] == "latents"
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otlp.example:4317"
    assert variables["OTEL_TRACES_SAMPLER_ARG"] == "0.25"


def test_disabled_telemetry_sets_no_variable(rendered: dict[str, list[Manifest]]) -> None:
    for workload in workloads(rendered["blobs in a directory, no telemetry"]).values():
        assert not [name for name in environment(workload) if name.startswith("OTEL_")]
