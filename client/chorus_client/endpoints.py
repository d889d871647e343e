"""Where the services are: said by the user, or written down by a running `chorus up`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from chorus_client.aio import write_whole

FILE: Final = "endpoints.json"
DIRECTORY: Final = Path(".chorus")
DEFAULT_TARGETS: Final = {
    "scheduler": "localhost:7400",
    "embedder": "localhost:7401",
    "cache": "localhost:7402",
    "denoiser": "localhost:7403",
}


@dataclass(frozen=True)
class Endpoints:
    """The services that a `chorus up` with process id `pid` runs: name → "host:port"."""

    pid: int
    targets: dict[str, str]


def write(directory: Path, endpoints: Endpoints) -> None:
    """Puts the file there whole."""
    write_whole(directory / FILE, (json.dumps(asdict(endpoints), indent=2) + "\n").encode())


def remove(directory: Path) -> None:
    (directory / FILE).unlink(missing_ok=True)


def running(directory: Path) -> Endpoints | None:
    """The endpoints of the `chorus up` of `directory`; None when none runs, whatever file it left."""
    try:
        found = json.loads((directory / FILE).read_text())
        endpoints = Endpoints(int(found["pid"]), {str(k): str(v) for k, v in found["targets"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return endpoints if _lives(endpoints.pid) else None


def resolve(service: str, given: str | None, directory: Path = DIRECTORY) -> str:
    """The target of a service: as given, else of this directory's `chorus up`, else the default port."""
    if given:
        return given
    endpoints = running(directory)
    return (endpoints.targets if endpoints else {}).get(service) or DEFAULT_TARGETS[service]


def _lives(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
