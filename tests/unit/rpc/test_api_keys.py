"""Verifies API keys: what a key finds, and which files of keys are valid."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chorus_rpc.api_keys import ApiKey, InvalidKeys, create_key, find_key, format_keys, parse_keys
from chorus_rpc.limits import MAX_API_KEYS
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
RECORD = {
    "id": "0123456789ab",
    "sha256": "ab" * 32,
    "tenant": "acme",
    "created": "2026-01-31T12:00:00Z",
}

times = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda time: time.replace(microsecond=0)
)
keys = st.builds(
    ApiKey,
    id=st.text("0123456789abcdef", min_size=12, max_size=12),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    tenant=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    created=times,
    name=st.text(max_size=128).filter(str.isprintable),
    expires=st.none() | times,
    revoked=st.none() | times,
)


def test_key_finds_its_record_and_every_other_text_finds_none() -> None:
    key, token = create_key("acme", NOW, name="ci")
    other, other_token = create_key("beta", NOW)
    known = {key.id: key, other.id: other}
    assert find_key(known, token.encode()) == key
    assert find_key(known, other_token.encode()) == other
    stranger = create_key("acme", NOW)[1]
    swapped = f"chorus_{key.id}_{other_token.rpartition(f'{other.id}_')[2]}"
    for wrong in (stranger, swapped, token[:-1], token + "a", token.upper(), "", "chorus_", f" {token}", "ä"):
        assert find_key(known, wrong.encode()) is None, wrong


def test_record_contains_the_hash_and_not_the_key() -> None:
    key, token = create_key("acme", NOW)
    assert key.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert token.rpartition("_")[2] not in format_keys([key]).decode() + repr(key)
    assert len({create_key("acme", NOW)[1] for _ in range(100)}) == 100


@given(st.lists(keys, max_size=4, unique_by=lambda key: key.id))
def test_file_returns_the_records_that_were_written(records: list[ApiKey]) -> None:
    assert list(parse_keys(format_keys(records)).values()) == records


@given(keys, times)
def test_key_is_active_until_it_expires_or_is_revoked(key: ApiKey, now: datetime) -> None:
    state = key.state(now)
    assert (state == "revoked") == (key.revoked is not None)
    if key.revoked is None:
        assert (state == "expired") == (key.expires is not None and key.expires <= now)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(repr).map(str.encode)
)
def test_any_other_file_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(InvalidKeys):
        parse_keys(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "0123456789AB"}, "record 1: id must be 12 of 0–9 and a–f"),
        ({"sha256": "ab"}, "record 1: sha256 must be 64 of 0–9 and a–f"),
        ({"tenant": "Acme"}, "record 1: tenant must be 1 to 63 of"),
        ({"created": "2026-01-31T12:00:00"}, "record 1: created must be a time with its zone"),
        ({"expires": "soon"}, "record 1: expires must be a time with its zone"),
        ({"revoked": "0001-01-01T00:00:00+14:00"}, "record 1: revoked must be a time with its zone"),
        ({"name": "a\nb"}, "record 1: name must be at most 128 printable characters"),
        ({"name": "a" * 129}, "record 1: name must be at most 128 printable characters"),
        ({"name": 5}, "record 1: name must be text"),
        ({"key": "chorus_x"}, "record 1: key is no field"),
    ],
)
def test_invalid_record_is_named_with_its_field(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidKeys, match=reason):
        parse_keys(json.dumps({"version": 1, "keys": [{**RECORD, **change}]}).encode())


def test_invalid_file_is_named_with_the_reason() -> None:
    def parse(**content: Any) -> None:
        parse_keys(json.dumps(content).encode())

    parse(version=1, keys=[RECORD])
    for field in RECORD:
        partial = {name: value for name, value in RECORD.items() if name != field}
        with pytest.raises(InvalidKeys, match=f"record 1: {field} is missing"):
            parse(version=1, keys=[partial])
    with pytest.raises(InvalidKeys, match="record 2: id 0123456789ab is the id of an earlier record"):
        parse(version=1, keys=[RECORD, RECORD])
    with pytest.raises(InvalidKeys, match="version must be 1, not 2"):
        parse(version=2, keys=[])
    with pytest.raises(InvalidKeys, match="at most 10,000 records"):
        parse(version=1, keys=[RECORD] * (MAX_API_KEYS + 1))
    with pytest.raises(InvalidKeys, match="must be an object"):
        parse(keys=[])


def test_key_that_a_file_cannot_contain_is_not_created() -> None:
    with pytest.raises(InvalidKeys, match="tenant must be"):
        create_key("Acme", NOW)
    with pytest.raises(InvalidKeys, match="name must be"):
        create_key("acme", NOW, name="\x00")
    key, _ = create_key("acme", NOW, expires=NOW + timedelta(days=1))
    assert key.expires == NOW + timedelta(days=1)
