"""Tests of the host adapter over gRPC: it computes what follows a donor and nothing else, on each backend."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from tests.integration.denoiser.calls import (
    SECONDS,
    FakeCache,
    Outcome,
    environment,
    latents,
    request,
    reusing,
    run,
)
from tests.processes import ROOT, start_service
from tests.tiny_model import save_host_adapter, save_tiny_model, write_host_section


@asynccontextmanager
async def serve(model: Path, cache_target: str, folder: Path, **settings: str) -> AsyncIterator[Any]:
    env = environment(model, cache_target) | {
        f"CHORUS_DENOISER_{name.upper()}": value for name, value in settings.items()
    }
    with start_service("denoiser", env, folder) as process:
        async with open_channel(process.target) as channel:
            yield denoiser_pb2_grpc.DenoiserServiceStub(channel)


@pytest.fixture
def hosted(tmp_path: Path) -> Path:
    """The model of the other tests with a host adapter."""
    path = save_tiny_model(tmp_path / "model")
    save_host_adapter(path)
    return path


async def run_miss(stub: Any, cache: FakeCache) -> tuple[Outcome, str, dict[int, bytes]]:
    """Runs a request without a donor. Returns the outcome, and id and latents of its entry."""
    outcome = await run(stub, request())
    assert outcome.admission is not None
    return outcome, outcome.admission.entry_id, dict(latents(cache, outcome.admission.entry_id))


async def test_adapter_computes_hits_only(
    stub: Any, cache: FakeCache, cache_server: tuple[FakeCache, str], hosted: Path, tmp_path: Path
) -> None:
    plain, entry_id, stored = await run_miss(stub, cache)
    plain_hit = await run(stub, reusing(request(seed=8, admit=False), entry_id, 2))
    assert (plain.started.host_adapter, plain_hit.started.host_adapter) == ("", "")
    async with serve(hosted, cache_server[1], tmp_path) as host_stub:
        miss, hosted_entry_id, hosted_stored = await run_miss(host_stub, cache)
        assert (miss.video, hosted_stored) == (plain.video, stored)
        assert (miss.started.host_adapter, hosted_entry_id) == ("", entry_id)
        entries = len(cache.entries)
        hit = await run(host_stub, reusing(request(seed=8), entry_id, 2))
        assert (hit.started.host_adapter, hit.completed.steps_run) == ("host", 2)
        assert hit.video != plain_hit.video
        assert hit.admission is not None
        assert (hit.admission.entry_id, hit.admission.HasField("error")) == ("", False)
        assert len(cache.entries) == entries
        repeat = await run(host_stub, reusing(request(), entry_id, 4))
        assert (repeat.started.host_adapter, repeat.completed.steps_run) == ("", 0)
        assert repeat.video == plain.video
        lost = await run(host_stub, reusing(request(seed=7, admit=False), "0" * 64, 2))
        assert lost.started.degraded.reason == errors.NOT_FOUND
        assert (lost.started.host_adapter, lost.video) == ("", plain.video)
        described = await host_stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
    [info] = described.models
    assert (info.host_adapter.adapter_id, len(info.adapters)) == ("host", 0)
    [info] = (await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)).models
    assert not info.HasField("host_adapter")


async def test_adapter_of_zeros_equals_none(
    stub: Any, cache: FakeCache, cache_server: tuple[FakeCache, str], hosted: Path, tmp_path: Path
) -> None:
    save_host_adapter(hosted, size=0.0)
    _, entry_id, _ = await run_miss(stub, cache)
    what = request(seed=8, admit=False)
    plain = await run(stub, reusing(what, entry_id, 1))
    async with serve(hosted, cache_server[1], tmp_path) as host_stub:
        hit = await run(host_stub, reusing(what, entry_id, 1))
    assert hit.started.host_adapter == "host"
    assert hit.video == plain.video


async def test_onnxruntime_runs_hits_on_the_hosts_graph(
    stub: Any, cache: FakeCache, cache_server: tuple[FakeCache, str], hosted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    _, entry_id, _ = await run_miss(stub, cache)
    what = reusing(request(seed=8, admit=False), entry_id, 1)
    plain = await run(stub, what)
    async with serve(
        hosted,
        cache_server[1],
        tmp_path,
        backend="onnxruntime",
        backend_fallback="false",
        engines=str(tmp_path / "engines"),
    ) as host_stub:
        hit = await run(host_stub, what)
    assert {(step.backend, step.fallback) for step in hit.steps} == {("onnxruntime", "")}
    assert hit.started.host_adapter == "host"
    assert hit.video != plain.video
    assert len(list((tmp_path / "engines").glob("*/manifest.json"))) == 2


async def test_torch_runs_the_adapter_where_an_engine_cannot(
    stub: Any, cache: FakeCache, cache_server: tuple[FakeCache, str], hosted: Path, tmp_path: Path
) -> None:
    _, entry_id, _ = await run_miss(stub, cache)
    what = reusing(request(seed=8, admit=False), entry_id, 1)
    async with serve(hosted, cache_server[1], tmp_path) as host_stub:
        expected = await run(host_stub, what)
    engines = str(tmp_path / "engines")
    async with serve(hosted, cache_server[1], tmp_path, backend="tensorrt", engines=engines) as host_stub:
        hit = await run(host_stub, what)
        described = await host_stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
    assert all(step.backend == "torch" and "needs a CUDA device" in step.fallback for step in hit.steps)
    assert hit.video == expected.video
    assert described.models[0].fallback_steps >= len(hit.steps)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "host.safetensors: no such file or directory"),
        ("digest", f"host.safetensors: sha256 .*, expected {'0' * 64}"),
    ],
)
def test_start_fails_without_the_adapters_file(hosted: Path, fault: str, message: str) -> None:
    file = hosted.parent / "host.safetensors"
    if fault == "missing":
        file.unlink()
    else:
        write_host_section(hosted, file, sha256=f'"{"0" * 64}"')
    ended = subprocess.run(
        [sys.executable, "-m", "services.denoiser"],
        cwd=ROOT,
        env={**environment(hosted, "127.0.0.1:1"), "PATH": "", "CHORUS_DENOISER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 2
    assert re.search(message, ended.stderr), ended.stderr
