"""Verifies admissions, lookups and purges on a full disk, which operations of the real stores report."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from chorus_rpc.errors import DISK_FULL, ChorusError
from minio.error import S3Error
from pymilvus.exceptions import MilvusException

from services.cache.directory import DirectoryBlobs
from services.cache.disk_space import DiskReserve, is_full
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.index import Selection
from services.cache.store import LatentStore
from services.cache.sweeper import claim_if_empty
from services.cache.upload import Upload
from services.cache.usage import purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit
from tests.processes import ROOT

pytestmark = pytest.mark.fault("logging")

FULL = MilvusException(message=f"[Errno {errno.ENOSPC}] No space left on device")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LatentStore]:
    index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=2)
    store = LatentStore(index, blobs)
    await claim_if_empty(store)
    yield store
    await store.close()
    await blobs.close()
    await index.close()


def offered(prompt: str) -> Admission:
    upload = Upload("default", Limits(prompt=200, blob=1 << 20, entry=1 << 20))
    for message in admission(new_entry(prompt), {1: latents(len(prompt))}, 1 << 20):
        upload.add(message)
    return upload.finish(1_000)


async def found(store: LatentStore) -> list[str]:
    hits = await store.lookup(SPACE, "default", offered("kept").entry.identity, unit(0), 16, -1.0)
    return sorted(hit.entry.prompt for hit in hits)


async def assert_refused(store: LatentStore, prompt: str) -> None:
    with pytest.raises(ChorusError, match="chorus cache purge") as failed:
        await store.admit(offered(prompt))
    assert failed.value.reason == DISK_FULL


def raise_when(condition: Callable[[], bool], error: Exception, call: Callable[..., Any]) -> Any:
    def guarded(*arguments: Any, **options: Any) -> Any:
        if condition():
            raise error
        return call(*arguments, **options)

    return guarded


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (OSError(errno.EFBIG, "ulimit"), True),
        (OSError(errno.EACCES, "no"), False),
        (FULL, True),
        (MilvusException(message="[Errno 281] no"), False),
        (S3Error(None, "XMinioStorageFull", "full", None, None, None), True),  # type: ignore[arg-type]
        (S3Error(None, "AccessDenied", "no", None, None, None), False),  # type: ignore[arg-type]
    ],
)
def test_full_disks_are_recognised(error: Exception, full: bool) -> None:
    assert is_full(error) == full


async def test_admission_on_a_full_disk_leaves_nothing_and_lookups_work(
    store: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.admit(offered("kept"))
    before = sorted(tmp_path.joinpath("blobs").rglob("*"))
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "fsync", raise_when(lambda: True, full, os.fsync))
        await assert_refused(store, "refused")
    assert sorted(tmp_path.joinpath("blobs").rglob("*")) == before
    assert store.counters["default"].rejected_admissions == {DISK_FULL: 1}
    assert await found(store) == ["kept"]
    kept = offered("kept").entry
    fetched = [data async for _, data in store.fetch(SPACE, "default", kept.identity, kept.entry_id, [1])]
    assert fetched == [latents(len("kept"))]
    assert await store.admit(offered("refused"))


async def test_purge_works_on_a_full_disk(
    store: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in ("one", "four", "seven"):
        await store.admit(offered(prompt))
    reserve = tmp_path / "index.db.reserve"
    assert reserve.stat().st_size == 1 << 20
    index: Any = store.index
    # As on a disk that the reserve is the last free part of.
    delete = raise_when(reserve.exists, FULL, index._milvus.delete)
    monkeypatch.setattr(index._milvus, "delete", delete)
    purged = await purge(store, "default", Selection(entry_id=offered("one").entry.entry_id))
    assert purged.entries == 1
    assert not reserve.exists()
    assert (await purge(store, "default", Selection())).entries == 2
    assert await found(store) == []
    # New rows leave the reserve for the next purge.
    assert await store.admit(offered("eleven"))
    assert reserve.exists()


async def test_admission_leaves_the_reserve_on_a_nearly_full_disk(
    store: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.admit(offered("kept"))
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        await assert_refused(store, "refused")
        assert (await purge(store, "default", Selection())).entries == 1
        assert not (tmp_path / "index.db.reserve").exists()
    assert await store.admit(offered("refused"))


def test_reserve_that_does_not_fit_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = DiskReserve(tmp_path / "reserve")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", raise_when(lambda: True, full, os.posix_fallocate))
    assert not reserve.fill()
    assert list(tmp_path.iterdir()) == []
    assert not reserve.release()


# A row that the limit on the size of files cuts off, further rows, and a crash.
_TEAR = """
import asyncio, os, resource, sys
from pathlib import Path
from services.cache.embedded import EmbeddedIndex
from tests.contract.samples import SPACE, entry, unit

async def main(path):
    index = await EmbeddedIndex.open_path(path, seconds=30)
    await index.upsert(SPACE, entry("before"), unit(1))
    [log] = Path(path).rglob("wal_data_*.arrow")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 1_000, unlimited[1]))
    try:
        await index.upsert(SPACE, entry("torn" + "y" * 3_000), unit(2))
    except Exception as error:
        print(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await index.upsert(SPACE, entry("after"), unit(3))
    os._exit(9)

asyncio.run(main(sys.argv[1]))
"""


async def test_rows_after_a_torn_write_survive_a_crash(tmp_path: Path) -> None:
    path = str(tmp_path / "index.db")
    crashed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _TEAR, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert crashed.returncode == 9, crashed.stderr
    assert "milvus is full" in crashed.stdout
    index = await EmbeddedIndex.open_path(path, seconds=30)
    rows = [each.prompt async for page in index.every_entry(SPACE.name) for each in page]
    await index.close()
    assert [row for row in sorted(rows) if len(row) < 10] == ["after", "before"]
