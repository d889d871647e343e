"""Verifies that each donor gets the edit from its prompt to the target's."""

from __future__ import annotations

from collections.abc import Sequence

from chorus.embedder.v1 import embedder_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.dispatch.compare import compare_prompts
from services.scheduler.jobs.caller import Caller
from services.scheduler.jobs.deadline import Deadline
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.planning.plans import Donor

STEPS = frozenset({1, 2})
NEAR = Donor("near", 0.99, STEPS, "a red ball going left")
SAME = Donor("same", 0.70, STEPS, "the crimson ball goes right")
HASHED = Donor("hashed", 0.95, STEPS)
TARGET = "a red ball going right"
ENCODED = embedder_pb2.EmbedResponse(tokens=[embedder_pb2.Token()] * 7)
CALLER = Caller("default", Deadline(Timestamp(seconds=4_000_000_000)))


class FakeEmbedder(EmbedderClient):
    """Reports that every prompt with the word "left" differs from the target in that word."""

    def __init__(self) -> None:
        self.aligned: list[tuple[str, list[str]]] = []

    async def align(
        self,
        target: str,
        encoded: embedder_pb2.EmbedResponse,
        donor_prompts: Sequence[str],
        caller: Caller,
    ) -> Sequence[embedder_pb2.Alignment]:
        self.aligned.append((target, list(donor_prompts)))
        return [_alignment("left" in prompt) for prompt in donor_prompts]


def _alignment(differs: bool) -> embedder_pb2.Alignment:
    alignment = embedder_pb2.Alignment()
    if differs:
        category = embedder_pb2.TOKEN_CATEGORY_MOTION
        alignment.gained.add(index=5, weight=1.0, category=category, token=embedder_pb2.Token(text="right"))
        alignment.lost.add(index=5, weight=1.0, category=category, token=embedder_pb2.Token(text="left"))
    return alignment


async def test_every_donor_with_a_prompt_gets_its_edit() -> None:
    embedder = FakeEmbedder()
    compared = await compare_prompts(embedder, TARGET, ENCODED, [NEAR, HASHED, SAME], CALLER)
    assert [donor.entry_id for donor in compared] == ["near", "hashed", "same"]
    assert [donor.edit.kind if donor.edit else None for donor in compared] == ["motion", None, "same"]
    assert embedder.aligned == [(TARGET, [NEAR.prompt, SAME.prompt])]


async def test_donors_without_prompts_are_not_aligned() -> None:
    embedder = FakeEmbedder()
    assert await compare_prompts(embedder, TARGET, ENCODED, [HASHED], CALLER) == [HASHED]
    assert not embedder.aligned
