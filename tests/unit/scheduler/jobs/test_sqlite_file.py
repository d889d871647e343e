"""Verifies the job database in a file: one process has it, and a foreign one is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from services.scheduler.jobs.sql_store import open_store
from services.scheduler.jobs.store import StoreError


async def test_second_scheduler_is_rejected_with_the_holder_of_the_database(tmp_path: Path) -> None:
    path = str(tmp_path / "jobs.db")
    store = await open_store(path, lambda _: None)
    try:
        with pytest.raises(
            StoreError, match=r"in use by another scheduler \(process \d+\).*CHORUS_SCHEDULER_DATABASE"
        ):
            await open_store(path, lambda _: None)
    finally:
        await store.close()


async def test_foreign_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 10)
    with pytest.raises(StoreError, match="not a database"):
        await open_store(str(path), lambda _: None)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        await open_store(str(path), lambda _: None)


async def test_file_of_a_newer_version_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await (await open_store(str(path), lambda _: None)).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    with pytest.raises(StoreError, match="has schema 9999, this program supports up to 0006"):
        await open_store(str(path), lambda _: None)
