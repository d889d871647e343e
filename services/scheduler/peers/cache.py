"""Client of the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2
from chorus.embedder.v1 import embedder_pb2

from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.connection import PeerConnection
from services.scheduler.peers.messages import build_lookup_request
from services.scheduler.planning.plans import Donor

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name

_LOOKUP_SETTING = "CHORUS_SCHEDULER_LOOKUP_SECONDS"


class CacheClient:
    """Finds donors.

    Args:
        lookup_seconds: upper bound on one Lookup call, in seconds.
        donor_limit: upper bound on the number of donors of one lookup.
    """

    def __init__(self, connection: PeerConnection, lookup_seconds: float, donor_limit: int) -> None:
        self._connection = connection
        self._lookup_seconds = lookup_seconds
        self._donor_limit = donor_limit
        self._stub: CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(connection.channel)

    def require_available(self) -> None:
        """Raises DEPENDENCY_UNAVAILABLE if the cache is known to be down."""
        if self._connection.health.serving is False:
            raise self._connection.health.unavailable()

    async def lookup(
        self, identity: latents_pb2.LatentIdentity, encoded: embedder_pb2.EmbedResponse, caller: Caller
    ) -> list[Donor]:
        """Returns the entries of this identity whose prompts are most similar to the encoded one.

        Raises the errors of `PeerConnection.limit`; a cache that is known to be down fails without a call.
        """
        request = build_lookup_request(identity, encoded, self._donor_limit)
        with self._connection.limit(caller.deadline, self._lookup_seconds, _LOOKUP_SETTING) as timeout:
            self.require_available()
            reply = await self._stub.Lookup(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )
        return [_parse_entry(donor.entry, donor.score) for donor in reply.donors]

    async def find(
        self,
        identity: latents_pb2.LatentIdentity,
        retrieval: embedder_pb2.EncoderInfo,
        prompt: str,
        seed: int,
        caller: Caller,
    ) -> Donor | None:
        """Returns the entry of a prompt and seed under an identity, or None. Raises as `lookup` does.

        Args:
            retrieval: encoder whose vectors the entries are found by.
        """
        request = cache_pb2.FindRequest(
            identity=identity,
            retrieval_encoder_id=retrieval.encoder_id,
            vector_dim=retrieval.vector_dim,
            prompt=prompt,
            seed=seed,
        )
        with self._connection.limit(caller.deadline, self._lookup_seconds, _LOOKUP_SETTING) as timeout:
            self.require_available()
            reply = await self._stub.Find(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )
        if not reply.HasField("entry"):
            return None
        found = replace(_parse_entry(reply.entry, score=1.0), prompt=prompt, seed=seed)
        return (
            replace(found, approximation=identity.approximation)
            if identity.HasField("approximation")
            else found
        )


def _parse_entry(entry: cache_pb2.Entry, score: float) -> Donor:
    side_data = latents_pb2.BLOB_KIND_SIDE_DATA
    return Donor(
        entry_id=entry.entry_id,
        score=score,
        steps=frozenset(blob.step.index for blob in entry.blobs if blob.kind != side_data),
        side_data=any(blob.kind == side_data for blob in entry.blobs),
        prompt=entry.prompt,
        traceparent=entry.traceparent,
        generation_id=entry.generation_id,
        seed=entry.seed if entry.HasField("seed") else None,
    )
