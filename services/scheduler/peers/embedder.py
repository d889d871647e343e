"""Client of the embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc.channels import calling

from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.connection import PeerConnection

if TYPE_CHECKING:
    from chorus.embedder.v1.embedder_pb2_grpc import EmbedderServiceAsyncStub

SERVICE = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name

_EMBED_SETTING = "CHORUS_SCHEDULER_EMBED_SECONDS"
_ALIGN_SETTING = "CHORUS_SCHEDULER_ALIGN_SECONDS"
# No request waits for this call.
_DESCRIBE_SECONDS = 5.0


class EmbedderClient:
    """Encodes and aligns prompts. `embed` and `align` raise the errors of `PeerConnection.limit`.

    Args:
        embed_seconds: upper bound on one Embed call, in seconds.
        align_seconds: upper bound on one Align call, in seconds.
    """

    def __init__(self, connection: PeerConnection, embed_seconds: float, align_seconds: float) -> None:
        self.health = connection.health
        self._connection = connection
        self._embed_seconds = embed_seconds
        self._align_seconds = align_seconds
        self._stub: EmbedderServiceAsyncStub = embedder_pb2_grpc.EmbedderServiceStub(connection.channel)

    async def describe_encoders(self) -> embedder_pb2.DescribeEncodersResponse:
        """Returns the encoders that the embedder serves. Raises ChorusError."""
        request = embedder_pb2.DescribeEncodersRequest()
        with calling(self._connection.name):
            return await self._stub.DescribeEncoders(
                request, timeout=_DESCRIBE_SECONDS, metadata=self._connection.metadata()
            )

    async def embed(
        self, prompt: str, conditioning_encoder_id: str, caller: Caller
    ) -> embedder_pb2.EmbedResponse:
        request = embedder_pb2.EmbedRequest(prompt=prompt, conditioning_encoder_id=conditioning_encoder_id)
        with self._connection.limit(caller.deadline, self._embed_seconds, _EMBED_SETTING) as timeout:
            return await self._stub.Embed(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )

    async def align(
        self,
        target: str,
        encoded: embedder_pb2.EmbedResponse,
        donor_prompts: Sequence[str],
        caller: Caller,
    ) -> Sequence[embedder_pb2.Alignment]:
        """Aligns the target's prompt with each donor's; one alignment per donor, in order.

        Args:
            target: prompt of the target.
            encoded: response of `embed` for `target`.
        """
        request = embedder_pb2.AlignRequest(
            target_prompt=target,
            donor_prompts=donor_prompts,
            conditioning_encoder_id=encoded.conditioning_encoder_id,
        )
        # Alignment uses the retrieval encoder's states: sent where they are known, so that they are not
        # computed twice.
        if encoded.conditioning_encoder_id == encoded.retrieval_encoder_id:
            request.target_states.CopyFrom(encoded.token_states)
        with self._connection.limit(caller.deadline, self._align_seconds, _ALIGN_SETTING) as timeout:
            reply = await self._stub.Align(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )
        return reply.alignments
