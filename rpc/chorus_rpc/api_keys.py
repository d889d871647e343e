"""API keys: random secrets, each of which stands for a tenant, and the file with their hashes.

A key has 256 random bits, so one SHA-256 protects it: nothing can search that many values. A slow hash is for
passwords, which people choose from few; here it would only delay every call.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from chorus_rpc.limits import MAX_API_KEY_NAME, MAX_API_KEYS, SHA256_PATTERN, TENANT_PATTERN

_VERSION: Final = 1
_ID_PATTERN: Final = r"[0-9a-f]{12}"
_TOKEN: Final = re.compile(rb"chorus_(" + _ID_PATTERN.encode() + rb")_[A-Za-z0-9_-]{43}")
_REQUIRED: Final = ("id", "sha256", "tenant", "created")
_OPTIONAL: Final = ("name", "expires", "revoked")


class InvalidKeys(ValueError):
    """Fault of a file of API keys; the message names the record, the field and what it must be."""


@dataclass(frozen=True)
class ApiKey:
    """Record of an API key. Its secret is known to its holder only.

    Attributes:
        sha256: SHA-256 of the whole key, in hex.
        name: what the key is for; empty if it has no name.
        expires: time from which the key is not accepted; None for never.
        revoked: time at which the key was revoked; None if it was not.
    """

    id: str
    sha256: str
    tenant: str
    created: datetime
    name: str = ""
    expires: datetime | None = None
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        """Returns "active", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


def create_key(
    tenant: str, now: datetime, *, name: str = "", expires: datetime | None = None
) -> tuple[ApiKey, str]:
    """Creates a key; returns its record and the key itself, "chorus_ID_SECRET".

    Raises InvalidKeys for a tenant, a name or an end that a file cannot contain.
    """
    key_id = secrets.token_hex(6)
    token = f"chorus_{key_id}_{secrets.token_urlsafe(32)}"
    created = now.astimezone(UTC).replace(microsecond=0)
    if expires is not None:
        expires = expires.astimezone(UTC).replace(microsecond=0)
    digest = hashlib.sha256(token.encode()).hexdigest()
    key = ApiKey(key_id, digest, tenant, created, name, expires)
    _parse_record(_to_record(key))
    return key, token


def find_key(keys: Mapping[str, ApiKey], token: bytes) -> ApiKey | None:
    """Returns the record of a key as it was received, whatever its state; None for an unknown or wrong one.

    Args:
        keys: records by id.
    """
    parts = _TOKEN.fullmatch(token)
    key = keys.get(parts[1].decode()) if parts else None
    # An unknown id takes as long as a wrong secret.
    expected = key.sha256 if key is not None else "0" * 64
    matches = hmac.compare_digest(hashlib.sha256(token).hexdigest(), expected)
    return key if matches else None


def parse_keys(data: bytes) -> dict[str, ApiKey]:
    """Returns the records of a file by id, in the file's order. Raises InvalidKeys."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidKeys(f"must be JSON: {error}") from None
    if not isinstance(content, dict) or content.keys() != {"version", "keys"}:
        raise InvalidKeys('must be an object with "version" and "keys"; `chorus keys create` writes one')
    if content["version"] != _VERSION:
        raise InvalidKeys(f"version must be {_VERSION}, not {content['version']!r}")
    records = content["keys"]
    if not isinstance(records, list) or len(records) > MAX_API_KEYS:
        raise InvalidKeys(f"keys must be a list of at most {MAX_API_KEYS:,} records")
    keys: dict[str, ApiKey] = {}
    for number, record in enumerate(records, 1):
        try:
            key = _parse_record(record)
        except InvalidKeys as error:
            raise InvalidKeys(f"record {number}: {error}") from None
        if key.id in keys:
            raise InvalidKeys(f"record {number}: id {key.id} is the id of an earlier record, too")
        keys[key.id] = key
    return keys


def format_keys(keys: Sequence[ApiKey]) -> bytes:
    """Returns the contents of a file with these records. Raises InvalidKeys for more than MAX_API_KEYS."""
    content = {"version": _VERSION, "keys": [_to_record(key) for key in keys]}
    data = (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()
    parse_keys(data)
    return data


def format_time(time: datetime) -> str:
    """Returns a time as "2026-01-31T12:00:00Z"."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _to_record(key: ApiKey) -> dict[str, str]:
    record = {"id": key.id, "sha256": key.sha256, "tenant": key.tenant, "created": format_time(key.created)}
    if key.name:
        record["name"] = key.name
    for field, time in (("expires", key.expires), ("revoked", key.revoked)):
        if time is not None:
            record[field] = format_time(time)
    return record


def _parse_record(record: Any) -> ApiKey:
    if not isinstance(record, dict):
        raise InvalidKeys("must be an object")
    if unknown := sorted(record.keys() - {*_REQUIRED, *_OPTIONAL}):
        known = ", ".join((*_REQUIRED, *_OPTIONAL))
        raise InvalidKeys(f"{unknown[0]} is no field: it must be one of {known}")
    for field in _REQUIRED:
        if field not in record:
            raise InvalidKeys(f"{field} is missing")
    for field, value in record.items():
        if not isinstance(value, str):
            raise InvalidKeys(f"{field} must be text")
    if not re.fullmatch(_ID_PATTERN, record["id"]):
        raise InvalidKeys("id must be 12 of 0–9 and a–f")
    if not re.fullmatch(SHA256_PATTERN, record["sha256"]):
        raise InvalidKeys("sha256 must be 64 of 0–9 and a–f")
    if not re.fullmatch(TENANT_PATTERN, record["tenant"]):
        raise InvalidKeys("tenant must be 1 to 63 of a–z, 0–9 and '-', not starting with '-'")
    name = record.get("name", "")
    if len(name) > MAX_API_KEY_NAME or not name.isprintable():
        raise InvalidKeys(f"name must be at most {MAX_API_KEY_NAME} printable characters")
    times = {field: _parse_time(field, record.get(field)) for field in ("created", "expires", "revoked")}
    created = times["created"]
    assert created is not None  # required above
    return ApiKey(
        record["id"], record["sha256"], record["tenant"], created, name, times["expires"], times["revoked"]
    )


def _parse_time(field: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidKeys(f"{field} must be a time with its zone, such as 2026-01-31T12:00:00Z")
