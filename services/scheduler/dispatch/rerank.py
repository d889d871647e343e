"""Port: compares donors with the target and ranks them, by score alone or by aligning their prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import semconv, telemetry

from services.scheduler.jobs.deadline import Deadline
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.planning.edits import classify_edit
from services.scheduler.planning.planner import Donor


class Reranker(ABC):
    """Ranks donors."""

    @abstractmethod
    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], deadline: Deadline
    ) -> list[Donor]:
        """Returns the same donors, best first, each with the edit that leads to the target where it is known.

        Args:
            target: prompt of the target.
            encoded: the embedder's answer for it; the edits name token positions of its conditioning encoder.
            deadline: deadline of the job.

        Raises ChorusError when a service that it needs fails, DEADLINE_EXCEEDED only for the job's deadline.
        """


class ScoreReranker(Reranker):
    """Ranks by the similarity that found the donors; compares no prompts."""

    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], deadline: Deadline
    ) -> list[Donor]:
        return sorted(donors, key=lambda donor: -donor.score)


class AlignmentReranker(Reranker):
    """Ranks by the total weight of the tokens that differ, as the embedder aligns the prompts."""

    def __init__(self, embedder: EmbedderClient) -> None:
        self._embedder = embedder

    async def rerank(
        self, target: str, encoded: embedder_pb2.EmbedResponse, donors: Sequence[Donor], deadline: Deadline
    ) -> list[Donor]:
        # A tenant may have only the hashes of prompts stored: such a donor cannot be aligned.
        with_prompt = [donor for donor in donors if donor.prompt]
        without_prompt = [donor for donor in donors if not donor.prompt]
        if not with_prompt:
            return list(donors)
        with telemetry.span(semconv.SPAN_RERANK, {semconv.DONOR_COUNT: len(with_prompt)}):
            alignments = await self._embedder.align(
                target, encoded, [donor.prompt for donor in with_prompt], deadline
            )
        edited = [
            replace(donor, edit=classify_edit(alignment, len(encoded.tokens)))
            for donor, alignment in zip(with_prompt, alignments, strict=True)
        ]
        return sorted(edited, key=_rank) + without_prompt


def _rank(donor: Donor) -> tuple[float, float]:
    edit = donor.edit
    changed = sum(weight for _, weight in (*edit.gained, *edit.lost)) if edit else 0.0
    return changed, -donor.score
