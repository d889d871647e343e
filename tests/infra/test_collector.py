"""Verifies the collector's configuration: its components are declared, used, and part of the image."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.infra.manifests import (
    CHART,
    ROOT,
    Manifest,
    compose,
    container,
    environment,
    ports,
    select_kinds,
    workloads,
)

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "infra/otel/collector.yaml").read_text())
# Permitted components of the image otel/opentelemetry-collector (the core distribution).
IMAGE_COMPONENTS = {
    "receivers": {"otlp"},
    "processors": {"memory_limiter", "batch"},
    "exporters": {"otlp_grpc", "otlp_http", "debug", "prometheus"},
    "extensions": {"health_check"},
}


def test_pipelines_use_exactly_the_declared_components() -> None:
    pipelines = CONFIG["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        named = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert named == set(CONFIG[kind])
    assert set(CONFIG["service"]["extensions"]) == set(CONFIG["extensions"])


def test_components_are_in_the_image() -> None:
    for kind, known in IMAGE_COMPONENTS.items():
        assert {name.partition("/")[0] for name in CONFIG[kind]} <= known
    assert set(CONFIG) == {*IMAGE_COMPONENTS, "service"}


def test_pipeline_limits_memory_first_and_batches_last() -> None:
    for pipeline in CONFIG["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"
    limiter, batch = CONFIG["processors"]["memory_limiter"], CONFIG["processors"]["batch"]
    assert 0 < limiter["spike_limit_percentage"] < limiter["limit_percentage"] < 100
    assert batch["send_batch_max_size"] >= batch["send_batch_size"]


def test_chart_and_compose_mount_the_configuration(defaults: list[Manifest]) -> None:
    assert (
        yaml.safe_load(select_kinds(defaults, "ConfigMap")["collector"]["data"]["collector.yaml"]) == CONFIG
    )
    (volume,) = compose()["services"]["collector"]["volumes"]
    source, target, _ = volume.split(":")
    assert (ROOT / "infra/compose" / source).resolve() == (ROOT / "infra/otel/collector.yaml").resolve()
    assert compose()["services"]["collector"]["command"][-1] == target
    workload = workloads(defaults)["collector"]
    (mount,) = container(workload)["volumeMounts"]
    assert container(workload)["args"][-1] == f"{mount['mountPath']}/collector.yaml"


def test_ports_and_variables_agree_with_the_configuration(defaults: list[Manifest]) -> None:
    text = (CHART / "files/collector.yaml").read_text()
    wanted = set(re.findall(r"\$\{env:(\w+)\}", text))
    workload = workloads(defaults)["collector"]
    assert wanted == set(environment(workload))
    assert wanted == set(compose()["services"]["collector"]["environment"])
    listening = {
        int(CONFIG["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]),
        int(CONFIG["extensions"]["health_check"]["endpoint"].rpartition(":")[2]),
        int(CONFIG["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]),
    }
    assert listening == set(ports(workload).values())
