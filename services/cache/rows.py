"""Rows of one space in memory, with exact search among those of one tenant and identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.cache.entries import Blob, Entry, Uses
from services.cache.index import Hit, Selection

_FIRST = 64  # rows for which a group reserves memory at first; it doubles when they are used


class Rows:
    """Rows and their vectors. Not safe for concurrent use.

    Entries are kept as JSON, which takes a fraction of the memory of the objects.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}  # by tenant and identity
        # By tenant and entry id: the search for another tenant's entry touches nothing of that tenant.
        self._group_of: dict[tuple[str, str], _Group] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Adds or replaces a row."""
        group = self._groups.get((entry.tenant, entry.identity))
        if (former := self._group_of.get((entry.tenant, entry.entry_id))) not in (None, group):
            self.remove(former.tenant, [entry.entry_id])
        if group is None:
            group = self._groups[entry.tenant, entry.identity] = _Group(entry, len(vector))
        group.put(entry, vector)
        self._group_of[entry.tenant, entry.entry_id] = group

    def remove(self, tenant: str, entry_ids: Sequence[str]) -> None:
        """Removes rows of a tenant; others are ignored."""
        for entry_id in self.owned(tenant, entry_ids):
            group = self._group_of.pop((tenant, entry_id))
            group.remove(entry_id)
            if not len(group):
                del self._groups[group.tenant, group.identity]

    def owned(self, tenant: str, entry_ids: Sequence[str]) -> list[str]:
        """Returns those of the ids that are rows of a tenant."""
        return [each for each in dict.fromkeys(entry_ids) if (tenant, each) in self._group_of]

    def get(self, tenant: str, entry_id: str) -> Entry | None:
        """Returns one row of a tenant."""
        group = self._group_of.get((tenant, entry_id))
        return None if group is None else group.get(entry_id)

    def get_vectors(
        self, tenant: str, entry_ids: Sequence[str]
    ) -> dict[str, tuple[Entry, NDArray[np.float32]]]:
        """Returns the rows of a tenant that have these ids, and copies of their vectors."""
        found = {}
        for entry_id in self.owned(tenant, entry_ids):
            group = self._group_of[tenant, entry_id]
            found[entry_id] = group.get(entry_id), group.copy_vector(entry_id)
        return found

    def get_used(self, tenant: str, uses: Mapping[str, Uses]) -> list[tuple[Entry, list[float]]]:
        """Returns the rows of a tenant that have these ids, with the uses added, and their vectors."""
        found = []
        for entry_id in self.owned(tenant, list(uses)):
            group = self._group_of[tenant, entry_id]
            found.append((group.get(entry_id).with_uses(uses[entry_id]), group.vector(entry_id)))
        return found

    def search(
        self, tenant: str, identity: str, vector: Sequence[float], limit: int, now_ms: int = 0
    ) -> list[Hit]:
        """Returns the rows of this tenant and identity nearest to `vector` that have not expired, best
        first."""
        group = self._groups.get((tenant, identity))
        return [] if group is None else group.search(vector, limit, now_ms)

    def select(self, tenant: str | None, selection: Selection) -> list[bytes]:
        """Returns the matching rows of a tenant, or of all, for `unpack`. Takes about 0.1 µs a row."""
        groups = [
            group
            for group in self._groups.values()
            if tenant in (None, group.tenant) and selection.identity in (None, group.identity)
        ]
        return [row for group in groups for row in group.select(selection)]


class _Row(NamedTuple):
    packed: bytes
    model_id: str
    created_ms: int


class _Group:
    """Rows of one tenant and identity, without gaps: the last row takes the place of one that is removed."""

    def __init__(self, entry: Entry, dimension: int) -> None:
        self.tenant, self.identity = entry.tenant, entry.identity
        self._vectors: NDArray[np.float32] = np.empty((_FIRST, dimension), np.float32)  # of length 1
        self._expiries: NDArray[np.int64] = np.zeros(_FIRST, np.int64)  # in ms since the epoch; 0 for never
        self._ids: list[str] = []
        self._rows: list[_Row] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def put(self, entry: Entry, vector: Sequence[float]) -> None:
        place = self._places.setdefault(entry.entry_id, len(self._ids))
        if place == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
            self._expiries = np.concatenate([self._expiries, np.zeros_like(self._expiries)])
        self._vectors[place] = _normalise(vector)
        self._expiries[place] = entry.expires_ms
        if place == len(self._ids):
            self._ids.append(entry.entry_id)
            self._rows.append(_Row(pack(entry), entry.model_id, entry.created_ms))
        else:
            self._rows[place] = _Row(pack(entry), entry.model_id, entry.created_ms)

    def remove(self, entry_id: str) -> None:
        place, last = self._places.pop(entry_id), len(self._ids) - 1
        self._vectors[place] = self._vectors[last]
        self._expiries[place] = self._expiries[last]
        moved, row = self._ids.pop(), self._rows.pop()
        if place != last:
            self._ids[place], self._rows[place], self._places[moved] = moved, row, place

    def get(self, entry_id: str) -> Entry:
        return unpack(self._rows[self._places[entry_id]].packed)

    def copy_vector(self, entry_id: str) -> NDArray[np.float32]:
        return np.array(self._vectors[self._places[entry_id]], np.float32)

    def vector(self, entry_id: str) -> list[float]:
        return [float(value) for value in self._vectors[self._places[entry_id]]]

    def search(self, vector: Sequence[float], limit: int, now_ms: int) -> list[Hit]:
        scores = self._vectors[: len(self)] @ _normalise(vector)
        expiries = self._expiries[: len(self)]
        expired = (expiries > 0) & (expiries <= now_ms)
        if expired.any():
            scores = np.where(expired, -np.inf, scores)
            limit = min(limit, int((~expired).sum()))
            if not limit:
                return []
        nearest = (
            np.argpartition(-scores, limit - 1)[:limit] if limit < len(scores) else np.arange(len(scores))
        )
        best = nearest[np.argsort(-scores[nearest], kind="stable")][:limit]
        # Rounding may put the cosine of equal vectors a little above 1.
        return [Hit(unpack(self._rows[i].packed), min(1.0, max(-1.0, float(scores[i])))) for i in best]

    def select(self, selection: Selection) -> list[bytes]:
        rows = self._rows
        if selection.entry_id is not None:
            place = self._places.get(selection.entry_id)
            rows = [] if place is None else [rows[place]]
        model, end = selection.model_id, selection.created_before_ms
        return [
            row.packed
            for row in rows
            if (model is None or row.model_id == model) and (end is None or row.created_ms < end)
        ]


def _normalise(vector: Sequence[float]) -> NDArray[np.float32]:
    values = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(values))
    return values / length if length else values


def pack(entry: Entry) -> bytes:
    """Converts an entry to JSON."""
    return json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpack(row: bytes) -> Entry:
    """Inverts `pack`."""
    fields: dict[str, Any] = json.loads(row.decode("utf-8", "surrogatepass"))
    blobs, uses = (Blob(**blob) for blob in fields["blobs"]), Uses(*fields["uses"])
    return Entry(**fields | {"blobs": tuple(blobs), "uses": uses})
