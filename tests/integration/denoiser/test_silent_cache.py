"""Verifies that a cache that accepts connections and never answers delays no run but the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from tests.integration.denoiser.calls import SECONDS, FakeCache, environment, request, reusing, run
from tests.processes import ServiceProcess, start_service
from tests.relay import Relay

pytestmark = pytest.mark.fault("silent-dependency")


@asynccontextmanager
async def denoiser_behind_relay(
    model: Path, cache_target: str, log_dir: Path, **settings: str
) -> AsyncIterator[tuple[Any, Relay, ServiceProcess]]:
    """Runs a denoiser whose connection to the cache passes through a relay."""
    async with Relay(int(cache_target.rpartition(":")[2])) as relay:
        started = start_service("denoiser", {**environment(model, relay.target), **settings}, log_dir)
        process = await asyncio.to_thread(started.__enter__)
        try:
            async with open_channel(process.target) as channel:
                yield denoiser_pb2_grpc.DenoiserServiceStub(channel), relay, process
        finally:
            relay.thaw()
            await asyncio.to_thread(started.__exit__, None, None, None)


async def read_until(call: Any, kind: str) -> denoiser_pb2.DenoiseResponse:
    async for event in call:
        if event.WhichOneof("event") == kind:
            found: denoiser_pb2.DenoiseResponse = event
            return found
    raise AssertionError(f"the stream ended without {kind}")


async def test_only_one_run_waits_for_the_donor_of_a_silent_cache(
    model: Path, cache: FakeCache, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    settings = {"CHORUS_DENOISER_FETCH_SECONDS": "1"}
    async with denoiser_behind_relay(model, cache_server[1], tmp_path, **settings) as (stub, relay, _):
        full = await run(stub, request())
        assert full.admission is not None
        relay.freeze()
        reuse = reusing(request(admit=False), full.admission.entry_id, 2)
        messages = []
        for _ in range(4):
            found = await run(stub, reuse)
            assert found.video == full.video, "computed in full"
            assert found.started.degraded.reason == errors.DEPENDENCY_UNAVAILABLE
            assert found.started.degraded.metadata["service"] == "cache"
            messages.append(found.started.degraded.message)
        assert "no answer in 1 s (CHORUS_DENOISER_FETCH_SECONDS)" in messages[0]
        assert all("calls are suspended" in message for message in messages[1:]), messages
        relay.thaw()
        async with asyncio.timeout(20):
            while not (await run(stub, reuse)).started.HasField("donor"):
                pass


async def test_runs_do_not_wait_for_admissions_to_a_silent_cache(
    model: Path, cache: FakeCache, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    settings = {"CHORUS_DENOISER_MAX_ADMISSIONS": "2"}
    async with denoiser_behind_relay(model, cache_server[1], tmp_path, **settings) as (stub, relay, _):
        assert (await run(stub, request(seed=1))).admission is not None
        relay.freeze()
        calls = []
        for seed in (2, 3):
            calls.append(stub.Denoise(request(seed=seed), timeout=SECONDS))
            await read_until(calls[-1], "completed")
        # More runs than may wait for the device: none keeps its place until its admission ends.
        for seed in (4, 5):
            refused = await run(stub, request(seed=seed))
            assert refused.admission is not None
            assert refused.admission.error.reason == errors.QUEUE_FULL
            assert "CHORUS_DENOISER_MAX_ADMISSIONS" in refused.admission.error.message
        calls[0].cancel()  # its admission continues
        relay.thaw()
        assert (await read_until(calls[1], "admission")).admission.entry_id
        async with asyncio.timeout(20):
            while len(cache.entries) < 3:
                assert (await run(stub, request(seed=1, admit=False))).admission is None


async def test_admissions_under_way_are_bounded_in_bytes(
    model: Path, cache: FakeCache, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    settings = {"CHORUS_DENOISER_MAX_ADMISSION_BYTES": "1024"}
    async with denoiser_behind_relay(model, cache_server[1], tmp_path, **settings) as (stub, relay, process):
        assert (await run(stub, request(seed=1))).admission is not None, "nothing else waits"
        relay.freeze()
        waiting = stub.Denoise(request(seed=2), timeout=SECONDS)
        await read_until(waiting, "completed")
        admission = (await run(stub, request(seed=3))).admission
        assert admission is not None
        assert admission.error.reason == errors.QUEUE_FULL
        assert "CHORUS_DENOISER_MAX_ADMISSION_BYTES" in admission.error.message
        relay.thaw()
        assert (await read_until(waiting, "admission")).admission.entry_id
        assert len(cache.entries) == 2
        assert "latents not admitted" in process.tail()


async def test_shutdown_ends_admissions_that_do_not_end(
    model: Path, cache: FakeCache, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    settings = {"CHORUS_DENOISER_DRAIN_SECONDS": "0.5"}
    async with denoiser_behind_relay(model, cache_server[1], tmp_path, **settings) as (stub, relay, process):
        await run(stub, request(admit=False))
        relay.freeze()
        await read_until(stub.Denoise(request(), timeout=SECONDS), "completed")
        assert await asyncio.to_thread(process.terminate) == 0
