"""Verifies `chorus keys`: what it prints, what it writes, and changes by several processes at a time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chorus_cli import key_file
from chorus_cli.main import app
from chorus_rpc.api_keys import find_key, parse_keys
from typer.testing import CliRunner

from tests.processes import ROOT

# Holds a lock until its standard input ends.
_HOLD_LOCK = """
import sys, fasteners
with fasteners.InterProcessLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def chorus(*arguments: str, file: Path, **environment: str) -> Any:
    return CliRunner().invoke(app, ["keys", *arguments, "--file", str(file)], env=environment)


def create(file: Path, *arguments: str, tenant: str = "acme") -> dict[str, Any]:
    done = chorus("create", "--tenant", tenant, "--json", *arguments, file=file)
    assert done.exit_code == 0, done.output
    created: dict[str, Any] = json.loads(done.stdout)["created"]
    return created


def test_key_is_printed_once_and_its_hash_is_written(path: Path) -> None:
    done = chorus("create", "--tenant", "acme", "--name", "nightly run", file=path)
    assert done.exit_code == 0, done.output
    token = done.stdout.strip()
    keys = parse_keys(path.read_bytes())
    key = find_key(keys, token.encode())
    assert key is not None
    assert (key.tenant, key.name, key.expires, key.revoked) == ("acme", "nightly run", None, None)
    assert token.rpartition("_")[2] not in path.read_text()
    listed = chorus("list", file=path)
    assert listed.stdout.splitlines()[1].split() == [
        key.id,
        "acme",
        "active",
        "20" + listed.stdout.splitlines()[1].split()[3][2:],
        "never",
        "nightly",
        "run",
    ]
    assert token not in listed.output


def test_file_is_readable_by_its_owner_only_and_replaced_through_a_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    path.symlink_to(real)
    create(path)
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o644)
    before = real.stat().st_ino
    create(path)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert real.stat().st_ino != before, "readers must not see a partial file"
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".part"] == []


def test_revoked_and_expiring_keys_are_listed_as_such(path: Path) -> None:
    first, second = create(path), create(path, "--expires-days", "0.5", tenant="beta")
    assert second["expires"] is not None
    done = chorus("revoke", first["id"], file=path)
    assert (done.exit_code, done.stdout) == (0, f"{first['id']} revoked\n")
    revoked = parse_keys(path.read_bytes())[first["id"]].revoked
    assert chorus("revoke", first["id"], file=path).exit_code == 0
    assert parse_keys(path.read_bytes())[first["id"]].revoked == revoked, "the first time stays"
    lines = chorus("list", "--json", file=path).stdout.splitlines()
    found = [json.loads(line)["key"] for line in lines]
    states = {key["id"]: key["state"] for key in found}
    assert states == {first["id"]: "revoked", second["id"]: "active"}
    assert not any("key" in key or "sha256" in key for key in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "--tenant", "Acme"), "tenant: must be 1 to 63 of"),
        (("create", "--tenant", "acme", "--name", "a\nb"), "name: must be at most 128 printable characters"),
        (("create", "--tenant", "acme", "--expires-days", "0"), "expires-days: must be above 0"),
        (("create", "--tenant", "acme", "--expires-days", "nan"), "expires-days: must be above 0"),
        (("create", "--tenant", "acme", "--expires-days", "40000"), "at most 36,500, not 40000"),
        (("revoke", "0123456789ab"), "no key '0123456789ab'"),
    ],
)
def test_invalid_input_changes_nothing(path: Path, arguments: tuple[str, ...], message: str) -> None:
    create(path)
    before = path.read_bytes()
    done = chorus(*arguments, file=path)
    assert done.exit_code == 2
    assert message in done.stderr
    assert path.read_bytes() == before


def test_file_that_is_no_file_of_keys_is_refused_and_kept(path: Path) -> None:
    path.write_text('{"password": "x"}')
    for arguments in (("create", "--tenant", "acme"), ("list",), ("revoke", "0123456789ab")):
        done = chorus(*arguments, file=path)
        assert done.exit_code == 2
        assert f"file: {path}: must be an object" in done.stderr
    assert path.read_text() == '{"password": "x"}'
    absent = path.with_name("absent.json")
    assert chorus("list", file=absent).exit_code == 2
    assert chorus("revoke", "0123456789ab", file=absent).exit_code == 2
    assert not absent.exists()
    missing = chorus("create", "--tenant", "acme", file=path.parent / "no" / "keys.json")
    assert missing.exit_code == 2
    assert f"the folder {path.parent / 'no'} does not exist" in missing.stderr


def test_file_of_the_scheduler_is_the_default(path: Path) -> None:
    done = CliRunner().invoke(
        app, ["keys", "create", "--tenant", "acme"], env={"CHORUS_SCHEDULER_API_KEYS": str(path)}
    )
    assert done.exit_code == 0, done.output
    assert len(parse_keys(path.read_bytes())) == 1


def test_processes_that_create_keys_at_the_same_time_lose_none(path: Path) -> None:
    command = [sys.executable, "-m", "chorus_cli", "keys", "create", "--file", str(path), "--tenant", "acme"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    tokens = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    keys = parse_keys(path.read_bytes())
    assert {find_key(keys, token.encode()) for token in tokens} == set(keys.values())
    assert len(keys) == 6


def test_lock_that_another_process_holds_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_LOCK_SECONDS", 0.0)
    lock = path.with_name(f".{path.name}.lock")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        done = chorus("create", "--tenant", "acme", file=path)
        holder.communicate(timeout=30)
    assert done.exit_code == 1
    assert f"another process changes {path}: try again later" in done.stderr
    assert not path.exists()
