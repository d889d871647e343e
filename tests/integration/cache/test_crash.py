"""Verifies that a cache killed at any point of any operation loses nothing and serves nothing wrong.

The process is killed with SIGKILL before each call of a script to index, object store and pymilvus, before it
acknowledges each operation, and within the writes of blobs; then another process opens what it left.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from services.cache.entries import Entry
from services.cache.store import LatentStore
from services.cache.sweeper import claim_if_empty, sweep
from tests.contract.samples import SPACE, unit
from tests.integration.cache.crashing import (
    CLOCK,
    CONTENTS,
    NO_GRACE,
    SCRIPT,
    TENANT,
    make_admission,
    open_stores,
)
from tests.processes import ROOT

_FEWEST_POINTS = 110


class Launcher:
    """Program of `crashing` that runs the script in a process of its own for each point."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def run(self, folder: Path, point: int) -> bool:
        """Runs the script in `folder`; returns whether it was killed. Fails if it ended otherwise."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps({"directory": str(folder), "point": point}) + "\n")
        self._program.stdin.flush()
        status = int(self._program.stdout.readline())
        assert status in (0, -signal.SIGKILL), (point, read_journal(folder))
        return status != 0


@contextmanager
def start_launcher() -> Iterator[Launcher]:
    command = [sys.executable, "-m", "tests.integration.cache.crashing"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        try:
            yield Launcher(program)
        finally:
            program.stdin.close()


def read_journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text().splitlines()


def list_expected(journal: list[str]) -> dict[str, bool | None]:
    """Returns whether each entry exists, None if both are right, by what the killed process acknowledged."""
    found: dict[str, bool | None] = dict.fromkeys(CONTENTS, False)
    for number, step in enumerate(SCRIPT):
        if f"end {number}" in journal:
            found.update(step.leaves)
        elif f"begin {number}" in journal:
            found.update({prompt: None for prompt, left in step.leaves.items() if found[prompt] != left})
    return found


@asynccontextmanager
async def reopened(folder: Path) -> AsyncIterator[LatentStore]:
    index, blobs, store = await open_stores(folder)
    try:
        await claim_if_empty(store)
        yield store
    finally:
        await store.close()
        await blobs.close()
        await index.close()


async def check_rows(store: LatentStore) -> set[str]:
    """Asserts that every row that a lookup returns has its right blobs; returns their prompts."""
    identity = make_admission("a").entry.identity
    hits = await store.lookup(SPACE, TENANT, identity, unit(0), 16, -1.0)
    for entry in (hit.entry for hit in hits):
        contents = CONTENTS[entry.prompt]
        found = store.fetch(SPACE, TENANT, identity, entry.entry_id, list(contents))
        assert {blob.step: data async for blob, data in found} == contents
    return {hit.entry.prompt for hit in hits}


async def list_rows(store: LatentStore) -> list[Entry]:
    return [
        entry
        for space in await store.index.spaces()
        async for page in store.index.every_entry(space)
        for entry in page
    ]


def list_files(folder: Path) -> set[str]:
    """Returns the names of the files in the directory of blobs, without the owner's marker."""
    root = folder / "blobs"
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != ".owners"
    }


async def check_left(folder: Path) -> None:
    """Asserts what a killed process has to leave, and that the cache works with it."""
    expected = list_expected(read_journal(folder))
    async with reopened(folder) as store:
        prompts = await check_rows(store)
        assert {prompt: prompt in prompts for prompt, exists in expected.items() if exists is not None} == {
            prompt: exists for prompt, exists in expected.items() if exists is not None
        }
        # The first sweep may claim the store; another deletes the blobs of the rows that one deleted.
        for _ in range(3):
            await sweep(store, NO_GRACE)
        assert await check_rows(store) == prompts
        rows = await list_rows(store)
        assert {row.prompt for row in rows} == prompts
        assert list_files(folder) == {key for row in rows for key in row.keys}
        for prompt in CONTENTS:
            assert await store.admit(make_admission(prompt)) is (prompt not in prompts)
    async with reopened(folder) as store:
        assert await check_rows(store) == CONTENTS.keys()


@pytest.mark.timeout(600)
async def test_kill_9_at_every_point_of_every_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr("pymilvus.client.grpc_handler.time", CLOCK)
    parts = 0
    with start_launcher() as launcher:
        for point in range(1, 10_000):
            folder = tmp_path / str(point)
            folder.mkdir()
            killed = launcher.run(folder, point)
            parts += any(name.endswith(".part") for name in list_files(folder))
            try:
                await check_left(folder)
            except AssertionError as error:
                error.add_note(f"point {point}: {read_journal(folder)[-1]}")
                raise
            if not killed:
                break
    record_property("crash_points", point - 1)
    assert point > _FEWEST_POINTS
    assert parts > 20, "points within the write of a blob"
