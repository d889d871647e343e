"""`python -m services.embedder`: reads settings from `CHORUS_EMBEDDER_*` and serves until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import grpc.aio
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from services.embedder.aligner import Aligner
from services.embedder.encoder_thread import EncoderThread, load_encoders
from services.embedder.lexicon import Lexicon, load_lexicon
from services.embedder.servicer import EmbedderServicer
from services.embedder.settings import EmbedderSettings
from services.runtime.server import run
from services.runtime.settings import load_settings


async def start(
    settings: EmbedderSettings, lexicon: Lexicon, resources: AsyncExitStack, server: grpc.aio.Server
) -> None:
    """Loads the encoders off the event loop, so that health checks are answered meanwhile."""

    def load() -> EncoderThread:
        return load_encoders(
            settings.retrieval,
            settings.conditioning,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
            queue_limit=settings.queue_limit,
            recent_bytes=settings.recent_bytes,
        )

    encoders = await asyncio.to_thread(load)
    resources.callback(encoders.close)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(
        EmbedderServicer(encoders, Aligner(encoders, lexicon)), server
    )


def main() -> None:
    settings = load_settings(EmbedderSettings, sys.argv[1:])
    try:
        lexicon = load_lexicon(settings.lexicons)
    except ValueError as error:
        print(f"CHORUS_EMBEDDER_LEXICONS: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run(
        "embedder",
        embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name,
        settings,
        lambda resources, server: start(settings, lexicon, resources, server),
    )


if __name__ == "__main__":
    main()
