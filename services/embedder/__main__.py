"""`python -m services.embedder`: settings from `CHORUS_EMBEDDER_*`, then serve until SIGTERM."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc.aio
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from services.embedder.encoder_thread import EncoderThread, load_engine
from services.embedder.servicer import EmbedderServicer
from services.embedder.settings import EmbedderSettings
from services.runtime.server import run
from services.runtime.settings import load_settings


async def start(settings: EmbedderSettings, resources: AsyncExitStack, server: grpc.aio.Server) -> None:
    """Loads the encoders beside the event loop, so that health answers meanwhile."""

    def load() -> EncoderThread:
        return load_engine(
            settings.retrieval,
            settings.conditioning,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
            queue_limit=settings.queue_limit,
            recent_bytes=settings.recent_bytes,
        )

    engine = await asyncio.to_thread(load)
    resources.callback(engine.close)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(EmbedderServicer(engine), server)


def main() -> None:
    settings = load_settings(EmbedderSettings)
    run(
        "embedder",
        embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name,
        settings,
        lambda resources, server: start(settings, resources, server),
    )


if __name__ == "__main__":
    main()
