"""Writes docs/openapi.json, the OpenAPI document of the gateway.

python docs/make_openapi.py
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from chorus_client import AsyncChorusClient

from services.gateway.app import create_app
from services.gateway.health import Health
from services.gateway.settings import GatewaySettings

PAGE = Path(__file__).with_name("openapi.json")


def make_document() -> str:
    """Returns the document; no scheduler is asked for it."""

    async def build() -> str:
        settings = GatewaySettings(_env_prefix="CHORUS_DOCUMENT_")  # type: ignore[call-arg]
        async with AsyncChorusClient("127.0.0.1:1") as client:
            app = create_app(settings, client, Health())
        return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"

    return asyncio.run(build())


if __name__ == "__main__":
    PAGE.write_text(make_document())
