"""`python -m services.denoiser`: reads settings from `CHORUS_DENOISER_*` and serves until SIGTERM."""

from __future__ import annotations

import os
import sys
from threading import Event

# Threads that wait for each other sleep instead of spinning: the other services share the cores, and a step
# whose threads spin while one of them is descheduled takes several times as long. torch reads this at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc.channels import open_channel

from services.denoiser.admissions import Admissions
from services.denoiser.backends.base import BackendError
from services.denoiser.checkpoint.weights import WeightsError
from services.denoiser.device_thread import DeviceThread
from services.denoiser.latent_cache import LatentCache
from services.denoiser.model.spec import SpecError
from services.denoiser.model_registry import load_models
from services.denoiser.servicer import DenoiserServicer
from services.denoiser.settings import DenoiserSettings
from services.runtime.breaker import Guard
from services.runtime.health import make_probe
from services.runtime.resources import Resources
from services.runtime.server import run
from services.runtime.settings import load_settings

_CACHE_SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name


async def start(settings: DenoiserSettings, resources: Resources, server: grpc.aio.Server) -> None:
    """Loads and warms the models off the event loop, so that health checks are answered meanwhile."""
    channel = open_channel(settings.cache_target, settings.max_message_bytes)
    resources.push_async_callback(channel.close)
    device_thread = DeviceThread(settings.queue_limit)
    resources.push_async_callback(device_thread.close)
    resources.start_task(device_thread.watch(), "device")
    stopping = Event()
    resources.callback(stopping.set)
    registry = await load_models(settings, device_thread, stopping)
    resources.push_async_callback(registry.close)
    guard = Guard("cache", make_probe(channel, _CACHE_SERVICE))
    resources.push_async_callback(guard.close)
    latent_cache = LatentCache(
        cache_pb2_grpc.CacheServiceStub(channel),
        guard,
        max_blob_bytes=settings.max_blob_bytes,
        fetch_seconds=settings.fetch_seconds,
        admit_seconds=settings.admit_seconds,
        donor_dtype=settings.donor_dtype,
        key=settings.cache_key.get_secret_value(),
    )
    admissions = Admissions(
        latent_cache, max_count=settings.max_admissions, max_bytes=settings.max_admission_bytes
    )
    resources.push_async_callback(admissions.close)
    denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(
        DenoiserServicer(
            registry,
            device_thread,
            latent_cache,
            admissions,
            settings.run_seconds,
            settings.max_message_bytes,
        ),
        server,
    )


def main() -> None:
    settings = load_settings(DenoiserSettings, sys.argv[1:])
    try:
        run(
            "denoiser",
            denoiser_pb2.DESCRIPTOR.services_by_name["DenoiserService"].full_name,
            settings,
            lambda resources, server: start(settings, resources, server),
        )
    except (SpecError, WeightsError) as error:
        print(f"CHORUS_DENOISER_MODELS: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BackendError as error:
        print(f"CHORUS_DENOISER_BACKEND: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
