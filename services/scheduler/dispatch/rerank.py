"""Port: how donors that the cache found are compared with the target. By score alone, or by their prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import semconv, telemetry
from chorus_rpc.channels import calling

from services.scheduler.peers.downstream import Downstream
from services.scheduler.planning.edits import edit_of
from services.scheduler.planning.planner import Donor


class Reranker(ABC):
    """Tells a planner more of donors than their score."""

    @abstractmethod
    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], seconds: float
    ) -> list[Donor]:
        """The same donors, best first, with the edit that leads to the target where that can be told.

        Args:
            target: the target's prompt.
            encoded: what the embedder said of it; the edits name token positions of its conditioning encoder.
            seconds: the longest it may take.

        Raises ChorusError when a service that it needs fails.
        """


class ScoreReranker(Reranker):
    """By the similarity that found them; the prompts are not compared."""

    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], seconds: float
    ) -> list[Donor]:
        return sorted(donors, key=lambda donor: -donor.score)


class AlignmentReranker(Reranker):
    """By how much of what is said differs, as the embedder aligns the prompts."""

    def __init__(self, downstream: Downstream) -> None:
        self._downstream = downstream

    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], seconds: float
    ) -> list[Donor]:
        told = [donor for donor in donors if donor.prompt]
        untold = [donor for donor in donors if not donor.prompt]
        if not told:
            return list(donors)
        request = embedder_pb2.AlignRequest(
            target_prompt=target,
            donor_prompts=[donor.prompt for donor in told],
            conditioning_encoder_id=encoded.conditioning_encoder_id,
        )
        if encoded.conditioning_encoder_id == encoded.retrieval_encoder_id:
            request.target_states.CopyFrom(encoded.token_states)
        with telemetry.span(semconv.SPAN_RERANK, {semconv.DONOR_COUNT: len(told)}), calling("embedder"):
            reply = await self._downstream.embedder.Align(
                request, timeout=seconds, metadata=self._downstream.metadata
            )
        edited = [
            replace(donor, edit=edit_of(alignment, len(encoded.tokens)))
            for donor, alignment in zip(told, reply.alignments, strict=True)
        ]
        return sorted(edited, key=_changed) + untold


def _changed(donor: Donor) -> tuple[float, float]:
    edit = donor.edit
    weights = sum(weight for _, weight in (*edit.gained, *edit.lost)) if edit else 0.0
    return weights, -donor.score
