"""Verifies that the chart opens metrics where the values say so, for the listed scrapers only."""

from __future__ import annotations

from typing import Any

import pytest

from tests.infra.manifests import SERVICES, Chart, Manifest, environment, ports, select_kinds, workloads
from tests.infra.test_network import collect_edges

SCRAPED = "own trace store"
SCRAPER = "outside"


def test_metrics_are_closed_by_default(defaults: list[Manifest]) -> None:
    for service in SERVICES:
        workload = workloads(defaults)[service]
        assert set(ports(workload)) == {"http" if service == "gateway" else "grpc"}
        assert environment(workload)["OTEL_METRICS_EXPORTER"] == "none"
        assert not [name for name in environment(workload) if "_METRICS_P" in name]
    assert not select_kinds(defaults, "PodMonitor")


def test_metrics_port_of_each_service_is_open(rendered: dict[str, list[Manifest]]) -> None:
    for service in SERVICES:
        workload = workloads(rendered[SCRAPED])[service]
        prefix = f"CHORUS_{service.upper()}_METRICS"
        assert ports(workload)["metrics"] == 9100
        assert environment(workload)[f"{prefix}_PORT"] == "9100"
        assert environment(workload)[f"{prefix}_HOST"] == "0.0.0.0"
        assert environment(workload)["OTEL_METRICS_EXPORTER"] == "otlp"


def test_policies_let_scrapers_in(rendered: dict[str, list[Manifest]]) -> None:
    edges = collect_edges(rendered[SCRAPED])
    assert {(SCRAPER, service, 9100) for service in SERVICES} <= edges
    assert (SCRAPER, "collector", 8889) in edges
    assert (SCRAPER, "collector", 4317) not in edges
    assert not [edge for edge in collect_edges(rendered["defaults"]) if edge[2] in (9100, 9464, 8889)]


@pytest.mark.parametrize(
    "values", [{"networkPolicy": {"enabled": False}}, {"metrics": {"scrapers": [{"podSelector": {}}]}}]
)
def test_pod_monitor_selects_the_pods_of_the_services(chart: Chart, values: dict[str, Any]) -> None:
    monitor = {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}
    metrics = {"enabled": True, "podMonitor": monitor, **values.get("metrics", {})}
    manifests = chart.template({**values, "metrics": metrics})
    [found] = select_kinds(manifests, "PodMonitor").values()
    assert found["metadata"]["labels"]["release"] == "prometheus"
    [endpoint] = found["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("metrics", "15s")
    selector = found["spec"]["selector"]
    [expression] = selector["matchExpressions"]
    selected = set()
    for name, workload in workloads(manifests).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if selector["matchLabels"].items() <= labels.items():
            assert expression["operator"] == "In"
            if labels[expression["key"]] in expression["values"]:
                selected.add(name)
                assert endpoint["port"] in ports(workload)
    assert selected == set(SERVICES)
