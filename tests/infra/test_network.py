"""Verifies which calls the network policies allow, evaluated as a cluster would enforce them."""

from __future__ import annotations

from typing import Any

from tests.infra.manifests import SERVICES, Manifest, ports, select_kinds, workloads

OUTSIDE = {"example/pod": "of another application"}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    required: dict[str, str] = selector.get("matchLabels", {})
    return required.items() <= labels.items()


def admits(rules: list[dict[str, Any]], side: str, labels: dict[str, str], port: int) -> bool:
    """Returns whether rules allow a pod of the release's namespace on this port."""
    return any(
        any(entry["protocol"] == "TCP" and entry["port"] == port for entry in rule["ports"])
        and any(set(peer) == {"podSelector"} and selects(peer["podSelector"], labels) for peer in rule[side])
        for rule in rules
    )


def collect_edges(manifests: list[Manifest]) -> set[tuple[str, str, int]]:
    """Collects every allowed (from, to, port) among the components and a pod of another application."""
    pods = {
        name: found["spec"]["template"]["metadata"]["labels"] for name, found in workloads(manifests).items()
    }
    policies = select_kinds(manifests, "NetworkPolicy")
    assert set(policies) == set(pods), "every component has a policy"
    for name, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        chosen = {pod for pod, labels in pods.items() if selects(policy["spec"]["podSelector"], labels)}
        assert chosen == {name}
    allowed = set()
    for target in pods:
        for port in ports(workloads(manifests)[target]).values():
            incoming = policies[target]["spec"]["ingress"]
            for source, labels in {**pods, "outside": OUTSIDE}.items():
                sends = source == "outside" or admits(
                    policies[source]["spec"]["egress"], "to", pods[target], port
                )
                if sends and admits(incoming, "from", labels, port):
                    allowed.add((source, target, port))
    return allowed


REQUEST_CALLS = {
    ("outside", "scheduler", 7400),
    ("outside", "gateway", 7404),
    ("gateway", "scheduler", 7400),
    ("scheduler", "embedder", 7401),
    ("scheduler", "cache", 7402),
    ("scheduler", "denoiser", 7403),
    ("denoiser", "cache", 7402),
    ("gateway", "cache", 7402),  # for the console
}
STORES = {("cache", "milvus", 19530), ("cache", "minio", 9000)}
TRACES = {*((service, "collector", 4317) for service in SERVICES), ("collector", "jaeger", 4317)}


def test_policies_allow_only_the_calls_of_a_request(rendered: dict[str, list[Manifest]]) -> None:
    assert collect_edges(rendered["defaults"]) == REQUEST_CALLS | STORES | TRACES


def test_jaeger_is_open_to_listed_clients_only(rendered: dict[str, list[Manifest]]) -> None:
    assert ("outside", "jaeger", 16686) in collect_edges(rendered["GPUs"])
    assert ("outside", "jaeger", 16686) not in collect_edges(rendered["defaults"])


def test_only_the_cache_reaches_external_stores(rendered: dict[str, list[Manifest]]) -> None:
    policies = select_kinds(rendered["external stores"], "NetworkPolicy")
    outgoing = {
        (name, peer["ipBlock"]["cidr"], entry["port"])
        for name, policy in policies.items()
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
        for entry in rule["ports"]
    }
    cidr = "10.1.0.0/16"
    stores = {("cache", cidr, 19531), ("cache", cidr, 443)}
    assert outgoing == stores | {(service, cidr, 4317) for service in SERVICES}


def test_only_the_collector_exports_traces(rendered: dict[str, list[Manifest]]) -> None:
    policies = select_kinds(rendered["own trace store"], "NetworkPolicy")
    outgoing = {
        name
        for name, policy in policies.items()
        if any("ipBlock" in peer for rule in policy["spec"]["egress"] for peer in rule["to"])
    }
    assert outgoing == {"collector"}


def test_only_dns_is_open_to_another_namespace(manifests: list[Manifest]) -> None:
    for policy in select_kinds(manifests, "NetworkPolicy").values():
        for rule in policy["spec"]["egress"]:
            assert rule["to"], "an empty list of peers allows every address"
            if any("namespaceSelector" in peer for peer in rule["to"]):
                assert {entry["port"] for entry in rule["ports"]} == {53}
