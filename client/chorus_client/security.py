"""Protection of a connection to the scheduler: TLS, and the token that authenticates its calls."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from chorus_rpc.errors import invalid
from chorus_rpc.proxies import is_loopback
from chorus_rpc.tenancy import key_metadata

from chorus_client.connection import Metadata, check_metadata

TOKEN_VARIABLE: Final = "CHORUS_TOKEN"
TLS_SCHEME: Final = "chorus+tls://"
_AUTHORIZATION: Final = "authorization"
_TOKEN: Final = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection, in PEM.

    Attributes:
        ca: authorities that may have signed the server's certificate; None for the public ones.
        certificate: certificate of this client, for a server that requires one.
        key: private key of `certificate`.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    def make_credentials(self) -> grpc.ChannelCredentials:
        """Returns the credentials of a channel. Raises ChorusError (INVALID_FIELD) that names the file."""
        if (self.certificate is None) != (self.key is None):
            raise invalid("tls", "needs the certificate and the key of the client, or neither")
        return grpc.ssl_channel_credentials(
            _read("ca", self.ca), _read("key", self.key), _read("certificate", self.certificate)
        )


@dataclass(frozen=True)
class Security:
    """Checked protection of a connection.

    Attributes:
        target: "host:port", or any gRPC name, without the scheme of TLS.
        credentials: channel credentials for TLS; None for a plaintext connection.
        metadata: pairs sent with every call, with the token.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    metadata: Metadata = field(repr=False)


def secure(
    target: str,
    token: str | None,
    tls: bool | Tls,
    credentials: grpc.ChannelCredentials | None,
    metadata: Metadata,
    allow_plaintext_token: bool,
) -> Security:
    """Decides how a connection is protected. The arguments are those of AsyncChorusClient.

    Raises ChorusError (INVALID_FIELD) for arguments that exclude each other, a token that cannot be sent, and
    one that would leave this machine without encryption. No error contains the token.
    """
    if tls and credentials is not None:
        raise invalid("tls", "give tls= or credentials=, not both")
    if target.startswith(TLS_SCHEME):
        target = target.removeprefix(TLS_SCHEME)
        tls = tls or credentials is None
    if tls:
        credentials = (tls if isinstance(tls, Tls) else Tls()).make_credentials()
    metadata = check_metadata(metadata)
    stated = any(key == _AUTHORIZATION for key, _ in metadata)
    if token is not None and stated:
        raise invalid("token", "give token=, or authorization in metadata=, not both")
    if token is None and not stated:
        token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        return Security(target, credentials, metadata)
    pairs = authorize(target, token, credentials is not None or allow_plaintext_token)
    return Security(target, credentials, (*pairs, *metadata))


def authorize(target: str, token: str, protected: bool) -> Metadata:
    """Returns the metadata that carries a token.

    Args:
        protected: whether the token may be sent to another machine: with TLS, or because the caller allows
            it.

    Raises ChorusError (INVALID_FIELD) for one that cannot be sent, and one that would leave this machine
    without protection. No error contains the token.
    """
    if not (isinstance(token, str) and _TOKEN.fullmatch(token)):
        raise invalid("token", "must be 1 to 4,096 printable ASCII characters without spaces")
    if not protected and not is_loopback(target):
        raise invalid(
            "token",
            f"would be sent to {target} without encryption: connect with TLS ({TLS_SCHEME}{target}, tls= or"
            " --tls), or allow it on a network that you trust (allow_plaintext_token= or"
            " --allow-plaintext-token)",
        )
    return key_metadata(token)


def remove_token(metadata: Metadata) -> Metadata:
    """Returns the metadata without a token."""
    return tuple(pair for pair in metadata if pair[0] != _AUTHORIZATION)


def _read(name: str, path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise invalid(f"tls.{name}", f"{path} cannot be read: {error.strerror}") from None
