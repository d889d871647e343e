"""Addresses of the services: given, from the environment, or published by a running `chorus up`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from chorus_rpc.errors import invalid

from chorus_client.files import write_atomically

FILE: Final = "endpoints.json"
DIRECTORY: Final = Path(".chorus")
DEFAULT_TARGETS: Final = {
    "scheduler": "localhost:7400",
    "embedder": "localhost:7401",
    "cache": "localhost:7402",
    "denoiser": "localhost:7403",
    "gateway": "localhost:7404",
}
# Environment variables with the addresses of the services that a client calls.
VARIABLES: Final = {"scheduler": "CHORUS_TARGET", "cache": "CHORUS_CACHE_TARGET"}


@dataclass(frozen=True)
class Endpoints:
    """Services of a running `chorus up`.

    Attributes:
        pid: process id of that `chorus up`.
        targets: "host:port" of each service, by name.
    """

    pid: int
    targets: dict[str, str]


def write(directory: Path, endpoints: Endpoints) -> None:
    """Writes the file into `directory` atomically."""
    write_atomically(directory / FILE, (json.dumps(asdict(endpoints), indent=2) + "\n").encode())


def remove(directory: Path) -> None:
    """Removes the file from `directory`, if it exists."""
    (directory / FILE).unlink(missing_ok=True)


def running(directory: Path) -> Endpoints | None:
    """Returns the endpoints of the `chorus up` of `directory`; None if it does not run."""
    try:
        content = json.loads((directory / FILE).read_text())
        endpoints = Endpoints(int(content["pid"]), {str(k): str(v) for k, v in content["targets"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return endpoints if _is_alive(endpoints.pid) else None


def resolve(service: str, target: str | None = None, directory: Path = DIRECTORY) -> str:
    """Returns the target of a service.

    It is the first of these: `target`; the service's environment variable; the `chorus up` of `directory`;
    the default port on this machine. Raises ChorusError (INVALID_FIELD) for a target that is no text.
    """
    if target is not None and not isinstance(target, str):
        raise invalid("target", f"must be text, host:port, not {target!r}")
    if target := target or os.environ.get(VARIABLES.get(service, "")):
        return target
    endpoints = running(directory)
    return (endpoints.targets if endpoints else {}).get(service) or DEFAULT_TARGETS[service]


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
