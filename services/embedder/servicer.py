"""protobuf ↔ prompts and encodings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import grpc.aio
import numpy as np
from chorus.common.v1 import latents_pb2
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violations
from chorus_rpc.limits import MAX_DONORS, MAX_PROMPT_CHARACTERS
from numpy.typing import NDArray

from services.contract.tensors import decode_tensor, encode_tensor
from services.embedder.alignment import Change, EncodedPrompt, align, on_tokens
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, Tokens


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Serves one engine, which it does not own."""

    def __init__(self, engine: EncoderThread) -> None:
        self._engine = engine

    async def Embed(
        self,
        request: embedder_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.EmbedRequest, embedder_pb2.EmbedResponse],
    ) -> embedder_pb2.EmbedResponse:
        violations = Violations()
        prompt = _trimmed(request.prompt, "prompt", violations)
        violations.raise_if_any()
        encoder = self._conditioning(request.conditioning_encoder_id)
        [states] = await self._engine.encode(encoder, [prompt])
        retrieval = self._engine.retrieval
        [vector] = [states] if encoder is retrieval else await self._engine.encode(retrieval, [prompt])
        return embedder_pb2.EmbedResponse(
            retrieval_encoder_id=retrieval.id,
            retrieval_vector=vector.retrieval.tolist(),
            conditioning_encoder_id=encoder.id,
            token_states=encode_tensor(states.states),
            tokens=_tokens(states, request.prompt, range(len(states.tokens))),
            truncated=states.truncated or vector.truncated,
        )

    async def Align(
        self,
        request: embedder_pb2.AlignRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.AlignRequest, embedder_pb2.AlignResponse],
    ) -> embedder_pb2.AlignResponse:
        violations = Violations()
        donors = request.donor_prompts
        violations.require(
            1 <= len(donors) <= MAX_DONORS, "donor_prompts", f"must be 1 to {MAX_DONORS}, not {len(donors)}"
        )
        sent = [request.target_prompt, *donors[:MAX_DONORS]]
        fields = ["target_prompt", *(f"donor_prompts[{i}]" for i in range(len(donors)))]
        prompts = [_trimmed(prompt, field, violations) for prompt, field in zip(sent, fields, strict=False)]
        violations.raise_if_any()
        retrieval = self._engine.retrieval
        asked = request.conditioning_encoder_id
        encoder = retrieval if asked in ("", retrieval.id) else self._conditioning(asked)
        if request.HasField("target_states"):
            [read] = await self._engine.tokenize(retrieval, prompts[:1])
            states = _states(request.target_states, len(read.tokens), retrieval.text_dim)
            known = [EncodedPrompt(prompts[0], states, read.offsets)]
        else:
            known = []
        missing = prompts[len(known) :]
        encodings = await self._engine.encode(retrieval, missing, together=True)
        # Now: what was encoded by the same encoder is remembered with its tokens.
        positions = await self._engine.tokenize(encoder, prompts)
        target, *others = known + [
            EncodedPrompt(prompt, encoding.states, encoding.offsets)
            for prompt, encoding in zip(missing, encodings, strict=True)
        ]
        found = await asyncio.to_thread(lambda: [align(donor, target) for donor in others])
        return embedder_pb2.AlignResponse(
            alignments=[
                embedder_pb2.Alignment(
                    gained=_aligned(positions[0], sent[0], alignment.gained),
                    lost=_aligned(position, prompt, alignment.lost),
                    reordered=alignment.reordered,
                    things_added=alignment.things_added,
                )
                for alignment, position, prompt in zip(found, positions[1:], sent[1:], strict=True)
            ]
        )

    async def DescribeEncoders(
        self,
        request: embedder_pb2.DescribeEncodersRequest,
        context: grpc.aio.ServicerContext[
            embedder_pb2.DescribeEncodersRequest, embedder_pb2.DescribeEncodersResponse
        ],
    ) -> embedder_pb2.DescribeEncodersResponse:
        retrieval, conditioning = self._engine.retrieval, self._engine.conditioning
        every = {retrieval.id: retrieval, **conditioning}
        return embedder_pb2.DescribeEncodersResponse(
            encoders=[
                embedder_pb2.EncoderInfo(
                    encoder_id=encoder.id,
                    retrieval=encoder.id == retrieval.id,
                    conditioning=encoder.id in conditioning,
                    vector_dim=encoder.retrieval_dim,
                    state_dim=encoder.text_dim,
                    max_tokens=encoder.max_tokens,
                )
                for encoder in every.values()
            ]
        )

    def _conditioning(self, encoder_id: str) -> Encoder:
        served = self._engine.conditioning
        if encoder_id not in served:
            raise ChorusError(
                errors.UNKNOWN_ENCODER,
                f"conditioning_encoder_id: {encoder_id!r} is not served here; DescribeEncoders lists what is",
                metadata={"available": ",".join(served)},
                violations=[
                    errors.Violation("conditioning_encoder_id", f"must be one of {', '.join(served)}")
                ],
            )
        return served[encoder_id]


def _states(sent: latents_pb2.Tensor, tokens: int, dim: int) -> NDArray[np.float32]:
    """The target's token states [tokens, dim]; raises INVALID_FIELD for another shape."""
    states = decode_tensor(sent, "target_states", rank=2, max_elements=tokens * dim)
    if states.shape != (tokens, dim):
        raise errors.invalid(
            "target_states",
            f"must be [{tokens}, {dim}], the retrieval encoder's of target_prompt, not {list(states.shape)}",
        )
    return states


def _trimmed(prompt: str, field: str, violations: Violations) -> str:
    trimmed = prompt.strip()
    violations.require(
        1 <= len(trimmed) <= MAX_PROMPT_CHARACTERS,
        field,
        f"must have 1 to {MAX_PROMPT_CHARACTERS} characters besides surrounding space, not {len(trimmed)}",
    )
    return trimmed


def _tokens(encoding: Tokens, sent: str, indices: Iterable[int]) -> list[embedder_pb2.Token]:
    """Tokens with their ranges in the prompt as it was sent, before trimming."""
    shift = len(sent) - len(sent.lstrip())
    tokens = []
    for index in indices:
        start, end = encoding.offsets[index]
        lead = shift if end > start else 0
        tokens.append(embedder_pb2.Token(text=encoding.tokens[index], start=start + lead, end=end + lead))
    return tokens


def _aligned(encoding: Tokens, sent: str, changes: Sequence[Change]) -> list[embedder_pb2.AlignedToken]:
    changed = on_tokens(changes, encoding.offsets)
    tokens = _tokens(encoding, sent, (change.index for change in changed))
    return [
        embedder_pb2.AlignedToken(
            token=token,
            weight=change.weight,
            index=change.index,
            category=embedder_pb2.TokenCategory.Value(f"TOKEN_CATEGORY_{change.category.name}"),
        )
        for token, change in zip(tokens, changed, strict=True)
    ]
