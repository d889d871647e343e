"""TLS of a server's port: its certificate, and the authority of its clients' certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class ServerTls:
    """Files of a server's TLS, in PEM. They are read when the server starts.

    Attributes:
        client_ca: authorities of the clients' certificates, which are then required; empty for none.
    """

    certificate: str
    key: str
    client_ca: str = ""

    def check(self) -> None:
        """Raises ValueError that says which file cannot be used, and why."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{self.certificate} and {self.key} must be a certificate and its private key, which is not"
                f" encrypted, in PEM ({error.reason or 'unreadable'})"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.certificate} or {self.key} cannot be read ({error.strerror})") from None
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ValueError(
                    f"{self.client_ca} must be certificates in PEM ({error.reason or 'unreadable'})"
                ) from None
            except OSError as error:
                raise ValueError(f"{self.client_ca} cannot be read ({error.strerror})") from None

    def check_settings(self, prefix: str) -> None:
        """Raises ValueError that names the settings of these files: PREFIX_TLS_CERTIFICATE and so on.

        Without any file there is no TLS, which is valid.
        """
        names = f"{prefix}_TLS_CERTIFICATE"
        if bool(self.certificate) != bool(self.key):
            raise ValueError(f"{names} and {prefix}_TLS_KEY must both be set, or neither")
        if self.client_ca and not self.certificate:
            raise ValueError(f"{prefix}_TLS_CLIENT_CA must be empty without {names}")
        if self.certificate:
            try:
                self.check()
            except ValueError as error:
                others = "_KEY, _CLIENT_CA" if self.client_ca else "_KEY"
                raise ValueError(f"{names}, {others}: {error}") from None

    def make_credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of a server. Raises OSError if a file cannot be read."""
        pair = Path(self.key).read_bytes(), Path(self.certificate).read_bytes()
        authorities = Path(self.client_ca).read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials(
            [pair], root_certificates=authorities, require_client_auth=authorities is not None
        )
