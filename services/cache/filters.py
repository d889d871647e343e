"""Filters of the vector index."""

from __future__ import annotations

from collections.abc import Sequence

from services.cache.entries import PLAIN_TEXT
from services.cache.index import Selection


def make_filter(
    tenant: str, selection: Selection | None = None, entry_ids: Sequence[str] | None = None
) -> str:
    """Builds a filter of the index, from the tenant and the requested fields. Every filter is built here.

    Milvus Lite does not support filter templates, so values are part of the text. Raises ValueError for a
    value that could be parsed as more than a value.
    """
    chosen = selection or Selection()
    terms = [f"tenant == {_literal(tenant)}"]
    for field, value in (
        ("entry_id", chosen.entry_id),
        ("identity", chosen.identity),
        ("model_id", chosen.model_id),
    ):
        if value is not None:
            terms.append(f"{field} == {_literal(value)}")
    if chosen.created_before_ms is not None:
        terms.append(f"created_ms < {int(chosen.created_before_ms)}")
    if chosen.alive_at_ms is not None:
        terms.append(f"(expires_ms == 0 or expires_ms > {int(chosen.alive_at_ms)})")
    if entry_ids is not None:
        terms.append(f"entry_id in [{', '.join(_literal(each) for each in entry_ids)}]")
    return " and ".join(terms)


def _literal(value: str) -> str:
    if not PLAIN_TEXT.fullmatch(value):
        raise ValueError(f"{value!r} is not allowed in a filter")
    return f'"{value}"'
