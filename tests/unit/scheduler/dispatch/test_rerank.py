"""Donors compared with the target: by their prompts, or by the score that found them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from chorus.common.v1 import latents_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus_rpc.errors import DEPENDENCY_UNAVAILABLE, ChorusError

from services.scheduler.dispatch.rerank import AlignmentReranker, ScoreReranker
from services.scheduler.planning.planner import Donor

STEPS = frozenset({1, 2})
NEAR = Donor("near", 0.99, STEPS, "a red ball going left")
SAME = Donor("same", 0.70, STEPS, "the crimson ball goes right")
HASHED = Donor("hashed", 0.95, STEPS)
TARGET = "a red ball going right"
STATES = latents_pb2.Tensor(dtype=latents_pb2.D_TYPE_FLOAT32, shape=[7, 1], data=bytes(28))
ENCODED = embedder_pb2.EmbedResponse(
    retrieval_encoder_id="ret",
    conditioning_encoder_id="enc",
    token_states=STATES,
    tokens=[embedder_pb2.Token()] * 7,
)


class Embedder:
    """Says that whatever has "left" in it differs from the target in that word."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[embedder_pb2.AlignRequest] = []

    async def Align(self, request: embedder_pb2.AlignRequest, **_: Any) -> embedder_pb2.AlignResponse:
        self.asked.append(request)
        if self.fails:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "gone")
        return embedder_pb2.AlignResponse(
            alignments=[_alignment("left" in prompt) for prompt in request.donor_prompts]
        )


def _alignment(differs: bool) -> embedder_pb2.Alignment:
    found = embedder_pb2.Alignment()
    if differs:
        category = embedder_pb2.TOKEN_CATEGORY_MOTION
        found.gained.add(index=5, weight=1.0, category=category, token=embedder_pb2.Token(text="right"))
        found.lost.add(index=5, weight=1.0, category=category, token=embedder_pb2.Token(text="left"))
    return found


def reranker(embedder: Embedder) -> AlignmentReranker:
    downstream: Any = SimpleNamespace(embedder=embedder, metadata=())
    return AlignmentReranker(downstream)


async def test_the_donor_that_says_the_most_alike_comes_first() -> None:
    embedder = Embedder()
    found = await reranker(embedder).rerank(TARGET, ENCODED, [NEAR, HASHED, SAME], 1.0)
    assert [donor.entry_id for donor in found] == ["same", "near", "hashed"]
    assert [donor.edit.kind if donor.edit else None for donor in found] == ["same", "motion", None]
    [request] = embedder.asked
    assert list(request.donor_prompts) == [NEAR.prompt, SAME.prompt]
    assert (request.target_prompt, request.conditioning_encoder_id) == (TARGET, "enc")
    assert not request.HasField("target_states"), "they are another encoder's"


async def test_states_of_the_retrieval_encoder_are_not_computed_again() -> None:
    embedder, encoded = Embedder(), embedder_pb2.EmbedResponse()
    encoded.CopyFrom(ENCODED)
    encoded.retrieval_encoder_id = "enc"
    await reranker(embedder).rerank(TARGET, encoded, [NEAR], 1.0)
    assert embedder.asked[0].target_states == STATES


async def test_donors_without_prompts_are_not_asked_about() -> None:
    embedder = Embedder()
    assert await reranker(embedder).rerank(TARGET, ENCODED, [HASHED], 1.0) == [HASHED]
    assert not embedder.asked


async def test_an_embedder_that_fails_is_named() -> None:
    with pytest.raises(ChorusError) as caught:
        await reranker(Embedder(fails=True)).rerank(TARGET, ENCODED, [NEAR], 1.0)
    assert caught.value.reason == DEPENDENCY_UNAVAILABLE


async def test_by_score_alone() -> None:
    found = await ScoreReranker().rerank(TARGET, ENCODED, [SAME, NEAR, HASHED], 1.0)
    assert found == [NEAR, HASHED, SAME]
