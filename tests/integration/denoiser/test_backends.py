"""Tests of the configured backend over gRPC: reported in each step; replaced or rejected if unavailable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc.channels import open_channel

from tests.integration.denoiser.calls import SECONDS, FakeCache, environment, request, run
from tests.processes import ROOT, start_service


async def test_backend_of_a_step_is_reported(stub: denoiser_pb2_grpc.DenoiserServiceAsyncStub) -> None:
    outcome = await run(stub, request(admit=False))
    assert {step.backend for step in outcome.steps} == {"torch"}
    assert {step.fallback for step in outcome.steps} == {""}
    [model] = (await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)).models
    assert (model.backend, model.fallback_steps) == ("torch", 0)


async def test_torch_replaces_an_engine_without_a_gpu_and_reports_it(
    model: Path, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    env = {
        **environment(model, cache_server[1]),
        "CHORUS_DENOISER_BACKEND": "tensorrt",
        "CHORUS_DENOISER_ENGINES": str(tmp_path / "engines"),
    }
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            outcome = await run(stub, request(admit=False))
            assert {step.backend for step in outcome.steps} == {"torch"}
            assert all("needs a CUDA device" in step.fallback for step in outcome.steps)
            [found] = (
                await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
            ).models
            assert found.backend == "tensorrt"
            assert found.fallback_steps >= len(outcome.steps)


async def test_default_on_a_cpu_is_onnxruntime(
    model: Path, cache_server: tuple[FakeCache, str], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    env = {
        **environment(model, cache_server[1]),
        "CHORUS_DENOISER_BACKEND_FALLBACK": "false",
        "CHORUS_DENOISER_ENGINES": str(tmp_path / "engines"),
    }
    del env["CHORUS_DENOISER_BACKEND"]
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            outcome = await run(stub, request(admit=False))
            assert {step.backend for step in outcome.steps} == {"onnxruntime"}
            assert outcome.completed.steps_run == 4
            assert len(outcome.video) == outcome.header.size_bytes > 0
            [found] = (
                await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
            ).models
            assert (found.backend, found.fallback_steps) == ("onnxruntime", 0)


def test_start_fails_if_torch_may_not_replace_the_backend(model: Path, tmp_path: Path) -> None:
    env = {
        **environment(model, "127.0.0.1:1"),
        "PATH": "",
        "CHORUS_DENOISER_PORT": "0",
        "CHORUS_DENOISER_BACKEND": "tensorrt",
        "CHORUS_DENOISER_BACKEND_FALLBACK": "false",
        "CHORUS_DENOISER_ENGINES": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "services.denoiser"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 2
    assert "CHORUS_DENOISER_BACKEND: tensorrt: needs a CUDA device" in ended.stderr
