"""Verifies the reload of the keys file, and whose calls a key permits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chorus_rpc.api_keys import ApiKey, InvalidKeys, create_key, format_keys
from chorus_rpc.errors import UNAUTHENTICATED, ChorusError
from chorus_rpc.tenancy import key_metadata
from structlog.testing import capture_logs

from services.scheduler.api.access import Access
from services.scheduler.api.key_file import KeyFile

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def write(path: Path, *keys: ApiKey) -> None:
    """Replaces the file, as `chorus keys` and a mounted secret do."""
    part = path.with_suffix(".part")
    part.write_bytes(format_keys(keys))
    part.replace(path)


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = create_key("acme", NOW)[0], create_key("beta", NOW)[0]
    write(path, first)
    file = KeyFile(path)
    assert list(file.keys) == [first.id]
    write(path, second)
    file.reload()
    assert list(file.keys) == [second.id]
    # A mounted secret is a link that is replaced.
    write(tmp_path / "other.json", first, second)
    path.unlink()
    path.symlink_to("other.json")
    file.reload()
    assert list(file.keys) == [first.id, second.id]


def test_invalid_file_keeps_the_keys_in_force_and_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = create_key("acme", NOW)[0]
    write(path, key)
    file = KeyFile(path)
    with capture_logs() as logs:
        path.write_text("{")
        file.reload()
        file.reload()
        path.unlink()
        file.reload()
        file.reload()
    assert list(file.keys) == [key.id]
    assert [line["log_level"] for line in logs] == ["error", "error"]
    assert all(line["variable"] == "CHORUS_SCHEDULER_API_KEYS" for line in logs)
    assert "must be JSON" in logs[0]["error"]
    assert "cannot be read" in logs[1]["error"]
    write(path)
    file.reload()
    assert not file.keys


def test_file_that_cannot_be_read_at_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidKeys, match="cannot be read: No such file"):
        KeyFile(tmp_path / "absent.json")
    with pytest.raises(InvalidKeys, match="cannot be read: Is a directory"):
        KeyFile(tmp_path)


def test_tenant_is_that_of_the_key_and_only_its_holder_learns_its_state(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    now = NOW
    active, active_token = create_key("acme", NOW)
    brief, brief_token = create_key("beta", NOW, expires=NOW + timedelta(days=1))
    gone, gone_token = create_key("beta", NOW)
    write(path, active, brief, replace(gone, revoked=NOW))
    access = Access(KeyFile(path), "default", clock=lambda: now)

    def refusal(token: str) -> str:
        with pytest.raises(ChorusError) as refused:
            access.find_tenant(key_metadata(token))
        assert refused.value.reason == UNAUTHENTICATED
        assert token == "" or token not in refused.value.message
        return refused.value.message

    assert access.find_tenant(key_metadata(active_token)) == "acme"
    assert access.find_tenant(key_metadata(brief_token)) == "beta"
    assert "carries no API key" in refusal("")
    assert refusal(gone_token) == f"the API key {gone.id} is revoked"
    unknown = refusal(create_key("acme", NOW)[1])
    assert unknown == refusal(f"chorus_{gone.id}_{'a' * 43}") == refusal("password")
    now += timedelta(days=1)
    assert refusal(brief_token) == f"the API key {brief.id} expired at 2026-02-01T12:00:00Z"
    # The tenant that the caller states itself has no effect.
    pairs = [("chorus-tenant", "beta"), *key_metadata(active_token)]
    assert access.find_tenant(pairs) == "acme"


def test_without_keys_every_call_is_of_the_configured_tenant() -> None:
    access = Access(None, "studio")
    assert access.find_tenant([]) == access.find_tenant(key_metadata("anything")) == "studio"
