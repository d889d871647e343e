"""Environment variables of the command line, and warnings about those that look misspelt.

Variables of a service begin with CHORUS_<SERVICE>_; each service checks its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chorus_client.endpoints import VARIABLES
from chorus_client.security import TOKEN_VARIABLE
from chorus_rpc.suggestions import closest

PREFIX: Final = "CHORUS_"
KNOWN: Final = (*VARIABLES.values(), "CHORUS_TENANT", TOKEN_VARIABLE)
# The cache reads it too.
OPERATOR_KEY: Final = "CHORUS_CACHE_OPERATOR_KEY"
SERVICES: Final = ("EMBEDDER", "CACHE", "DENOISER", "SCHEDULER", "GATEWAY")
_SERVICE_PREFIXES: Final = tuple(f"{PREFIX}{service}_" for service in SERVICES)


def check_variables(names: Iterable[str]) -> list[str]:
    """Returns a warning for each CHORUS_ variable that neither this command nor a service reads."""
    return [_warning(name) for name in sorted(names) if name.startswith(PREFIX) and not _is_known(name)]


def _is_known(name: str) -> bool:
    return name in KNOWN or (name.startswith(_SERVICE_PREFIXES) and not _is_misspelt_own(name))


def _is_misspelt_own(name: str) -> bool:
    """Returns whether a name with a service's prefix resembles CHORUS_CACHE_TARGET, which is this command's.

    The prefix is left out of the comparison, because every setting of the cache begins with it.
    """
    return any(
        closest(name.removeprefix(prefix), [own.removeprefix(prefix)])
        for prefix in _SERVICE_PREFIXES
        for own in KNOWN
        if own.startswith(prefix) and name.startswith(prefix)
    )


def _warning(name: str) -> str:
    suggestion = _suggest(name)
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    return f"{name} is set, but no such variable exists{hint}"


def _suggest(name: str) -> str | None:
    if name.startswith(_SERVICE_PREFIXES):
        return closest(name, KNOWN)
    service, _, setting = name.removeprefix(PREFIX).partition("_")
    nearest = closest(service, SERVICES) if setting else None
    return f"{PREFIX}{nearest}_{setting}" if nearest else closest(name, KNOWN)
