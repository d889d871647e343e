"""Verifies which faults pass, and that a job waits for their end within its deadline."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.deadline import Deadline
from services.scheduler.jobs.passing_faults import PassingFault, find_passing_fault, wait_out
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.store import NewJob, StoreError
from services.scheduler.jobs.video_files import VideoFiles
from services.scheduler.jobs.video_store import Item

pytestmark = pytest.mark.fault("scheduler-resources")

FAULT = PassingFault("the job database", "CHORUS_SCHEDULER_DATABASE", "it is locked")


def ends_in(seconds: float) -> Deadline:
    return Deadline(Timestamp(seconds=int(time.time() + seconds)))


def new(job_id: str, prompt: str = "") -> NewJob:
    return NewJob(job_id, "default", f"r-{job_id}", "d", pb.GenerationSpec(prompt=prompt), 2e9, "", "")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_lack_of_a_resource_passes(number: int) -> None:
    fault = find_passing_fault(OSError(number, os.strerror(number)), "the directory", "CHORUS_X")
    assert fault is not None
    assert (fault.reason, fault.metadata["setting"]) == (errors.DEPENDENCY_UNAVAILABLE, "CHORUS_X")
    assert os.strerror(number) in fault.message
    assert fault.retry_after is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_passes_and_its_message_says_what_to_do(number: int) -> None:
    fault = find_passing_fault(OSError(number, os.strerror(number)), "the directory", "CHORUS_X")
    assert fault is not None
    assert (fault.reason, fault.metadata["setting"]) == (errors.DISK_FULL, "CHORUS_X")
    assert "free space" in fault.message
    assert "CHORUS_X" in fault.message
    assert fault.retry_after is not None


def test_thread_that_cannot_be_started_passes() -> None:
    assert find_passing_fault(RuntimeError("can't start new thread"), "the scheduler") is not None


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), TimeoutError(), ValueError(), RuntimeError()])
def test_other_errors_do_not_pass(error: Exception) -> None:
    assert find_passing_fault(error, "the directory", "CHORUS_X") is None


async def test_action_is_repeated_until_the_fault_has_passed() -> None:
    faults = [FAULT, FAULT]
    reported: list[PassingFault] = []

    async def act() -> str:
        if faults:
            raise faults.pop()
        return "done"

    async def report(fault: PassingFault) -> None:
        reported.append(fault)

    assert await wait_out(act, ends_in(60), report) == "done"
    assert reported == [FAULT], "reported once"


async def test_deadline_ends_the_wait_and_names_the_fault() -> None:
    async def act() -> None:
        raise FAULT

    with pytest.raises(ChorusError, match=r"passed before the video was ready.*it is locked") as caught:
        await wait_out(act, ends_in(-1))
    assert caught.value.reason == errors.DEADLINE_EXCEEDED


async def test_store_reports_a_lock_and_works_after_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = await open_store(str(path), lambda _: None)
    try:
        await store.submit(new("a"), 10)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PassingFault, match="database is locked") as caught:
            await store.submit(new("b"), 10)
        assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
        assert await store.get("a") is not None, "reads work meanwhile"
        other.close()
        await store.submit(new("c"), 10)
        assert [job.job_id for job in await store.queue(10)] == ["a", "c"]
    finally:
        await store.close()


async def test_store_reports_a_full_disk_and_works_after_it(tmp_path: Path) -> None:
    """SQLite's own limit on the number of pages takes the place of the full disk."""
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)

    async def limit_pages(count: int) -> None:
        await execute(store, f"PRAGMA max_page_count = {count}")

    try:
        await store.submit(new("a"), 10)
        await limit_pages(1)  # the number in use, which is higher
        with pytest.raises(PassingFault, match="free space") as caught:
            await store.submit(new("b", "x" * 100_000), 10)
        assert caught.value.reason == errors.DISK_FULL
        assert caught.value.metadata["setting"] == "CHORUS_SCHEDULER_DATABASE"
        assert await store.get("b") is None, "nothing is stored"
        await limit_pages(1 << 20)
        await store.submit(new("b", "x" * 100_000), 10)
        assert [job.job_id for job in await store.queue(10)] == ["a", "b"]
    finally:
        await store.close()


async def test_damaged_database_is_no_passing_fault(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = await open_store(str(path), lambda _: None)
    try:
        await store.submit(new("a"), 10)
        await execute(store, "PRAGMA wal_checkpoint(TRUNCATE)")
        await execute(store, "PRAGMA shrink_memory")
        size = path.stat().st_size
        path.write_bytes(b"\xff" * size)
        with pytest.raises(StoreError, match=r"is damaged.*CHORUS_SCHEDULER_DATABASE"):
            await store.get("a")
    finally:
        await store.close()


async def test_videos_report_faults_that_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = VideoFiles(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(PassingFault, match="CHORUS_SCHEDULER_VIDEO_DIR"):
        await videos.save("a", 1, Item.VIDEO, b"video")
    assert list_names(tmp_path) == [], "nothing is kept"
    monkeypatch.setattr(os, "fsync", fail_with(errno.EACCES))
    with pytest.raises(PermissionError):
        await videos.save("a", 1, Item.VIDEO, b"video")


def list_names(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file()]


async def execute(store: SqlStore, statement: str) -> None:
    """Executes a statement outside a transaction."""

    def work() -> None:
        connection = store._database.engine.raw_connection()
        connection.cursor().execute(statement)
        connection.close()

    await store._run(work)


def fail_with(number: int) -> object:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return fail
