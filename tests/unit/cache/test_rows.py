"""Property tests of the rows in memory: they equal a list that is searched by brute force."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.cache.entries import Entry
from services.cache.index import Selection
from services.cache.rows import Rows, pack, unpack
from tests.contract.samples import entry, unit

TENANTS = ("a", "b")
MODELS = ("one", "two")
NOTHING = [0.0] * 8
WHO = st.tuples(st.sampled_from(TENANTS), st.sampled_from(MODELS), st.integers(0, 80))


def make(tenant: str, model: str, number: int) -> Entry:
    return entry(f"prompt {number}", tenant=tenant, model=model, created_ms=number)


class RowsMachine(RuleBasedStateMachine):
    """Puts and removes rows, more than a group reserves memory for at first."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows()
        self.kept: dict[str, tuple[Entry, Sequence[float]]] = {}

    @rule(who=st.lists(WHO, min_size=1, max_size=40), seed=st.integers(0, 9))
    def put(self, who: list[tuple[str, str, int]], seed: int) -> None:
        for tenant, model, number in who:
            row = dataclasses.replace(make(tenant, model, number), cost_seconds=float(seed))
            self.rows.put(row, unit(seed))
            self.kept[row.entry_id] = row, unit(seed)

    @rule(who=st.lists(WHO, max_size=30))
    def remove(self, who: list[tuple[str, str, int]]) -> None:
        for tenant in TENANTS:
            self.rows.remove(tenant, [make(*each).entry_id for each in who])
        for each in who:
            self.kept.pop(make(*each).entry_id, None)

    @rule(who=WHO)
    def remove_as_another_tenant(self, who: tuple[str, str, int]) -> None:
        self.rows.remove("c", [make(*who).entry_id])

    @rule(who=WHO, seed=st.integers(0, 9), limit=st.integers(1, 20))
    def search(self, who: tuple[str, str, int], seed: int, limit: int) -> None:
        tenant, identity = who[0], make(*who).identity
        hits = self.rows.search(tenant, identity, unit(seed), limit)
        mine = [
            (float(np.dot(vector, unit(seed))), each)
            for each, vector in self.kept.values()
            if (each.tenant, each.identity) == (tenant, identity)
        ]
        best = sorted((score for score, _ in mine), reverse=True)[:limit]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)
        assert {hit.entry.entry_id for hit in hits} <= {each.entry_id for _, each in mine}
        assert all(self.kept[hit.entry.entry_id][0] == hit.entry for hit in hits)

    @rule(who=WHO)
    def get(self, who: tuple[str, str, int]) -> None:
        wanted = make(*who)
        kept = self.kept.get(wanted.entry_id)
        assert self.rows.get(wanted.tenant, wanted.entry_id) == (kept[0] if kept else None)
        assert self.rows.get("c", wanted.entry_id) is None

    @rule(
        tenant=st.sampled_from((*TENANTS, None)),
        model=st.sampled_from((*MODELS, None)),
        end=st.integers(0, 80),
    )
    def select(self, tenant: str | None, model: str | None, end: int) -> None:
        found = self.rows.select(tenant, Selection(model_id=model, created_before_ms=end))
        assert {unpack(row).entry_id for row in found} == {
            each.entry_id
            for each, _ in self.kept.values()
            if tenant in (None, each.tenant) and model in (None, each.model_id) and each.created_ms < end
        }

    @invariant()
    def counts(self) -> None:
        assert len(self.rows) == len(self.kept)


TestRows = RowsMachine.TestCase


@given(st.text(max_size=50), st.integers(0, 2**64 - 1))
def test_packed_entries_are_restored(prompt: str, seed: int) -> None:
    row = entry(prompt, seed=seed)
    assert unpack(pack(row)) == row


def test_zero_vector_is_found_without_a_score() -> None:
    rows, row = Rows(), entry()
    rows.put(row, NOTHING)
    assert [(hit.entry, hit.score) for hit in rows.search(row.tenant, row.identity, [0.0] * 8, 1)] == [
        (row, 0)
    ]
