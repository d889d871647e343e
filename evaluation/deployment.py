"""Runs `chorus up` as a child process for the duration of a measurement."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from chorus_cli.local.addresses import HOST, SERVICES
from chorus_cli.local.supervise import tethered
from chorus_cli.local.up import locked

_STOP_SECONDS = 60.0
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
_NO_EMBEDDING_CACHE = {"CHORUS_EMBEDDER_RECENT_BYTES": "0"}


@contextmanager
def local_deployment(
    directory: Path,
    *,
    cache_embeddings: bool = True,
    model: Path | None = None,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Iterator[dict[str, str]]:
    """Runs all services on an emptied `directory`; yields service → "host:port", and stops them at the end.

    Args:
        cache_embeddings: False to disable the embedder's cache, so that a prompt requested twice is embedded
            twice.
        model: Model file to serve. None for the shipped model.
        settings: Environment variables of the services, in addition to those of this process.

    Raises ChorusError when another `chorus up` uses the directory, SystemExit when the services do not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        for old in directory.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != "up.lock":
                old.unlink()
    environment = {
        **_free_ports(),
        **os.environ,
        **settings,
        **({} if cache_embeddings else _NO_EMBEDDING_CACHE),
    }
    # A model of many gigabytes takes minutes to load, the shipped one seconds.
    served = () if model is None else ("--model", str(model), "--startup-seconds", "3600")
    command = tethered((sys.executable, "-m", "chorus_cli", "up", "--dir", str(directory), *served, "--json"))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            yield _targets(process)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_ports() -> Mapping[str, str]:
    """Returns the port variables of the services, with ports that are free.

    Not the default ones: a client that names no address must not reach a deployment that is being measured.
    """
    with ExitStack() as bound:
        sockets = {service: bound.enter_context(socket.socket()) for service in SERVICES}
        for free in sockets.values():
            free.bind((HOST, 0))
        return {
            f"CHORUS_{service.upper()}_PORT": str(free.getsockname()[1]) for service, free in sockets.items()
        }


def _targets(process: subprocess.Popen[str]) -> dict[str, str]:
    """Waits for the line that reports the services' addresses; `chorus up` itself bounds the wait."""
    assert process.stdout is not None
    for line in process.stdout:
        record = json.loads(line)
        if "up" in record:
            targets: dict[str, str] = record["up"]["targets"]
            return targets
        if "error" in record:
            log = "\n".join(record["error"].get("log", ()))
            raise SystemExit(f"the services did not start: {record['error']['message']}\n{log}")
    raise SystemExit("the services did not start")
