"""`python -m services.gateway`: reads settings from `CHORUS_GATEWAY_*` and serves until SIGTERM."""

from __future__ import annotations

import sys

from services.gateway.server import serve
from services.gateway.settings import GatewaySettings
from services.runtime.process import run_process
from services.runtime.settings import load_settings


def main() -> None:
    settings = load_settings(GatewaySettings, sys.argv[1:])
    run_process("gateway", settings, lambda open_metrics_port: serve(settings, open_metrics_port))


if __name__ == "__main__":
    main()
