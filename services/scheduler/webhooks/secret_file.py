"""File of the signing secrets, by tenant, which is read again when it changes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from chorus_rpc.limits import TENANT_PATTERN

from services.runtime.watched_file import WatchedFile
from services.scheduler.webhooks.signature import parse_secret

SETTING: Final = "CHORUS_SCHEDULER_WEBHOOK_SECRETS"
# During a rotation receivers may know the former secret or the new one.
_MAX_SECRETS: Final = 2
# 10,000 tenants with two secrets each.
_MAX_SECRET_FILE_BYTES: Final = 4 << 20

Secrets: TypeAlias = Mapping[str, Sequence[bytes]]


def parse_secrets(data: bytes) -> Secrets:
    """Returns the secrets of a file by tenant. Raises ValueError, without a secret, that names the tenant.

    The file is JSON: {"acme": ["whsec_…"], "beta": ["whsec_…", "whsec_…"]}.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        # Without the parser's message, which may quote a secret.
        raise ValueError("must be JSON") from None
    if not isinstance(content, dict):
        raise ValueError('must be an object such as {"default": ["whsec_…"]}')
    secrets = {}
    for tenant, texts in content.items():
        if not re.fullmatch(TENANT_PATTERN, tenant):
            raise ValueError(
                f"{tenant[:64]!r} is no tenant: 1 to 63 of a–z, 0–9 and '-', not starting with '-'"
            )
        if not isinstance(texts, list) or not 1 <= len(texts) <= _MAX_SECRETS:
            raise ValueError(f"{tenant}: must be a list of 1 to {_MAX_SECRETS} secrets")
        try:
            secrets[tenant] = tuple(parse_secret(str(text)) for text in texts)
        except ValueError as error:
            raise ValueError(f"{tenant}: each secret {error}") from None
    return secrets


class SigningSecrets:
    """Secrets by which webhooks are signed.

    Args:
        path: file of the secrets; None for none. Raises InvalidFile if it cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = (
            None
            if path is None
            else WatchedFile(path, parse_secrets, "webhook secrets", SETTING, _MAX_SECRET_FILE_BYTES)
        )

    def find(self, tenant: str) -> Sequence[bytes]:
        """Returns the secrets of a tenant, one or two; empty if it has none."""
        return () if self._file is None else self._file.value.get(tenant, ())

    async def watch(self) -> None:
        """Reads the file again after each change, until cancelled; returns at once without a file."""
        if self._file is not None:
            await self._file.watch()
