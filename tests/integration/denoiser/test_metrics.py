"""Verifies the metrics of a denoiser process against the runs that it answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chorus.denoiser.v1 import denoiser_pb2_grpc
from chorus_rpc.channels import open_channel

from tests.integration.denoiser.calls import SIGMAS, FakeCache, environment, request, reusing, run
from tests.processes import free_port, start_service
from tests.scraping import scrape_until


async def test_steps_are_counted_by_kind(
    model: Path, cache_server: tuple[FakeCache, str], cache: FakeCache, tmp_path: Path
) -> None:
    port = free_port()
    env = {**environment(model, cache_server[1]), "CHORUS_DENOISER_METRICS_PORT": str(port)}
    steps = len(SIGMAS) - 1
    with start_service("denoiser", env, tmp_path) as service:
        async with open_channel(service.target) as channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            original = request()
            first = await run(stub, original)
            assert first.admission is not None
            await run(stub, reusing(original, first.admission.entry_id, 2))
        found = await asyncio.to_thread(
            scrape_until, port, lambda seen: seen.value("chorus_rpc_seconds_count") == 2
        )
    assert found.value("chorus_steps_total", model="tiny", kind="reused") == 2
    assert found.value("chorus_steps_total", model="tiny", kind="whole") == steps + steps - 2
    assert found.value("chorus_steps_total") == 2 * steps
    assert found.value("chorus_step_seconds_count", model="tiny", kind="whole", backend="torch") == (
        2 * steps - 2
    )
    assert found.value("chorus_step_seconds_sum") > 0
