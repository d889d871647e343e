"""Checks of the settings of an object store. Each raises ValueError that states what to write instead."""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias

from pydantic import SecretStr

CredentialsSource: TypeAlias = Literal["keys", "environment", "role"]

# Variables of the source "environment"; either name of a pair is read.
_ENVIRONMENT_KEYS: Final = (
    ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"),
    ("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"),
)


def check_endpoint(value: str, secure: str) -> str:
    """Returns an endpoint.

    Args:
        secure: variable that selects TLS.
    """
    if "://" in value:
        raise ValueError(f"must be host:port without a scheme; {secure} selects TLS")
    if any(character in value for character in "/?#@ "):
        raise ValueError("must be host:port alone: no path, credentials or spaces")
    if value.count(":") > 1 and not value.startswith("["):
        raise ValueError("must have brackets around an IPv6 address, for instance [::1]:9000")
    return value


def check_source(source: CredentialsSource) -> CredentialsSource:
    """Returns a source of credentials whose variables are set."""
    if source == "environment":
        missing = [names[0] for names in _ENVIRONMENT_KEYS if not any(map(os.environ.get, names))]
        if missing:
            raise ValueError(f"reads {' and '.join(missing)}, which must be set")
    return source


def check_key(key: SecretStr, source: CredentialsSource, variable: str, *, optional: bool) -> SecretStr:
    """Returns a key or token of the store that agrees with the source of the credentials.

    Args:
        variable: variable that selects the source.
    """
    if source == "keys" and not key.get_secret_value() and not optional:
        raise ValueError(f"must be set for S3 when {variable} is keys")
    if source != "keys" and key.get_secret_value():
        raise ValueError(f"must be empty when {variable} is {source}")
    return key
