"""Verifies how the clients connect: target, TLS, metadata, interceptors, deadlines, unreachable servers."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from chorus_client import (
    AsyncCacheClient,
    AsyncChorusClient,
    CacheClient,
    ChorusClient,
    ChorusError,
    endpoints,
)
from chorus_rpc import errors
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread

AUTHORIZATION: list[tuple[str, str | bytes]] = [
    ("authorization", "Bearer secret"),
    ("x-team-bin", b"\x00\x01"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in endpoints.VARIABLES.values():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    """Key and self-signed certificate for 127.0.0.1, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chorus test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        signed.public_bytes(serialization.Encoding.PEM),
    )


class UnaryRecorder(grpc.aio.UnaryUnaryClientInterceptor):
    """Records the method of each unary call."""

    def __init__(self, methods: list[str]) -> None:
        self._methods = methods

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        self._methods.append(method_name(client_call_details))
        return await continuation(client_call_details, request)


class StreamRecorder(grpc.aio.UnaryStreamClientInterceptor):
    """Records the method of each streaming call."""

    def __init__(self, methods: list[str]) -> None:
        self._methods = methods

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        self._methods.append(method_name(client_call_details))
        return await continuation(client_call_details, request)


def method_name(details: Any) -> str:
    """Returns the last part of "/package.Service/Method"."""
    method = details.method
    return str((method.decode() if isinstance(method, bytes) else method).rpartition("/")[2])


def unused_target() -> str:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{holder.getsockname()[1]}"


async def test_tls_metadata_and_interceptors_reach_the_server(certificate: tuple[bytes, bytes]) -> None:
    deployment = FakeDeployment(grpc.ssl_server_credentials([certificate]))
    await deployment.start()
    called: list[str] = []
    interceptors = [UnaryRecorder(called), StreamRecorder(called)]
    try:
        async with AsyncChorusClient(
            deployment.target,
            credentials=grpc.ssl_channel_credentials(certificate[1]),
            metadata=AUTHORIZATION,
            interceptors=interceptors,
        ) as client:
            handle = await client.submit("x")
            assert (await handle.result()).data == VIDEO
        async with AsyncChorusClient(deployment.target, credentials=grpc.ssl_channel_credentials()) as client:
            with pytest.raises(
                ChorusError, match=f"nothing answers at {deployment.target} over TLS: .*"
            ) as fault:
                await client.submit("x")
        assert "certificate" in fault.value.message.lower()
    finally:
        await deployment.stop()
    [metadata] = deployment.scheduler.metadata
    assert metadata["authorization"] == "Bearer secret"
    assert metadata["x-team-bin"] == b"\x00\x01"
    assert called == ["SubmitGeneration", "WatchGeneration", "GetGeneration", "GetVideo"]


def test_sync_client_honours_tls_metadata_and_interceptors(certificate: tuple[bytes, bytes]) -> None:
    called: list[str] = []
    interceptors = [UnaryRecorder(called), StreamRecorder(called)]
    credentials = grpc.ssl_server_credentials([certificate])
    with (
        deployment_in_thread(lambda: FakeDeployment(credentials)) as deployment,
        ChorusClient(
            deployment.target,
            credentials=grpc.ssl_channel_credentials(certificate[1]),
            metadata=AUTHORIZATION,
            interceptors=interceptors,
        ) as client,
        CacheClient(
            deployment.target,
            "team-a",
            credentials=grpc.ssl_channel_credentials(certificate[1]),
            metadata=AUTHORIZATION,
            interceptors=interceptors,
        ) as cache,
    ):
        assert client.submit("x").result().data == VIDEO
        cache.stats()
    assert deployment.scheduler.metadata[0]["authorization"] == "Bearer secret"
    assert deployment.cache.tenants == ["team-a"]
    assert called == ["SubmitGeneration", "WatchGeneration", "GetGeneration", "GetVideo", "Stats"]


@pytest.mark.parametrize("for_all_calls", [True, False])
def test_call_ends_at_its_timeout(deployment: FakeDeployment, for_all_calls: bool) -> None:
    deployment.scheduler.delay = 30.0
    with ChorusClient(deployment.target, timeout=0.2 if for_all_calls else 30.0) as client:
        with pytest.raises(ChorusError) as fault:
            client.submit("x", timeout=None if for_all_calls else 0.2)
        assert fault.value.reason == errors.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"authorization": "x"}, "must be pairs"),
        ([("Authorization", "x")], "a key must consist of a–z"),
        (
            [("authorization", "Bearer secret\n")],
            "the value of authorization must be text in printable ASCII",
        ),
        ([("authorization", b"Bearer secret")], "the value of authorization must be text in printable ASCII"),
        ([("token-bin", "secret")], "the value of token-bin must be bytes"),
    ],
)
def test_metadata_that_cannot_be_sent_is_refused_without_its_value(metadata: Any, message: str) -> None:
    for kind in (ChorusClient, CacheClient):
        with pytest.raises(ChorusError, match=f"metadata: {message}") as refused:
            kind("127.0.0.1:1", metadata=metadata)
        assert "secret" not in refused.value.message


async def test_asyncio_clients_are_unusable_after_their_end() -> None:
    async with AsyncChorusClient("127.0.0.1:1") as client, AsyncCacheClient("127.0.0.1:1") as cache:
        pass
    for call in (client.list, cache.stats, client.handle("x").result):
        with pytest.raises(RuntimeError, match="this client is closed"):
            await call()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_url_as_target_is_refused(scheme: str) -> None:
    with pytest.raises(ChorusError, match="target: must be host:port, without the scheme"):
        ChorusClient(f"{scheme}://localhost:7400")


def test_server_without_the_service_is_named() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            ChorusClient(f"127.0.0.1:{port}") as client,
            pytest.raises(ChorusError, match=rf"the server at 127\.0\.0\.1:{port} is no scheduler"),
        ):
            client.list()
    finally:
        server.stop(None)


def test_result_ends_at_its_timeout(deployment: FakeDeployment) -> None:
    with ChorusClient(deployment.target) as client:
        handle = client.submit("slow circle")
        with pytest.raises(ChorusError) as fault:
            handle.result(timeout=0.3)
        assert fault.value.reason == errors.DEADLINE_EXCEEDED
        assert handle.status().state == "running"


def test_default_target_is_the_variable_then_the_running_up_then_the_default_port(
    deployment: FakeDeployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChorusClient() as client, CacheClient() as cache:
        assert (client.target, cache.target) == ("localhost:7400", "localhost:7402")
    (tmp_path / ".chorus").mkdir()
    targets = {"scheduler": deployment.target, "cache": deployment.target}
    endpoints.write(tmp_path / ".chorus", endpoints.Endpoints(os.getpid(), targets))
    with ChorusClient() as client, CacheClient() as cache:
        assert client.generate("x").data == VIDEO
        assert cache.stats().entries == 7
    monkeypatch.setenv("CHORUS_TARGET", "elsewhere:1")
    monkeypatch.setenv("CHORUS_CACHE_TARGET", "elsewhere:2")
    with ChorusClient() as client, CacheClient() as cache:
        assert (client.target, cache.target) == ("elsewhere:1", "elsewhere:2")
    with ChorusClient(deployment.target) as client:
        assert client.target == deployment.target


async def test_unreachable_server_is_reported_with_the_remedy() -> None:
    target = unused_target()
    async with AsyncChorusClient(target) as client:
        with pytest.raises(ChorusError) as fault:
            await client.submit("x")
    assert fault.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert fault.value.message == (
        f"nothing answers at {target}: start one with `chorus up`, or pass target= / CHORUS_TARGET"
    )
    assert fault.value.metadata["target"] == target
    async with AsyncCacheClient(target) as cache:
        with pytest.raises(ChorusError, match="pass target= / CHORUS_CACHE_TARGET"):
            await cache.stats()


async def test_server_that_lacks_another_service_is_reachable(
    deployment: FakeDeployment,
) -> None:
    async with AsyncChorusClient(deployment.target) as client:
        with pytest.raises(ChorusError, match="denoiser is not available: connection refused"):
            await client.submit("x", model="nowhere")
