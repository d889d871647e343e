"""Verifies what programs of several users need: a key of each, lists in parts, downloads in chunks."""

from __future__ import annotations

import pytest
from chorus_client import AsyncChorusClient, ChorusClient, ChorusError, ClientClosed
from chorus_rpc import errors

from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread

HELD = [("x-team", "render")]


def sent(deployment: FakeDeployment) -> list[tuple[str | None, str | None]]:
    """Returns authorization and own metadata of each submission."""
    return [(pairs.get("authorization"), pairs.get("x-team")) for pairs in deployment.scheduler.metadata]


async def test_clients_with_other_tokens_share_a_connection(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_TOKEN", "operator-token")
    async with AsyncChorusClient(deployment.target, metadata=HELD) as client:
        ann, keyless = client.with_token("ann-token"), client.with_token(None)
        for each in (client, ann, keyless, ann.with_token("bob-token")):
            await each.submit("a red circle")
    assert sent(deployment) == [
        ("Bearer operator-token", "render"),
        ("Bearer ann-token", "render"),
        (None, "render"),
        ("Bearer bob-token", "render"),
    ]
    with pytest.raises(ClientClosed):
        await ann.models()


async def test_token_of_another_caller_is_protected_like_the_first() -> None:
    async with AsyncChorusClient("scheduler.example:7400") as client:
        for token, message in (("ann-token", "without encryption"), ("a b", "printable"), ("", "printable")):
            with pytest.raises(ChorusError, match=message) as refused:
                client.with_token(token)
            assert token not in str(refused.value) or not token
        assert client.with_token(None).target == client.target
    async with AsyncChorusClient("scheduler.example:7400", allow_plaintext_token=True) as client:
        client.with_token("ann-token")


def test_blocking_clients_share_a_connection_too() -> None:
    with deployment_in_thread(FakeDeployment) as deployment, ChorusClient(deployment.target) as client:
        client.with_token("ann-token").submit("a red circle")
        assert sent(deployment) == [("Bearer ann-token", None)]
        assert b"".join(client.handle("gen-1").chunks(offset=5, length=7)) == VIDEO[5:12]
        assert [each.id for each in client.list(oldest_first=True)] == ["gen-1"]


async def test_lists_continue_after_a_generation_in_either_order(deployment: FakeDeployment) -> None:
    async with AsyncChorusClient(deployment.target) as client:
        ids = [(await client.submit(f"number {number}")).id for number in range(5)]

        async def listed(after: str | None, oldest_first: bool, limit: int = 50) -> list[str]:
            found = await client.list(after=after, oldest_first=oldest_first, limit=limit)
            return [generation.id for generation in found]

        assert await listed(None, True) == ids
        assert await listed(ids[1], True) == ids[2:]
        assert await listed(ids[3], False, limit=3) == ids[2::-1]
        with pytest.raises(ChorusError) as refused:
            await listed("unknown", True)
        assert refused.value.reason == errors.NOT_FOUND
        with pytest.raises(ChorusError, match="oldest_first"):
            await client.list(oldest_first="yes")  # type: ignore[arg-type]


async def test_download_in_chunks_is_checked_for_its_length(deployment: FakeDeployment) -> None:
    async with AsyncChorusClient(deployment.target) as client:
        handle = await client.submit("a red circle")
        chunks = [chunk async for chunk in handle.chunks()]
        assert b"".join(chunks) == VIDEO
        assert len(chunks) > 2
        with pytest.raises(ChorusError, match="offset: must be 0 to"):
            await anext(handle.chunks(offset=-1))
        deployment.scheduler.video_drops = [1]
        received = handle.chunks()
        assert VIDEO.startswith(await anext(received))
        with pytest.raises(ChorusError):
            await anext(received)
