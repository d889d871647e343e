"""Kills a process at a chosen point of a script of operations on a real index and directory.

`python -m tests.integration.cache.crashing` reads one request per line from its input, for instance
`{"directory": "/tmp/x", "point": 3}`. For each it forks a process that runs the script until it reaches that
point, and then kills itself with SIGKILL; it answers with the exit status. Forking spares the imports.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pymilvus import MilvusClient
from pymilvus.client import grpc_handler

from services.cache import directory, usage
from services.cache.blobs import Blobs
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.eviction.ledger import EntryKey
from services.cache.index import Index, Selection
from services.cache.store import LatentStore
from services.cache.sweeper import claim_if_empty, sweep
from services.cache.upload import Upload
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry

TENANT = "default"
# A grace period that has passed for every file, also for one written in this millisecond.
NO_GRACE = -1.0
CONTENTS: Mapping[str, Mapping[int, bytes]] = {
    "a": {1: latents(1), 2: latents(2)},
    "b": {1: latents(1), 2: latents(3)},  # shares a blob with "a"
    "c": {3: latents(4)},
}
# Imported at the first connection.
_LATE_MODULES = ("milvus_lite.adapter.grpc.server", "pyarrow.pandas_compat", "scipy.sparse", "grpc._channel")
# Clock of pymilvus without its pause of 0.5 s after the creation of an index.
CLOCK = SimpleNamespace(time=time.time, sleep=lambda seconds: None)
# Calls of pymilvus that change an index.
_MILVUS_CALLS = ("create_collection", "create_index", "create_alias", "load_collection", "upsert", "delete")
_INDEX_CALLS = ("get", "upsert", "delete", "spaces", "select", "every_entry")
_BLOB_CALLS = ("put", "get", "stat", "delete", "list")


def make_admission(prompt: str) -> Admission:
    upload = Upload(TENANT, Limits(prompt=200, blob=1 << 20, entry=1 << 20))
    for message in admission(new_entry(prompt), CONTENTS[prompt], 1 << 20):
        upload.add(message)
    return upload.finish(1_000)


@dataclass(frozen=True)
class Step:
    """One operation of the script.

    Attributes:
        leaves: by prompt, whether the entry exists after the operation; None if both are right. During the
            operation both are right.
    """

    name: str
    run: Callable[[LatentStore], Awaitable[object]]
    leaves: Mapping[str, bool | None]


def admit(prompt: str) -> Step:
    return Step(f"admit {prompt}", lambda store: store.admit(make_admission(prompt)), {prompt: True})


def purge(prompt: str) -> Step:
    wanted = Selection(entry_id=make_admission(prompt).entry.entry_id)
    return Step(f"purge {prompt}", lambda store: usage.purge(store, TENANT, wanted), {prompt: False})


def evict(prompt: str) -> Step:
    key = EntryKey(SPACE.name, TENANT, make_admission(prompt).entry.entry_id)

    async def run(store: LatentStore) -> None:
        store.ledger.remove(key)
        await store.evict(key)

    return Step(f"evict {prompt}", run, {prompt: False})


SCRIPT: Sequence[Step] = (
    admit("a"),
    admit("b"),
    admit("a"),
    evict("b"),
    admit("b"),
    purge("a"),
    Step("sweep", lambda store: sweep(store, NO_GRACE), {}),
    admit("c"),
    admit("a"),
    Step("purge all", lambda store: usage.purge(store, TENANT, Selection()), dict.fromkeys(CONTENTS, False)),
    Step("sweep all", lambda store: sweep(store, NO_GRACE), {}),
    admit("b"),
)


class Crash:
    """Counts the points that a process reaches, and kills it at one of them.

    Args:
        journal: descriptor of a file that receives what happened.
        point: number of the point, from 1.
    """

    def __init__(self, journal: int, point: int) -> None:
        self._journal = journal
        self._left = point

    def note(self, text: str) -> None:
        os.write(self._journal, f"{text}\n".encode())

    def reach(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.note(f"killed at {name}")
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: object, names: Sequence[str], label: str) -> None:
        """Makes each call of these methods a point, which is reached before the call."""

        def make(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self.reach(f"{label}.{name}")
                return method(*arguments, **options)

            return call

        for name in names:
            setattr(owner, name, make(name, getattr(owner, name)))

    def wrap_writes(self) -> None:
        """Makes each part of the write of a blob a point."""
        open_path = Path.open

        def open_slowly(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = open_path(path, mode, *arguments, **options)
            return _SlowFile(file, self) if path.suffix in (".part", ".safetensors") else file

        Path.open = open_slowly  # type: ignore[method-assign, assignment]
        slow = SimpleNamespace(**vars(os))
        self.wrap(slow, ("fsync", "open"), "os")
        directory.os = slow  # type: ignore[attr-defined, assignment]
        self.wrap(Path, ("replace",), "path")


class _SlowFile:
    """File in which every write is two, with a point in between."""

    def __init__(self, file: Any, crash: Crash) -> None:
        self._file = file
        self._crash = crash

    def __enter__(self) -> _SlowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._crash.reach("half of a write")
        self._file.write(data[len(data) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


async def open_stores(folder: Path) -> tuple[Index, Blobs, LatentStore]:
    """Opens the stores of a cache as its process does at the start."""
    index = await EmbeddedIndex.open_path(str(folder / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(folder / "blobs", seconds=30, threads=4)
    store = LatentStore(index, blobs)
    await store.load()
    return index, blobs, store


async def run_script(folder: Path, point: int) -> None:
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    crash = Crash(journal, point)
    crash.wrap(MilvusClient, _MILVUS_CALLS, "milvus")
    crash.wrap_writes()
    index, blobs, store = await open_stores(folder)
    crash.wrap(index, _INDEX_CALLS, "index")
    crash.wrap(blobs, _BLOB_CALLS, "blobs")
    await claim_if_empty(store)
    for number, step in enumerate(SCRIPT):
        crash.note(f"begin {number}")
        await step.run(store)
        crash.reach(f"end of {step.name}")
        crash.note(f"end {number}")


def main() -> None:
    for name in _LATE_MODULES:
        importlib.import_module(name)
    grpc_handler.time = CLOCK
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(2, 1)  # the answers alone go to the output
                asyncio.run(run_script(Path(request["directory"]), request["point"]))
                status = 0
            finally:
                os._exit(status)  # without the clean end that a killed process does not have either
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
