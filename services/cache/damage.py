"""Blobs that are missing or altered, and the errors for their readers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from chorus_rpc.errors import BLOB_CORRUPT, ChorusError, not_found

from services.cache.entries import Blob, Entry

# What became of an entry with a damaged blob.
Outcome: TypeAlias = Literal["deleted", "kept", "replaced"]


class CorruptBlob(Exception):
    """A blob that a row names is missing, or else altered."""

    def __init__(self, *, missing: bool) -> None:
        super().__init__("missing" if missing else "altered")
        self.missing = missing


def describe_damage(entry: Entry, blob: Blob, fault: CorruptBlob, outcome: Outcome) -> ChorusError:
    """Returns the error for the reader of a damaged blob."""
    if outcome == "replaced":
        return not_found("entry", entry.entry_id)
    metadata = {"entry": entry.entry_id, **({} if blob.step is None else {"step": str(blob.step)})}
    message = f"{blob.name} of entry {entry.entry_id} is {fault}; the entry was dropped"
    if outcome == "kept":
        message = (
            f"{blob.name} of entry {entry.entry_id} is missing from the object store, which the cache's "
            "index does not own; the entry was kept, `chorus cache stats` shows the owner"
        )
    return ChorusError(BLOB_CORRUPT, message, metadata=metadata)
