"""Environment variables of the command line, and warnings about those that look misspelt.

Variables of a service begin with CHORUS_<SERVICE>_; each service checks its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chorus_client.endpoints import VARIABLES
from chorus_rpc.suggestions import closest

PREFIX: Final = "CHORUS_"
KNOWN: Final = (*VARIABLES.values(), "CHORUS_TENANT")
SERVICES: Final = ("EMBEDDER", "CACHE", "DENOISER", "SCHEDULER")


def check_variables(names: Iterable[str]) -> list[str]:
    """Returns a warning for each CHORUS_ variable that neither this command nor a service reads."""
    return [_warning(name) for name in sorted(names) if name.startswith(PREFIX) and not _is_known(name)]


def _is_known(name: str) -> bool:
    return name in KNOWN or name.startswith(tuple(f"{PREFIX}{service}_" for service in SERVICES))


def _warning(name: str) -> str:
    suggestion = _suggest(name)
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    return f"{name} is set, but no such variable exists{hint}"


def _suggest(name: str) -> str | None:
    service, _, setting = name.removeprefix(PREFIX).partition("_")
    nearest = closest(service, SERVICES) if setting else None
    return f"{PREFIX}{nearest}_{setting}" if nearest else closest(name, KNOWN)
