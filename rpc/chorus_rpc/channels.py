"""Channels to other services: retries, keepalive, caps and tracing in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from chorus_rpc import forks, telemetry
from chorus_rpc.addresses import parse_target
from chorus_rpc.errors import from_rpc_error, invalid
from chorus_rpc.limits import DEFAULT_MAX_MESSAGE_BYTES
from chorus_rpc.proxies import is_loopback

# Only calls that may safely run twice. Streams are retried by gRPC only before their first message.
_IDEMPOTENT = {
    "chorus.embedder.v1.EmbedderService": ("Embed", "Align", "DescribeEncoders"),
    "chorus.cache.v1.CacheService": (
        "Lookup",
        "Find",
        "Fetch",
        "ListEntries",
        "GetEntry",
        "VerifyEntries",
        "Purge",
        "Stats",
        "Adopt",
    ),
    "chorus.denoiser.v1.DenoiserService": ("DescribeModels", "Warm"),
    "chorus.scheduler.v1.SchedulerService": (
        "SubmitGeneration",
        "GetGeneration",
        "CancelGeneration",
        "ListGenerations",
        "WatchGeneration",
        "GetVideo",
    ),
}

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _IDEMPOTENT.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


def open_channel(
    target: str,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    use_proxy: bool = False,
) -> grpc.aio.Channel:
    """Opens a channel to "host:port" or any gRPC name; plain names are resolved by DNS, with calls balanced.

    The caller owns the channel and closes it. Raises ChorusError (INVALID_FIELD) for a malformed target.

    Args:
        credentials: channel credentials for TLS; None for a plaintext connection.
        interceptors: client interceptors inside those for tracing, the first one outermost.
        use_proxy: whether a proxy that the environment names is used; never for a loopback address.
    """
    try:
        name = parse_target(target)
    except ValueError as error:
        raise invalid("target", str(error)) from None
    arguments: dict[str, Any] = {
        "target": name,
        "options": [
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # Longer than the servers' PING_INTERVAL_SECONDS, or they would close the connection.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # A restarted service is reached again within two seconds. The minimum stays at gRPC's default: it
            # is the time limit of one attempt to connect, too.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
            ("grpc.enable_http_proxy", int(use_proxy and not is_loopback(target))),
        ],
        "interceptors": [*telemetry.client_interceptors(), *interceptors],
    }
    channel = (
        grpc.aio.insecure_channel(**arguments)
        if credentials is None
        else grpc.aio.secure_channel(credentials=credentials, **arguments)
    )
    forks.track(channel)
    return channel


@contextmanager
def calling(service: str) -> Iterator[None]:
    """Converts a failed call inside the block to its ChorusError, which names `service`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, service) from error
