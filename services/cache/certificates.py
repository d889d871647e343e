"""Connections to Milvus over TLS: why one fails."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit


class TlsFault(OSError):
    """A connection over TLS that no retry can establish. The message names the settings."""


def find_tls_fault(uri: str, ca: str, seconds: float) -> str | None:
    """Returns why a handshake with the server at an https URI fails; None if it succeeds.

    Raises OSError if nothing listens there.

    Args:
        ca: PEM file with the authorities that may have signed the server's certificate; "": the system's.
    """
    parts = urlsplit(uri)
    host = parts.hostname or ""
    context = ssl.create_default_context(cafile=ca or None)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, parts.port or 443), seconds) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host):
                return None
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is not accepted: {error.verify_message}"
        except ssl.SSLError as error:
            return f"it does not answer with TLS ({error.reason})"
