"""Settings of the gateway: `CHORUS_GATEWAY_*`."""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from chorus_client import Tls
from chorus_rpc.addresses import is_loopback_host, parse_target
from chorus_rpc.proxies import is_loopback
from chorus_rpc.tenancy import DEFAULT_TENANT, check_tenant
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.certificates import check_ca_file
from services.runtime.settings import (
    MIB,
    Key,
    Port,
    Seconds,
    ServerSettings,
    Target,
    check_distinct,
    split_list,
)
from services.runtime.tls import ServerTls

PathText = Annotated[str, Field(max_length=4096)]
_ORIGIN: Final = re.compile(
    r"https?://[A-Za-z0-9._-]{1,253}(:\d{1,5})?|https?://\[[0-9a-fA-F:]{2,39}\](:\d{1,5})?"
)


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"must be origins such as https://app.example, without a path, not {origin!r}")
    return check_distinct(value)


def _check_optional_target(value: str) -> str:
    if value:
        parse_target(value)
    return value


def _check_trace_url(value: str) -> str:
    if value and not (value.startswith(("http://", "https://")) and value.count("{trace_id}") == 1):
        raise ValueError("must be an address that begins with http:// or https:// and contains {trace_id}")
    return value


class GatewaySettings(ServerSettings):
    """Environment of `python -m services.gateway`."""

    # Defaults are validated too: some settings are required depending on others.
    model_config = SettingsConfigDict(env_prefix="CHORUS_GATEWAY_", validate_default=True)

    port: Port = 7404
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Upper bound on concurrent requests; further ones are refused with status 503. Every follower of events
    occupies one until its video ends."""

    scheduler_target: Target = "127.0.0.1:7400"
    """Address of the scheduler: host:port, or any gRPC name."""
    scheduler_tls: bool = False
    """Whether the connection to the scheduler uses TLS."""
    scheduler_ca: Annotated[PathText, AfterValidator(check_ca_file)] = ""
    """PEM file with the authorities that may have signed the scheduler's certificate; empty: those that gRPC
    ships."""
    scheduler_certificate: PathText = ""
    """PEM file with the gateway's certificate, for a scheduler that requires one; empty: none."""
    scheduler_key: PathText = ""
    """PEM file with the private key of CHORUS_GATEWAY_SCHEDULER_CERTIFICATE."""
    allow_plaintext_keys: bool = False
    """Whether API keys may be sent to a scheduler on another machine without TLS, on a network that you
    trust."""

    require_keys: bool = False
    """Whether requests without an API key are refused. The scheduler must have API keys as well, which the
    gateway checks when it starts."""
    trusted_network: bool = False
    """Whether the network of the port is trusted. If true, the gateway listens on any address without API
    keys, and with API keys without TLS, for instance behind a proxy that ends TLS."""
    tls_certificate: PathText = ""
    """PEM file with the certificate of the port, followed by those of intermediate authorities, read at the
    start; empty: no TLS."""
    tls_key: PathText = ""
    """PEM file with the private key of CHORUS_GATEWAY_TLS_CERTIFICATE."""
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(split_list),
        Field(max_length=64),
        AfterValidator(_check_origins),
    ] = ()
    """Origins whose pages may call the API from a browser, comma separated, such as https://app.example;
    empty: none."""

    max_body_bytes: Annotated[int, Field(ge=64 * 1024, le=256 * MIB)] = 8 * MIB
    """Upper bound on the body of a request, in bytes."""
    body_seconds: Seconds = 30.0
    """Time in which the body of a request must arrive, in seconds."""
    header_seconds: Seconds = 20.0
    """Time in which the head of a request must arrive, in seconds; then the connection is closed."""
    send_seconds: Seconds = 60.0
    """Time in which a client must read the next part of its response, in seconds; then its connection is
    closed."""
    ping_seconds: Annotated[float, Field(ge=1, le=600)] = 15.0
    """Time between two comments on a stream of events that is silent, in seconds, so that proxies keep it
    open."""
    sync_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Upper bound on the time that POST /v1/videos/sync waits for its video, in seconds."""
    redirect_downloads: bool = False
    """Whether downloads are redirected to a presigned URL of the scheduler's object store, which the
    scheduler must have (CHORUS_SCHEDULER_VIDEO_STORE); video objects then contain the URL."""

    console: bool = True
    """Whether the console, pages for people, is served under /console."""
    console_secret: Key = SecretStr("")
    """Secret that protects the sessions of the console, the same for every gateway behind one address; empty:
    a new one at each start, after which people log in again."""
    console_cache_target: Annotated[str, Field(max_length=512), AfterValidator(_check_optional_target)] = ""
    """Address of the cache, for the console's page about it, where the scheduler has no API keys; empty: the
    page is not available."""
    console_cache_tenant: Annotated[str, Field(max_length=64), AfterValidator(check_tenant)] = DEFAULT_TENANT
    """Tenant whose entries the console's page about the cache shows: that of the scheduler."""
    console_cache_key: Key = SecretStr("")
    """Operator key of the cache (CHORUS_CACHE_OPERATOR_KEY), if it has keys; empty: none."""
    console_trace_url: Annotated[str, Field(max_length=1_024), AfterValidator(_check_trace_url)] = ""
    """Address of a trace in a tracing UI, with {trace_id} in the place of its id; empty: no link."""

    @property
    def tls(self) -> ServerTls | None:
        """Files of the port's TLS; None without TLS."""
        return self._tls_files if self.tls_certificate else None

    @property
    def scheduler_files(self) -> bool | Tls:
        """TLS of the connection to the scheduler, as AsyncChorusClient takes it."""
        if not self.scheduler_tls:
            return False
        return Tls(self.scheduler_ca or None, self.scheduler_certificate or None, self.scheduler_key or None)

    @model_validator(mode="after")
    def _check_scheduler(self) -> Self:
        if bool(self.scheduler_certificate) != bool(self.scheduler_key):
            raise ValueError(
                "CHORUS_GATEWAY_SCHEDULER_CERTIFICATE and CHORUS_GATEWAY_SCHEDULER_KEY must both be set, or"
                " neither"
            )
        if not self.scheduler_tls and (self.scheduler_ca or self.scheduler_certificate):
            raise ValueError(
                "CHORUS_GATEWAY_SCHEDULER_CA and _CERTIFICATE must be empty while"
                " CHORUS_GATEWAY_SCHEDULER_TLS is false"
            )
        if not (self.scheduler_tls or self.allow_plaintext_keys or is_loopback(self.scheduler_target)):
            raise ValueError(
                f"CHORUS_GATEWAY_SCHEDULER_TARGET is {self.scheduler_target}, to which API keys would be sent"
                " without encryption: set CHORUS_GATEWAY_SCHEDULER_TLS to true, or"
                " CHORUS_GATEWAY_ALLOW_PLAINTEXT_KEYS on a network that you trust"
            )
        return self

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if is_loopback_host(self.host) or self.trusted_network:
            return self
        if not self.require_keys:
            raise ValueError(
                f"CHORUS_GATEWAY_HOST is {self.host}, where other machines could use the API without a key:"
                " set CHORUS_GATEWAY_REQUIRE_KEYS to true, or CHORUS_GATEWAY_TRUSTED_NETWORK if everyone who"
                " reaches it may use it"
            )
        if not self.tls_certificate:
            raise ValueError(
                f"CHORUS_GATEWAY_HOST is {self.host}, where API keys would arrive without encryption: set"
                " CHORUS_GATEWAY_TLS_CERTIFICATE and _KEY, or CHORUS_GATEWAY_TRUSTED_NETWORK to true behind a"
                " proxy that ends TLS"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        self._tls_files.check_settings("CHORUS_GATEWAY")
        return self

    @property
    def _tls_files(self) -> ServerTls:
        return ServerTls(self.tls_certificate, self.tls_key)
