"""Verifies the scheduler's database in the chart: SQLite for one replica, PostgreSQL for several."""

from __future__ import annotations

from typing import Any

import pytest

from tests.infra.manifests import KUBERNETES, Chart, container, environment, select_kinds, workloads

PEERS: list[dict[str, Any]] = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
URL = "postgresql://chorus@db.example:6432/chorus?sslmode=verify-full"


@pytest.fixture(params=KUBERNETES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scheduler(replicas: int = 1, claim: str = "", **database: Any) -> dict[str, Any]:
    return {
        "scheduler": {
            "replicas": replicas,
            "persistence": {"existingClaim": claim},
            "database": database,
        }
    }


def test_sqlite_has_one_replica_that_ends_before_the_next_starts(chart: Chart, version: str) -> None:
    spec = workloads(chart.template_valid({}, version))["scheduler"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_replicas_share_a_postgresql_database(chart: Chart, version: str) -> None:
    values = scheduler(2, "videos", url=URL, existingSecret="0123", peers=PEERS)
    manifests = chart.template_valid(values, version)
    workload = workloads(manifests)["scheduler"]
    assert workload["spec"]["replicas"] == 2
    assert "strategy" not in workload["spec"], "the replicas are replaced one after the other"
    assert environment(workload)["CHORUS_SCHEDULER_DATABASE"] == URL
    variables = {variable["name"]: variable for variable in container(workload)["env"]}
    reference = variables["CHORUS_SCHEDULER_DATABASE_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "0123", "key": "password"}
    policies = select_kinds(manifests, "NetworkPolicy")
    [policy] = [policy for name, policy in policies.items() if "scheduler" in str(name)]
    [rule] = [rule for rule in policy["spec"]["egress"] if rule.get("to") == PEERS]
    assert rule["ports"] == [{"protocol": "TCP", "port": 6432}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (scheduler(2, "videos"), "set scheduler.database.url to a PostgreSQL database"),
        (scheduler(2, url=URL, peers=PEERS), "set scheduler.persistence.existingClaim"),
        (scheduler(url=URL), "scheduler.database.peers is empty"),
        (scheduler(existingSecret="s"), "set scheduler.database.url"),
        (scheduler(url="mysql://db/chorus", peers=PEERS), "scheduler.database.url"),
        (scheduler(url="postgresql://a:secret@db/chorus", peers=PEERS), "scheduler.database.url"),
    ],
)
def test_contradiction_is_named(chart: Chart, values: dict[str, Any], message: str) -> None:
    assert message in chart.render_invalid(values).replace("/", ".")
