"""Load on one denoiser process: time of a generation, and memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from chorus.common.v1 import latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

_START_SECONDS: Final = 120.0
_RUN_SECONDS: Final = 120.0
_WARM_UPS: Final = 2


@dataclass(frozen=True)
class Load:
    """Measurements of one process.

    Attributes:
        seconds: Time of each generation from the call to the complete mp4, in seconds.
        peak_rss_mb: Peak resident memory of the process, in MB (1e6 bytes).
    """

    seconds: list[float]
    peak_rss_mb: float


@contextmanager
def _start_denoiser(threads: int) -> Iterator[tuple[int, grpc.Channel]]:
    """Starts a denoiser process for the duration of the context. Yields its pid and a channel."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "CHORUS_DENOISER_HOST": "127.0.0.1",
        "CHORUS_DENOISER_PORT": str(port),
        "CHORUS_DENOISER_THREADS": str(threads),
    }
    command = (sys.executable, "-m", "services.denoiser")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                _wait_until_serving(channel, process)
                yield process.pid, channel
        finally:
            process.terminate()


def _wait_until_serving(channel: grpc.Channel, process: subprocess.Popen[bytes]) -> None:
    # The generated HealthStub has no type information about its methods.
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and (left := end - time.monotonic()) > 0:
        try:
            for reply in watch(health_pb2.HealthCheckRequest(), timeout=min(left, 5), wait_for_ready=True):
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        except grpc.RpcError:
            continue  # not listening yet, or the watch timed out
    raise SystemExit(f"the denoiser did not start within {_START_SECONDS:g} s")


def measure(states: Sequence[NDArray[np.float32]], threads: int) -> Load:
    """Measures full runs of the default model, one per prompt, after two warm-up runs.

    Args:
        states: Token states [L, D] of each prompt.
        threads: Number of torch threads of the denoiser.
    """
    seconds = []
    with _start_denoiser(threads) as (pid, channel):
        stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        response = stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=_RUN_SECONDS)
        model = response.models[0]
        for i, prompt in enumerate([*states[:_WARM_UPS], *states]):
            request = denoiser_pb2.DenoiseRequest(
                generation_id=f"bench-{i}",
                model_id=model.model_id,
                shape=model.default_shape,
                schedule=model.default_schedule,
                seed=i,
                conditioning_encoder_id=model.conditioning_encoder_id,
                token_states=latents_pb2.Tensor(
                    dtype=latents_pb2.D_TYPE_FLOAT32, shape=prompt.shape, data=prompt.astype("<f4").tobytes()
                ),
                plan=plan_pb2.Plan(total_steps=len(model.default_schedule.sigmas) - 1),
            )
            begin = time.perf_counter()
            video = b"".join(e.video_chunk for e in stub.Denoise(request, timeout=_RUN_SECONDS))
            seconds.append(time.perf_counter() - begin)
            if not video:
                raise SystemExit("the denoiser sent no video")
        peak = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")
        )
    return Load(seconds[_WARM_UPS:], int(peak.split()[1]) * 1024 / 1e6)
