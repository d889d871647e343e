"""Verifies that concurrent admissions, purges, sweeps and reads serve nothing wrong, however they interleave.

Two stores share one index and one object store, as two cache processes do. Every call to either waits for its
turn; the order of the turns, the cancelled callers and the crashes are drawn. A row that a lookup returned
either yields its right blobs, or does not exist any more.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chorus_rpc.errors import NOT_FOUND, ChorusError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.cache.blobs import Blobs, BlobStat
from services.cache.entries import BLOB_ROOT, Admission, Entry, Space, Uses
from services.cache.index import Hit, Index, Selection
from services.cache.ownership import MARKER_ROOT
from services.cache.rows import Rows, unpack
from services.cache.store import LatentStore
from services.cache.sweeper import claim_if_empty, sweep
from services.cache.upload import Upload
from services.cache.usage import purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit

TENANT = "default"
GRACE_SECONDS = 600.0
PROMPTS = ("a", "b")
VARIANTS = 2
# More cycles of the event loop than any task takes from one turn to the next.
_CYCLES = 25


def make_admission(prompt: str, variant: int) -> Admission:
    """Returns an admission; the variants of a prompt differ in their blobs, prompts share some of them."""
    contents = {1: latents(variant), 2: latents(10 * PROMPTS.index(prompt) + variant)}
    upload = Upload(TENANT, Limits(prompt=200, blob=1 << 20, entry=1 << 20))
    for message in admission(new_entry(prompt), contents, 1 << 20):
        upload.add(message)
    return upload.finish(0)


ADMISSIONS = {
    (prompt, variant): make_admission(prompt, variant) for prompt in PROMPTS for variant in range(VARIANTS)
}
CONTENTS = {digest: data for each in ADMISSIONS.values() for digest, data in each.data.items()}
IDENTITY = ADMISSIONS["a", 0].entry.identity


class Turns:
    """Lets one call at a time proceed."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    async def settle(self) -> None:
        """Waits until every task waits for its turn."""
        for _ in range(_CYCLES):
            await asyncio.sleep(0)
        self.waiting = [turn for turn in self.waiting if not turn.done()]

    async def grant(self, choice: int) -> None:
        if self.waiting:
            self.waiting.pop(choice % len(self.waiting)).set_result(None)
        await self.settle()


class MemoryIndex(Index):
    """Index in memory; a call takes effect at its turn."""

    kind = "memory"
    index_id = "0" * 32

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._rows = Rows()

    async def search(
        self,
        space: str,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        now_ms: int = 0,
    ) -> list[Hit]:
        await self._turns.wait()
        return self._rows.search(tenant, identity, vector, limit, now_ms)

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        await self._turns.wait()
        return self._rows.get(tenant, entry_id)

    async def read_vectors(
        self, space: str, tenant: str, entry_ids: Sequence[str]
    ) -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
        await self._turns.wait()
        return self._rows.get_vectors(tenant, entry_ids)

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        await self._turns.wait()
        self._rows.put(entry, vector)

    async def add_uses(self, space: str, tenant: str, uses: Mapping[str, Uses]) -> None:
        await self._turns.wait()
        for entry, vector in self._rows.get_used(tenant, uses):
            self._rows.put(entry, vector)

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        await self._turns.wait()
        self._rows.remove(tenant, entry_ids)

    async def spaces(self) -> list[str]:
        return [SPACE.name]

    async def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        await self._turns.wait()
        yield [unpack(row) for row in self._rows.select(tenant, selection)]

    async def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        await self._turns.wait()
        yield self.list_rows()

    def list_rows(self) -> list[Entry]:
        return [unpack(row) for row in self._rows.select(None, Selection())]

    async def close(self) -> None:
        pass


class MemoryBlobs(Blobs):
    """Object store in memory; a call takes effect at its turn, a write in two turns.

    Args:
        now_ms: returns the time, in milliseconds.
        atomic_deletion: whether no turn of another call lies between the check of an age and the deletion.
    """

    kind = "memory"

    def __init__(self, turns: Turns, now_ms: Callable[[], int], *, atomic_deletion: bool) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self._turns = turns
        self._now_ms = now_ms
        self._atomic = atomic_deletion

    async def put(self, key: str, data: bytes) -> None:
        await self._turns.wait()
        part = f"{key.rpartition('/')[0]}/{uuid.uuid4().hex}.part"
        self.files[part] = data[: len(data) // 2], self._now_ms()
        await self._turns.wait()
        del self.files[part]
        self.files[key] = data, self._now_ms()

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        await self._turns.wait()
        return self.files[key][0][: size_bytes + 1] if key in self.files else None

    async def stat(self, key: str) -> BlobStat | None:
        if not self._atomic:
            await self._turns.wait()
        if key not in self.files:
            return None
        data, modified_ms = self.files[key]
        return BlobStat(key, len(data), modified_ms)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if not self._atomic:
                await self._turns.wait()
            self.files.pop(key, None)

    async def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        await self._turns.wait()
        found = [
            BlobStat(key, len(data), modified_ms)
            for key, (data, modified_ms) in self.files.items()
            if key.startswith(f"{folder}/")
        ]
        for half in (found[::2], found[1::2]):
            if half:
                yield half
                await self._turns.wait()

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Action:
    """One step of a schedule.

    Attributes:
        turns: choices among the waiting calls, which proceed after the action.
    """

    name: str
    replica: int
    prompt: str
    variant: int
    turns: tuple[int, ...]


class Replicas:
    """Stores that share an index and an object store, and the calls that run in them."""

    def __init__(self, count: int) -> None:
        self.turns = Turns()
        self.now_ms = 1_000_000
        self.index = MemoryIndex(self.turns)
        # Two processes have no common lock: an admission may write a blob again between the check of its age
        # and its deletion by the other. A deployment has one process, and here the two are one step.
        self.blobs = MemoryBlobs(self.turns, lambda: self.now_ms, atomic_deletion=count > 1)
        self.stores = [LatentStore(self.index, self.blobs) for _ in range(count)]
        self.calls: list[set[asyncio.Task[object]]] = [set() for _ in range(count)]

    @property
    def clock(self) -> SimpleNamespace:
        return SimpleNamespace(time_ns=lambda: self.now_ms * 1_000_000, monotonic=lambda: self.now_ms / 1_000)

    async def read(self, store: LatentStore) -> None:
        """Looks up every row and fetches it: each blob is right, or the row does not exist any more."""
        for hit in await store.lookup(SPACE, TENANT, IDENTITY, unit(0), 16, -1.0):
            entry = hit.entry
            assert entry.blobs in [ADMISSIONS[entry.prompt, i].entry.blobs for i in range(VARIANTS)]
            try:
                async for blob, data in store.fetch(SPACE, TENANT, IDENTITY, entry.entry_id, [1, 2]):
                    assert data == CONTENTS[blob.digest]
            except ChorusError as error:
                if error.reason != NOT_FOUND:
                    raise

    def start(self, replica: int, call: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(call)
        self.calls[replica].add(task)

    def crash(self, replica: int) -> None:
        """Ends every call of a replica where it is, and starts a new store."""
        store = self.stores[replica]
        for task in (*self.calls[replica], *store._commits):
            task.cancel()
        self.stores[replica] = LatentStore(self.index, self.blobs)

    async def finish(self, call: Awaitable[object] | None = None) -> None:
        """Lets every running call end, and another one. Raises what failed."""
        if call is not None:
            self.start(0, _await(call))
        await self.turns.settle()
        while self.turns.waiting:
            await self.turns.grant(0)
        for calls in self.calls:
            ends = await asyncio.gather(*calls, return_exceptions=True)
            calls.clear()
            for end in ends:
                if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                    raise end

    async def run(self, action: Action) -> None:
        store = self.stores[action.replica % len(self.stores)]
        replica = self.stores.index(store)
        match action.name:
            case "admit":
                offered = ADMISSIONS[action.prompt, action.variant]
                entry = replace(offered.entry, created_ms=self.now_ms)
                self.start(replica, store.admit(replace(offered, entry=entry)))
            case "purge":
                entry_id = ADMISSIONS[action.prompt, 0].entry.entry_id
                self.start(replica, purge(store, TENANT, Selection(entry_id=entry_id)))
            case "sweep":
                self.start(replica, sweep(store, GRACE_SECONDS))
            case "read":
                self.start(replica, self.read(store))
            case "cancel":
                for task in list(self.calls[replica])[:1]:
                    task.cancel()
            case "crash":
                self.crash(replica)
            case _:
                # No call lasts as long as the grace period.
                await self.finish()
                self.now_ms += int(2_000 * GRACE_SECONDS)
        await self.turns.settle()
        for choice in action.turns:
            await self.turns.grant(choice)


async def _await(call: Awaitable[object]) -> object:
    return await call


async def call_inline(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


async def run_schedule(count: int, schedule: Sequence[Action]) -> None:
    """Runs a schedule and checks what it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        replicas = Replicas(count)
        patch.setattr("services.cache.store.time", replicas.clock)
        patch.setattr(asyncio, "to_thread", call_inline)
        await replicas.finish(claim_if_empty(replicas.stores[0]))
        for prompt in PROMPTS:
            await replicas.finish(replicas.stores[0].admit(ADMISSIONS[prompt, 0]))
        replicas.now_ms += int(2_000 * GRACE_SECONDS)
        for action in schedule:
            await replicas.run(action)
        await replicas.finish()
        for store in replicas.stores:
            await replicas.finish(replicas.read(store))
        replicas.now_ms += int(2_000 * GRACE_SECONDS)
        for _ in range(2):
            await replicas.finish(sweep(replicas.stores[0], GRACE_SECONDS))
        for store in replicas.stores:
            await replicas.finish(replicas.read(store))
        named = {key for entry in replicas.index.list_rows() for key in entry.keys}
        assert {key for key in replicas.blobs.files if not key.startswith(MARKER_ROOT)} == named


SCHEDULES = st.lists(
    st.builds(
        Action,
        name=st.sampled_from(
            ["admit", "admit", "read", "read", "purge", "purge", "sweep", "sweep", "cancel", "crash", "wait"]
        ),
        replica=st.integers(0, 1),
        prompt=st.sampled_from(PROMPTS),
        variant=st.integers(0, VARIANTS - 1),
        turns=st.lists(st.integers(0, 9), max_size=10).map(tuple),
    ),
    min_size=10,
    max_size=50,
)


@pytest.mark.parametrize("count", [1, 2])
@settings(max_examples=100)
@given(schedule=SCHEDULES)
def test_no_interleaving_serves_a_wrong_blob(count: int, schedule: list[Action]) -> None:
    asyncio.run(run_schedule(count, schedule))
