"""Verifies that one tenant learns and changes nothing of another's entries, by attacks on semantic caches.

Covert channel, prompt stealing and poisoning follow arXiv 2508.20424, key collisions arXiv 2601.23088. Both
tenants call one process, and know everything about each other's requests except what is to be found out.
`Adopt` is for the operator of the cache, and not part of the comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.tenancy import tenant_metadata

from services.cache.entries import Space
from services.contract.identity import entry_id, identity_digest
from tests.contract.samples import (
    DIMENSION,
    SPACE,
    admission,
    digest,
    fetch,
    identity,
    latents,
    new_entry,
    unit,
)
from tests.integration.cache.calls import SECONDS, admitted, connected, details, environment, fetched, files
from tests.processes import ServiceProcess, start_service

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

Metadata = tuple[tuple[str, str], ...]

BLOBS: Mapping[int, bytes] = {1: latents(1), 2: latents(2)}
OTHER_BLOBS: Mapping[int, bytes] = {1: latents(3), 2: latents(4)}
SECRET = "a secret prompt about a merger"
SECRET_VECTOR = 7


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[ServiceProcess]:
    with start_service("cache", environment(directory), directory) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


_pairs = itertools.count()


@pytest.fixture
def tenants() -> tuple[Metadata, Metadata]:
    """Metadata of a victim and of an attacker that no other test uses. The names have equal lengths."""
    number = next(_pairs)
    return tenant_metadata(f"victim-{number}-x"), tenant_metadata(f"attacker-{number}")


def near(vector: int, cosine: float, direction: int) -> list[float]:
    """Returns a unit vector with this cosine to a sample vector."""
    base, other = np.array(unit(vector)), np.array(unit(direction))
    other -= (other @ base) * base
    other /= np.linalg.norm(other)
    return [float(value) for value in cosine * base + np.sqrt(1 - cosine**2) * other]


async def find(stub: Stub, tenant: Metadata, prompt: str, seed: int = 0) -> cache_pb2.FindResponse:
    request = cache_pb2.FindRequest(
        identity=identity(),
        retrieval_encoder_id=SPACE.encoder_id,
        vector_dim=DIMENSION,
        prompt=prompt,
        seed=seed,
    )
    return await stub.Find(request, metadata=tenant, timeout=SECONDS)


async def look_up(stub: Stub, tenant: Metadata, vector: list[float]) -> list[cache_pb2.Donor]:
    request = cache_pb2.LookupRequest(
        identity=identity(), retrieval_encoder_id=SPACE.encoder_id, vector=vector, limit=16, min_score=-1.0
    )
    return list((await stub.Lookup(request, metadata=tenant, timeout=SECONDS)).donors)


async def refusal(stub: Stub, tenant: Metadata, request: cache_pb2.FetchRequest) -> tuple[object, ...]:
    """Returns everything that a refused fetch says, with the id of the entry replaced."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, request)
    info, fields = details(failed.value)
    text = (failed.value.details() or "").replace(request.entry_id, "ID")
    known = {key: value.replace(request.entry_id, "ID") for key, value in info.metadata.items()}
    return failed.value.code(), text, info.reason, known, tuple(fields)


async def count(stub: Stub, tenant: Metadata) -> cache_pb2.StatsResponse:
    """Returns the statistics that a tenant sees, without the time of the start."""
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant, timeout=SECONDS)
    stats.ClearField("start_time")
    return stats


async def observe(stub: Stub, tenant: Metadata, prompt: str, vector: int, foreign_id: str) -> list[object]:
    """Returns what a tenant sees of the cache: every answer to requests about one prompt."""
    own_id = entry_id(tenant[0][1], identity_digest(identity()), prompt, 0)
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant, timeout=SECONDS)
    purges = [
        await stub.Purge(purge, metadata=tenant, timeout=SECONDS)
        for purge in (
            cache_pb2.PurgeRequest(entry_id=foreign_id),
            cache_pb2.PurgeRequest(entry_id=own_id),
            cache_pb2.PurgeRequest(model_id="shapes"),
            cache_pb2.PurgeRequest(all=True),
        )
    ]
    return [
        [donor.SerializeToString() for donor in await look_up(stub, tenant, unit(vector))],
        (await find(stub, tenant, prompt)).SerializeToString(),
        await refusal(stub, tenant, fetch(foreign_id, 1)),
        await refusal(stub, tenant, fetch(own_id, 1)),
        (stats.entries, stats.bytes),
        [(purge.entries, purge.bytes) for purge in purges],
        # Admitted again by the observer: the answer must not show that the blobs are known.
        (await admitted(stub, tenant, admission(new_entry(prompt, vector=vector), BLOBS))).created,
        (await stub.Purge(cache_pb2.PurgeRequest(all=True), metadata=tenant, timeout=SECONDS)).entries,
    ]


async def test_covert_channel_carries_nothing(stub: Stub, tenants: tuple[Metadata, Metadata]) -> None:
    """One tenant plants an entry for each bit that is set; the other sees the same for every bit."""
    sender, receiver = tenants
    bits = [1, 0, 0, 1, 1, 1, 0, 1]
    seen = []
    for number, bit in enumerate(bits):
        prompt = f"covert {number}"
        planted = entry_id(sender[0][1], identity_digest(identity()), prompt, 0)
        before = await count(stub, receiver)
        if bit:
            reply = await admitted(stub, sender, admission(new_entry(prompt, vector=number), BLOBS))
            assert (reply.entry_id, reply.created) == (planted, True)
        assert await count(stub, receiver) == before, "no counter of one tenant shows another's calls"
        seen.append(await observe(stub, receiver, prompt, number, planted))
    assert all(each == seen[0] for each in seen)
    # The entries are there all the time: the sender sees them.
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=sender, timeout=SECONDS)
    assert stats.entries == sum(bits)


async def test_probes_around_a_secret_find_nothing(stub: Stub, tenants: tuple[Metadata, Metadata]) -> None:
    """Probes with the very vector of a secret prompt, and with vectors ever closer to it, show no donor."""
    victim, attacker = tenants
    own = await admitted(stub, attacker, admission(new_entry("a decoy", vector=1), OTHER_BLOBS))
    probes = [unit(SECRET_VECTOR)] + [
        near(SECRET_VECTOR, cosine, direction)
        for cosine in (0.999999, 0.9999, 0.99, 0.9, 0.5, 0.0, -1.0)
        for direction in range(100, 108)
    ]

    async def probe() -> list[list[bytes]]:
        return [
            [donor.SerializeToString() for donor in await look_up(stub, attacker, vector)]
            for vector in probes
        ]

    before = await probe()
    reply = await admitted(stub, victim, admission(new_entry(SECRET, vector=SECRET_VECTOR), BLOBS))
    assert await probe() == before
    for vector in probes:
        assert [donor.entry.entry_id for donor in await look_up(stub, attacker, vector)] == [own.entry_id]
    for guess in (SECRET, SECRET.upper(), SECRET + " "):
        assert not (await find(stub, attacker, guess)).HasField("entry")
    assert [each.entry.prompt for each in await look_up(stub, victim, probes[-1])] == [SECRET]
    unknown = await refusal(stub, attacker, fetch(digest("no entry"), 1, 2))
    assert await refusal(stub, attacker, fetch(reply.entry_id, 1, 2)) == unknown
    assert await refusal(stub, attacker, fetch(reply.entry_id, 3)) == unknown, "not even its steps"


async def test_planted_entry_is_never_reused(
    stub: Stub, directory: Path, tenants: tuple[Metadata, Metadata]
) -> None:
    """An entry planted for another tenant's prompt, seed and vector is not returned to that tenant.

    Nor do the tenants share a file of equal latents, which one of them could damage for the other.
    """
    victim, attacker = tenants
    for seed, vector in ((0, unit(SECRET_VECTOR)), (1, near(SECRET_VECTOR, 0.9999, 9))):
        planted = new_entry(SECRET, seed=seed)
        planted.vector[:] = vector
        await admitted(stub, attacker, admission(planted, OTHER_BLOBS))
    assert await look_up(stub, victim, unit(SECRET_VECTOR)) == []
    assert not (await find(stub, victim, SECRET)).HasField("entry")

    known = set(files(directory))
    own = await admitted(stub, victim, admission(new_entry(SECRET, vector=SECRET_VECTOR), OTHER_BLOBS))
    assert own.created
    written = set(files(directory)) - known
    assert len(written) == len(OTHER_BLOBS), "no file is shared"
    [donor] = await look_up(stub, victim, unit(SECRET_VECTOR))
    assert donor.entry.entry_id == own.entry_id == (await find(stub, victim, SECRET)).entry.entry_id
    for path in known:
        if attacker[0][1] in path.parts:
            path.write_bytes(b"poison")
    assert await fetched(stub, victim, fetch(own.entry_id, 1, 2)) == OTHER_BLOBS
    for purge in (cache_pb2.PurgeRequest(entry_id=own.entry_id), cache_pb2.PurgeRequest(all=True)):
        await stub.Purge(purge, metadata=attacker, timeout=SECONDS)
    assert await fetched(stub, victim, fetch(own.entry_id, 1, 2)) == OTHER_BLOBS


def _vary(**changes: Any) -> latents_pb2.LatentIdentity:
    varied = identity()
    for name, value in changes.items():
        if isinstance(value, list):
            del getattr(varied, name)[:]
            getattr(varied, name).extend(value)
        else:
            setattr(varied, name, value)
    return varied


def list_collision_attempts() -> list[tuple[str, latents_pb2.LatentIdentity, str, int]]:
    """Returns tenants, identities, prompts and seeds whose parts join to equal text, or nearly so."""
    same = identity()
    adapter = latents_pb2.Adapter(adapter_id="x", digest=digest("x"), scale=1.0)
    tenants = [
        ("collide", "1-x"),
        ("collide-1", "-x"),
        ("collide-1-", "x"),
        ("c", "ollide1-x"),
        ("collide1", "x"),
    ]
    prompts = [
        "é",
        "e\u0301",
        "x ",
        "x",
        "X",
        "х",
        "x\0",
        "x\u200b",
        '","seed":0,"x":"',
        digest("x"),
        "1",
        "\n",
    ]
    identities = [
        _vary(model_id="shapes:x"),
        _vary(model_id="shapes", codec_id="x"),
        _vary(codec_id="x" + identity().codec_id),
        _vary(conditioning_encoder_id="minilm2"),
        _vary(weights_digest=digest("model"), model_digest=digest("weights")),
        _vary(latent_shape=[4, 3, 2, 3]),
        _vary(latent_shape=[4, 3, 3, 2]),
        _vary(latent_dtype=latents_pb2.D_TYPE_FLOAT16),
        _vary(adapters=[adapter]),
        _vary(adapters=[adapter, adapter]),
    ]
    return [
        *((tenant, same, prompt, 0) for tenant, prompt in tenants),
        *(("collide", same, prompt, 1) for prompt in prompts),
        *(("collide", same, "x", seed) for seed in (10, 11, (1 << 64) - 1, 1 << 63, (1 << 53) + 1, 1 << 53)),
        *(("collide", varied, "x", 2) for varied in identities),
    ]


async def test_crafted_keys_do_not_collide(stub: Stub) -> None:
    """Each of the entries has an id and latents of its own, found under its own tenant and identity only."""
    attempts = list_collision_attempts()
    stored: list[tuple[str, bytes]] = []
    for number, (tenant, under, prompt, seed) in enumerate(attempts):
        dtype = "float16" if under.latent_dtype == latents_pb2.D_TYPE_FLOAT16 else "float32"
        data = latents(100 + number, under.latent_shape, dtype)
        offered = new_entry(prompt, seed=seed)
        offered.identity.CopyFrom(under)
        reply = await admitted(stub, tenant_metadata(tenant), admission(offered, {1: data}))
        assert reply.created, attempts[number]
        stored.append((reply.entry_id, data))
    assert len({each for each, _ in stored}) == len(attempts)
    for (tenant, under, _, _), (each, data) in zip(attempts, stored, strict=True):
        assert await fetched(stub, tenant_metadata(tenant), fetch(each, 1, under=under)) == {1: data}
    owners = {(tenant, identity_digest(under)): under for tenant, under, _, _ in attempts}
    for (tenant, under, _, _), (each, _) in zip(attempts, stored, strict=True):
        for (other, fingerprint), claimed in owners.items():
            if (other, fingerprint) != (tenant, identity_digest(under)):
                answer = await refusal(stub, tenant_metadata(other), fetch(each, 1, under=claimed))
                assert answer[:3] == (grpc.StatusCode.NOT_FOUND, "no entry 'ID'", "NOT_FOUND")


async def test_similar_encoders_do_not_share_rows(stub: Stub, tenants: tuple[Metadata, Metadata]) -> None:
    """Encoder ids that differ only in characters that a collection's name cannot hold have separate rows."""
    tenant, _ = tenants
    encoders = (
        "mini lm",
        "mini-lm",
        "mini_lm",
        "MINI LM",
        "mini.lm",
        "m" * 24 + "a",
        "m" * 24 + "b",
        "x",
        "x_16",
    )
    assert len({Space(encoder, DIMENSION).name for encoder in encoders}) == len(encoders)
    for number, encoder in enumerate(encoders):
        offered = new_entry(f"encoder {number}", vector=SECRET_VECTOR)
        offered.retrieval_encoder_id = encoder
        await admitted(stub, tenant, admission(offered, {1: latents(number)}))
    for number, encoder in enumerate(encoders):
        request = cache_pb2.LookupRequest(
            identity=identity(),
            retrieval_encoder_id=encoder,
            vector=unit(SECRET_VECTOR),
            limit=16,
            min_score=-1,
        )
        reply = await stub.Lookup(request, metadata=tenant, timeout=SECONDS)
        assert [donor.entry.prompt for donor in reply.donors] == [f"encoder {number}"]


@pytest.mark.parametrize(
    "name", ["", "VICTIM", "victim/../x", "../victim", ".owners", "-victim", "victim_", "v" * 64, "victim x"]
)
async def test_name_that_is_no_tenant_is_refused(stub: Stub, name: str) -> None:
    """A name that could lead out of a tenant's folder, or into a filter, is no tenant."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await look_up(stub, tenant_metadata(name), unit(0))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(failed.value)[1] == ["chorus-tenant"]
