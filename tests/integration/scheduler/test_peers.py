"""Verifies the typed clients of the peers over real sockets: requests, time limits and mapped errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import errors
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.caller import Caller
from services.scheduler.jobs.deadline import Deadline
from services.scheduler.peers import denoiser as denoiser_peer
from services.scheduler.peers.cache import CacheClient
from services.scheduler.peers.connection import PeerConnection
from services.scheduler.peers.denoiser import DenoiserClient
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.peers.health import PeerHealth
from tests.integration.scheduler.fakes import MODEL, Fake, FakeCache, FakeDenoiser, FakeEmbedder
from tests.relay import Relay

STATES = latents_pb2.Tensor(dtype=latents_pb2.D_TYPE_FLOAT32, shape=[7, 1], data=bytes(28))
ENCODED = embedder_pb2.EmbedResponse(
    retrieval_encoder_id="ret", conditioning_encoder_id="enc", token_states=STATES
)
# Upper bound on a call to a peer that does not answer, in seconds.
SHORT = 0.3


def caller_until(seconds: float) -> Caller:
    """Returns a caller of another tenant than the connection's, whose job must have ended by then."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return Caller("acme", Deadline(timestamp))


@asynccontextmanager
async def connected(fake: Fake) -> AsyncIterator[PeerConnection]:
    """Starts a fake and yields a connection to it, without a health watch."""
    await fake.start()
    try:
        async with open_channel(fake.target) as channel:
            health = PeerHealth(fake.name, fake.service, channel, lambda _: None, 1.0)
            yield PeerConnection(fake.name, channel, "other", health)
    finally:
        await fake.die()


async def test_embed_sends_the_tenant_and_returns_the_answer() -> None:
    fake = FakeEmbedder()
    async with connected(fake) as connection:
        encoded = await EmbedderClient(connection, 5, 5).embed("a red car", "enc@1", caller_until(60))
    assert encoded.conditioning_encoder_id == "enc@1"
    assert fake.metadata[0]["chorus-tenant"] == "acme"


async def test_peer_that_does_not_answer_in_time_is_unavailable() -> None:
    fake = FakeEmbedder()
    fake.answering.clear()
    async with connected(fake) as connection:
        with pytest.raises(ChorusError, match=r"no answer in 0\.3 s") as caught:
            await EmbedderClient(connection, SHORT, 5).embed("a red car", "enc@1", caller_until(60))
        assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
        assert caught.value.metadata["service"] == "embedder"
        with pytest.raises(ChorusError, match=r"no answer in 0\.3 s"):
            await EmbedderClient(connection, 5, SHORT).align("a", ENCODED, ["b"], caller_until(60))


async def test_deadline_of_the_job_ends_a_call_as_such() -> None:
    fake = FakeEmbedder()
    fake.answering.clear()
    async with connected(fake) as connection:
        client = EmbedderClient(connection, 5, 5)
        for seconds in (SHORT, -1):
            with pytest.raises(ChorusError, match="passed before the video was ready") as caught:
                await client.embed("a red car", "enc@1", caller_until(seconds))
            assert caught.value.reason == errors.DEADLINE_EXCEEDED
    assert len(fake.metadata) == 1, "a deadline that has passed makes no call"


async def test_align_sends_token_states_only_if_they_are_the_retrieval_encoders() -> None:
    fake = FakeEmbedder()
    same = embedder_pb2.EmbedResponse()
    same.CopyFrom(ENCODED)
    same.retrieval_encoder_id = same.conditioning_encoder_id
    async with connected(fake) as connection:
        client = EmbedderClient(connection, 5, 5)
        assert len(await client.align("a", ENCODED, ["b", "c"], caller_until(60))) == 2
        await client.align("a", same, ["b"], caller_until(60))
    first, second = fake.aligned
    assert (first.target_prompt, list(first.donor_prompts)) == ("a", ["b", "c"])
    assert first.conditioning_encoder_id == "enc"
    assert not first.HasField("target_states")
    assert second.target_states == STATES


async def test_peer_that_cannot_be_reached_is_named() -> None:
    fake = FakeEmbedder()
    async with connected(fake) as connection:
        await fake.die()
        with pytest.raises(ChorusError) as caught:
            await EmbedderClient(connection, 5, 5).align("a", ENCODED, ["b"], caller_until(60))
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata["service"] == "embedder"


async def test_lookup_returns_donors_with_their_steps_and_side_data() -> None:
    fake = FakeCache()
    fake.hold(0.5, 1, 2)
    fake.donors[0].entry.blobs.add(kind=latents_pb2.BLOB_KIND_SIDE_DATA)
    fake.donors.append(cache_pb2.Donor(entry=cache_pb2.Entry(entry_id="f" * 64), score=0.25))
    async with connected(fake) as connection:
        identity = latents_pb2.LatentIdentity(model_id="small")
        donors = await CacheClient(connection, 5, 8).lookup(identity, ENCODED, caller_until(60))
    assert [(donor.score, donor.steps, donor.side_data) for donor in donors] == [
        (0.5, frozenset({1, 2}), True),
        (0.25, frozenset(), False),
    ]
    assert fake.lookups[0].limit == 8


async def test_cache_that_is_known_to_be_down_is_not_called() -> None:
    fake = FakeCache()
    async with connected(fake) as connection:
        connection.health.serving = False
        with pytest.raises(ChorusError, match="cache is not available: not reached yet"):
            await CacheClient(connection, 5, 8).lookup(
                latents_pb2.LatentIdentity(), ENCODED, caller_until(60)
            )
    assert not fake.lookups


@pytest.mark.fault("silent-dependency")
async def test_cache_that_did_not_answer_is_not_called_again() -> None:
    fake = FakeCache()
    fake.answering.clear()
    async with connected(fake) as connection:
        client = CacheClient(connection, SHORT, 8)
        cause = r"no answer in 0\.3 s \(CHORUS_SCHEDULER_LOOKUP_SECONDS\)"
        for suspended in (False, True):
            with pytest.raises(ChorusError, match=cause) as caught:
                await client.lookup(latents_pb2.LatentIdentity(), ENCODED, caller_until(60))
            assert ("calls are suspended" in caught.value.message) == suspended
            assert caught.value.metadata["service"] == "cache"
        await connection.health.close()
    assert len(fake.lookups) == 1


async def test_closing_a_denoise_stream_cancels_the_run() -> None:
    fake = FakeDenoiser()
    fake.pause_before = 2
    request = denoiser_pb2.DenoiseRequest(generation_id="g", schedule=MODEL.default_schedule)
    async with connected(fake) as connection:
        replies = DenoiserClient(connection).denoise(request, caller_until(60))
        async with aclosing(replies):
            kinds = [(await anext(replies)).WhichOneof("event") for _ in range(2)]
        assert kinds == ["started", "step_completed"]
        assert await fake.stopped.get() == "g"


async def test_denoise_stream_ends_at_the_deadline_of_the_job() -> None:
    fake = FakeDenoiser()
    fake.pause_before = 0
    request = denoiser_pb2.DenoiseRequest(generation_id="g", schedule=MODEL.default_schedule)
    async with connected(fake) as connection:
        with pytest.raises(ChorusError) as caught:
            async for _ in DenoiserClient(connection).denoise(request, caller_until(SHORT)):
                pass
    assert caught.value.reason == errors.DEADLINE_EXCEEDED


async def test_describe_models_returns_the_denoisers_models() -> None:
    fake = FakeDenoiser()
    async with connected(fake) as connection:
        reply = await DenoiserClient(connection).describe_models()
    assert [model.model_id for model in reply.models] == ["small"]


@pytest.mark.fault("silent-dependency")
async def test_denoiser_that_did_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each submission asks for the models while none is known."""
    monkeypatch.setattr(denoiser_peer, "_DESCRIBE_SECONDS", SHORT)
    fake = FakeDenoiser()
    async with Relay(fake.port) as relay:
        relay.freeze()
        async with open_channel(relay.target) as channel:
            health = PeerHealth(fake.name, fake.service, channel, lambda _: None, 1.0)
            client = DenoiserClient(PeerConnection(fake.name, channel, "other", health))
            for suspended in (False, True):
                with pytest.raises(ChorusError, match=r"no answer in 0\.3 s") as caught:
                    await client.describe_models()
                assert ("calls are suspended" in caught.value.message) == suspended
                assert caught.value.metadata["service"] == "denoiser"
            await health.close()
