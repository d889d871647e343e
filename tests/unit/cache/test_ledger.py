"""Verifies the ledger: the bytes it counts, the order in which it evicts, and which blobs it still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cache.eviction.ledger import EntryKey, Ledger
from services.cache.eviction.priorities import PRIORITIES, Held, Priority, fifo, lcbfu, lru, worth

HELD = Held(size_bytes=1_000_000, cost_seconds=10.0, created_ms=0, used_ms=0)


def key(name: str, tenant: str = "acme") -> EntryKey:
    return EntryKey("space", tenant, name)


def evicted(ledger: Ledger, tenant: str = "acme") -> list[str]:
    """Evicts every entry of a tenant; returns the ids in order."""
    names = []
    while found := ledger.evict(tenant):
        names.append(found[0].entry_id)
    return names


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ({"cost_seconds": 1.0}, {}),
        ({"size_bytes": 2_000_000}, {}),
        ({}, {"hits": 1, "saved_seconds": 5.0}),
        ({"similarity": 0.99}, {"similarity": 0.5}),
        ({"seed_drawn": True}, {}),
        ({"seed_drawn": True, "from_hit": True}, {"seed_drawn": True}),
    ],
    ids=["cheap", "large", "unused", "duplicate", "seed drawn", "result of a hit with a drawn seed"],
)
def test_entry_that_saves_less_per_byte_is_evicted_first(
    lower: Mapping[str, Any], higher: Mapping[str, Any]
) -> None:
    ledger = Ledger()
    ledger.add(key("higher"), replace(HELD, **higher))
    ledger.add(key("lower"), replace(HELD, **lower))
    assert evicted(ledger) == ["lower", "higher"]


def test_entry_that_is_no_longer_used_is_evicted_before_new_ones_at_last() -> None:
    ledger = Ledger()
    ledger.add(key("once popular"), HELD)
    for _ in range(3):
        ledger.use(key("once popular"), 1, saved_seconds=10.0)
    turnover = []
    for number in range(30):
        ledger.add(key(f"new {number}"), HELD)
        found = ledger.evict("acme")
        assert found is not None
        turnover.append(found[0].entry_id)
    assert turnover[0] == "new 0"
    assert "once popular" in turnover


@pytest.mark.parametrize(
    ("priority", "order"),
    [(lru, ["b", "c", "a"]), (fifo, ["a", "b", "c"]), (lcbfu, ["c", "b", "a"])],
)
def test_rules_for_comparison_follow_their_definitions(priority: Priority, order: list[str]) -> None:
    ledger = Ledger(priority)
    for number, name in enumerate("abc"):
        ledger.add(key(name), replace(HELD, created_ms=number, used_ms=number, cost_seconds=3.0 - number))
    ledger.use(key("b"), 3, 1.0)
    ledger.use(key("c"), 4, 1.0)
    for _ in range(2):
        ledger.use(key("a"), 5, 1.0)
    assert evicted(ledger) == order


def test_entry_that_is_being_read_is_kept() -> None:
    ledger = Ledger()
    ledger.add(key("read"), replace(HELD, cost_seconds=1.0))
    ledger.add(key("idle"), HELD)
    found = ledger.evict("acme", busy={key("read")})
    assert found is not None
    assert found[0] == key("idle")
    assert ledger.evict("acme", busy={key("read")}) is None
    assert evicted(ledger) == ["read"]


def test_blob_of_two_entries_is_held_until_both_are_gone() -> None:
    ledger = Ledger()
    blob, other = "v1/acme/a.safetensors", "v1/acme/b.safetensors"
    ledger.add(key("one"), HELD, [blob, other])
    ledger.add(key("two"), HELD, [blob])
    ledger.remove(key("one"))
    assert ledger.holds(blob)
    assert not ledger.holds(other)
    ledger.use(key("two"), 1, 1.0)
    ledger.remove(key("two"))
    assert not ledger.holds(blob)


operations = st.lists(
    st.tuples(
        st.sampled_from(["add", "use", "remove", "evict"]),
        st.integers(0, 7),
        st.sampled_from(["acme", "umbrella"]),
        st.integers(1, 50),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.sampled_from(sorted(PRIORITIES)))
def test_bytes_are_those_of_the_entries_held(steps: list[tuple[str, int, str, int]], rule: str) -> None:
    ledger = Ledger(PRIORITIES[rule])
    model: dict[EntryKey, int] = {}
    for now, (operation, name, tenant, size) in enumerate(steps):
        chosen = key(str(name), tenant)
        if operation == "add":
            held = replace(HELD, size_bytes=size, created_ms=now, used_ms=now, pinned=size % 3 == 0)
            ledger.add(chosen, held, [f"blob {name}"])
            model[chosen] = size
        elif operation == "use":
            ledger.use(chosen, now, 1.0)
        elif operation == "remove":
            ledger.remove(chosen)
            model.pop(chosen, None)
        else:
            found = ledger.evict(tenant)
            assert (found is None) == (not any(k.tenant == tenant and b % 3 for k, b in model.items()))
            if found:
                assert model.pop(found[0]) == found[1].size_bytes
        assert set(ledger) == set(model)
        assert ledger.total_bytes == sum(model.values())
        for each in ("acme", "umbrella"):
            sizes = [b for k, b in model.items() if k.tenant == each]
            assert ledger.bytes_of(each) == sum(sizes)
            assert ledger.pinned_bytes(each) == sum(size for size in sizes if size % 3 == 0)
        assert all(ledger.holds(f"blob {each.entry_id}") for each in model)


def test_worth_does_not_depend_on_the_time_of_the_day() -> None:
    assert worth(HELD, 0.0) == worth(replace(HELD, created_ms=10**12, used_ms=10**12), 0.0)
