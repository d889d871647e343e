"""Tests of the denoiser over gRPC: unusable donors, cancellation, deadlines, full queues, draining."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from chorus.cache.v1 import cache_pb2
from chorus.denoiser.v1 import denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from services.contract.schedule import shifted_schedule
from tests.integration.denoiser.calls import (
    SECONDS,
    FakeCache,
    Outcome,
    Parts,
    blob_parts,
    environment,
    failure,
    long_request,
    request,
    reusing,
    run,
)
from tests.processes import ServiceProcess, free_port, start_service
from tests.tiny_model import save_tiny_model


def altered(parts: Parts) -> Parts:
    chunk = bytearray(parts[-1].chunk)
    chunk[-1] ^= 1
    return [*parts[:-1], cache_pb2.FetchResponse(chunk=bytes(chunk))]


def replaced(data: bytes) -> Callable[[Parts], Parts]:
    return lambda parts: blob_parts(parts[0].header.step.index, parts[0].header.step.sigma, data)


def tensor(shape: tuple[int, ...], name: str = "latents", dtype: str = "f4", fill: float = 0) -> bytes:
    return safetensors.numpy.save({name: np.full(shape, fill, dtype)})


def other_sigma(parts: Parts) -> Parts:
    parts[0].header.step.sigma = 0.5
    return parts


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(altered, id="altered"),
        pytest.param(lambda parts: parts[:2], id="truncated"),
        pytest.param(lambda parts: [*parts, *parts[1:]], id="too long"),
        pytest.param(lambda parts: parts[1:], id="no header"),
        pytest.param(lambda parts: parts + parts, id="two blobs"),
        pytest.param(lambda parts: [], id="nothing"),
        pytest.param(other_sigma, id="another sigma"),
        pytest.param(replaced(b"no safetensors at all"), id="foreign"),
        pytest.param(replaced(tensor((12, 2, 4, 5))), id="another shape"),
        pytest.param(replaced(tensor((12, 2, 4, 4), dtype="f8")), id="another type"),
        pytest.param(replaced(tensor((12, 2, 4, 4), name="x")), id="another tensor"),
        pytest.param(replaced(tensor((12, 2, 4, 4), fill=float("nan"))), id="NaN"),
    ],
)
async def test_unusable_donor_leads_to_full_computation(
    stub: Any, cache: FakeCache, spoil: Callable[[Parts], Parts]
) -> None:
    full = await run(stub, request())
    assert full.admission is not None
    cache.spoil = spoil
    found = await run(stub, reusing(request(), full.admission.entry_id, 2))
    assert found.started.degraded.reason == errors.BLOB_CORRUPT
    assert full.admission.entry_id in found.started.degraded.message
    assert found.started.reuse_steps == 0
    assert not found.started.HasField("donor")
    assert found.completed.steps_run == 4
    assert found.video == full.video


async def test_missing_donor_leads_to_full_computation(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, reusing(request(), "0" * 64, 1))
    assert found.started.degraded.reason == errors.NOT_FOUND
    assert (found.started.reuse_steps, found.completed.steps_run) == (0, 4)


async def logged(service: ServiceProcess, event: str, generation_id: str) -> dict[str, Any]:
    """Returns the log record of an event; waits for it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for line in service.log.read_text().splitlines():
            if line.startswith("{"):
                record: dict[str, Any] = json.loads(line)
                if record.get("event") == event and record.get("generation_id") == generation_id:
                    return record
        await asyncio.sleep(0.05)
    raise TimeoutError(f"no {event!r} of {generation_id}\n{service.tail()}")


async def test_cancelling_the_call_stops_the_run_between_steps(stub: Any, service: ServiceProcess) -> None:
    what = long_request()
    call = stub.Denoise(what, timeout=SECONDS)
    async for event in call:
        if event.WhichOneof("event") == "step_completed":
            break
    call.cancel()
    stopped = await logged(service, "run stopped", what.generation_id)
    assert 1 <= stopped["steps_run"] < 150
    assert (await run(stub, request(admit=False))).completed.steps_run == 4


async def test_deadline_stops_the_run_between_steps(stub: Any, service: ServiceProcess) -> None:
    what = long_request()
    error = await failure(stub, what, seconds=1.5)
    assert error.reason == errors.DEADLINE_EXCEEDED
    assert (await logged(service, "run stopped", what.generation_id))["steps_run"] < 150


@pytest.mark.fault("named-limit")
async def test_run_that_takes_too_long_names_the_limit(model: Path, tmp_path: Path) -> None:
    env = {**environment(model, "127.0.0.1:1"), "CHORUS_DENOISER_RUN_SECONDS": "0.1"}
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            error = await failure(denoiser_pb2_grpc.DenoiserServiceStub(channel), long_request())
    assert error.reason == errors.TIME_LIMIT_EXCEEDED
    assert "took longer than 0.1 s (CHORUS_DENOISER_RUN_SECONDS)" in error.message
    assert error.metadata["setting"] == "CHORUS_DENOISER_RUN_SECONDS"


async def test_full_queue_rejects_and_recovers(stub: Any) -> None:
    running = stub.Denoise(long_request(), timeout=SECONDS)
    assert (await running.read()).WhichOneof("event") == "started"
    calls = [asyncio.create_task(run(stub, request(admit=False))) for _ in range(4)]
    # One may wait; the others are rejected while the first still runs.
    done: set[asyncio.Task[Outcome]] = set()
    while len(done) < 3:
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        calls_left = [call for call in calls if not call.done()]
        if len(calls_left) > 1:
            await asyncio.wait(calls_left, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    for call in done:
        error = errors.from_rpc_error(call.exception(), "denoiser")  # type: ignore[arg-type]
        assert error.reason == errors.QUEUE_FULL
        assert error.retry_after
        assert error.retry_after > 0
    running.cancel()
    [waiting] = [call for call in calls if call not in done]
    assert (await waiting).completed.steps_run == 4


async def test_without_a_cache_the_video_is_computed_in_full(model: Path, tmp_path: Path) -> None:
    with start_service("denoiser", environment(model, f"127.0.0.1:{free_port()}"), tmp_path) as process:
        async with open_channel(process.target) as channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            found = await run(stub, reusing(request(), "0" * 64, 1))
            assert found.started.degraded.reason == errors.DEPENDENCY_UNAVAILABLE
            assert found.started.degraded.metadata["service"] == "cache"
            assert found.completed.steps_run == 4
            assert found.admission is not None
            assert found.admission.entry_id == ""
            assert found.admission.error.reason == errors.DEPENDENCY_UNAVAILABLE
            assert found.admission.error.metadata["service"] == "cache"


async def test_draining_lets_the_running_call_finish(model: Path, tmp_path: Path) -> None:
    env = {**environment(model, "127.0.0.1:1"), "CHORUS_DENOISER_DRAIN_SECONDS": str(SECONDS)}
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            what = request(sigmas=shifted_schedule(30, 5.0), admit=False, side=64, frames=4)
            events = aiter(denoiser_pb2_grpc.DenoiserServiceStub(channel).Denoise(what, timeout=SECONDS))
            assert (await anext(events)).WhichOneof("event") == "started"
            stopping = asyncio.create_task(asyncio.to_thread(process.terminate, SECONDS))
            rest = [event async for event in events]
            assert rest[-1].completed.steps_run == 30
            assert await stopping == 0
    lines = process.log.read_text().splitlines()
    [draining] = [i for i, line in enumerate(lines) if '"draining"' in line]
    [denoised] = [i for i, line in enumerate(lines) if '"denoised"' in line]
    assert draining < denoised


def test_model_that_cannot_be_loaded_ends_the_process_and_is_named(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    weights = path.parent / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    process = ServiceProcess(
        "denoiser", environment(path, "127.0.0.1:1"), free_port(), tmp_path / "denoiser.log"
    )
    process.start(wait=False)
    assert process.process is not None
    try:
        assert process.process.wait(2 * SECONDS) == 2
    finally:
        process.kill()
    assert "weights.safetensors" in process.tail()
    assert "truncated" in process.tail()
