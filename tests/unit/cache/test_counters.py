"""Verifies the counters of tenants: what is exported has a bounded number of labels, and never falls."""

from __future__ import annotations

import pytest
from chorus_rpc.errors import INTERNAL

from services.cache import counters
from services.cache.counters import TenantCounters
from services.runtime.metrics import OTHER, BoundedLabels


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_TENANTS", 4)
    monkeypatch.setattr(counters, "TENANT_LABELS", BoundedLabels(2))


def test_tenants_beyond_the_labels_are_counted_together() -> None:
    tenants = TenantCounters()
    for number, tenant in enumerate("abcd", 1):
        tenants[tenant].fetches += number
    found = tenants.by_label()
    assert {label: each.fetches for label, each in found.items()} == {"a": 1, "b": 2, OTHER: 3 + 4}


def test_no_sum_falls_when_tenants_are_dropped() -> None:
    tenants = TenantCounters()
    former: dict[str, float] = {}
    for tenant in ("a", "b", "c", "d", "e", "a", "f", "g", "h", "b"):
        tenants[tenant].evictions["capacity"] += 1
        tenants[tenant].rejected_admissions[INTERNAL] += 1
        tenants[tenant].saved_seconds += 0.5
        sums = {label: each.saved_seconds for label, each in tenants.by_label().items()}
        assert sums.keys() >= former.keys()
        assert all(sums[label] >= value for label, value in former.items())
        former = sums
    assert len(tenants) == 4
    found = tenants.by_label()
    assert set(found) == {"a", "b", OTHER}
    assert (found["a"].saved_seconds, found[OTHER].saved_seconds) == (1.0, 3.0)
    assert sum(each.evictions["capacity"] for each in found.values()) == 10
    assert sum(each.rejected_admissions[INTERNAL] for each in found.values()) == 10
    assert tenants["f"].saved_seconds == 0.5
