"""Signatures of Standard Webhooks, https://www.standardwebhooks.com: HMAC-SHA256 with a shared secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

_PREFIX: Final = "whsec_"
# Bounds of the standard on the bytes of a secret.
_MIN_SECRET_BYTES: Final = 24
_MAX_SECRET_BYTES: Final = 64


def parse_secret(text: str) -> bytes:
    """Returns the bytes of "whsec_" and base64. Raises ValueError, without the secret, for another text."""
    fault = f'must be "{_PREFIX}" and the base64 of {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} random bytes'
    if not text.startswith(_PREFIX):
        raise ValueError(fault)
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(fault) from None
    if not _MIN_SECRET_BYTES <= len(secret) <= _MAX_SECRET_BYTES:
        raise ValueError(f"{fault}, not of {len(secret)}")
    return secret


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Returns the signature of a message, "v1," and base64.

    Args:
        timestamp: time of the attempt, in whole Unix seconds.
    """
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def make_headers(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Returns the headers of a message, with a signature for each secret. Arguments as of `sign`."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in secrets),
    }
