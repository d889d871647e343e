"""Verifies the errors of calls that fail in the channel."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import ChorusError

from tests.relay import Relay
from tests.tiny_server import embed, serve_embedder, succeed


async def test_unreachable_service_is_named() -> None:
    with pytest.raises(ChorusError) as caught:
        await embed("127.0.0.1:1", timeout=5)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata["service"] == "embedder"


async def test_message_above_the_cap_is_an_invalid_field() -> None:
    async with serve_embedder(succeed) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target, "x" * (5 << 20))
    assert caught.value.reason == errors.INVALID_FIELD


@pytest.mark.fault("reconnect")
async def test_distant_server_is_reached() -> None:
    """Setting up a connection takes several round trips."""
    async with serve_embedder(succeed) as target, Relay(int(target.rpartition(":")[2]), delay=0.3) as relay:
        assert (await embed(relay.target, timeout=20)).retrieval_encoder_id == "test"
        assert relay.connections == 1, "the first attempt to connect was given up"


@pytest.mark.fault("reconnect")
async def test_server_that_starts_late_is_reached_within_seconds() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        call = stub.Embed(embedder_pb2.EmbedRequest(), timeout=10, wait_for_ready=True)
        while (state := channel.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await channel.wait_for_state_change(state)
        async with serve_embedder(succeed, port=port):
            assert (await call).retrieval_encoder_id == "test"


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    """A proxy that the environment names and that never answers; records whether it was used."""
    async with Relay(1) as proxy:
        proxy.freeze()
        for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(variable, f"http://{proxy.target}")
        for variable in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(variable, raising=False)
        yield proxy


@pytest.mark.fault("proxy")
@pytest.mark.parametrize("use_proxy", [False, True])
async def test_loopback_is_reached_without_a_proxy(proxy: Relay, use_proxy: bool) -> None:
    async with serve_embedder(succeed) as target, open_channel(target, use_proxy=use_proxy) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        assert (await stub.Embed(embedder_pb2.EmbedRequest(), timeout=10)).retrieval_encoder_id == "test"
    assert proxy.connections == 0


@pytest.mark.fault("proxy")
@pytest.mark.parametrize("use_proxy", [False, True])
async def test_other_hosts_are_reached_through_a_proxy_only_if_requested(
    proxy: Relay, use_proxy: bool
) -> None:
    async with open_channel("chorus.invalid:7400", use_proxy=use_proxy) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Embed(embedder_pb2.EmbedRequest(), timeout=2)
    assert (proxy.connections > 0) == use_proxy
