"""gRPC servicer of the embedder: converts messages to prompts, and encodings to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import grpc.aio
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violations
from chorus_rpc.limits import MAX_DONORS

from services.contract.prompts import find_prompt_fault
from services.contract.tensors import decode_tensor, encode_tensor
from services.embedder.aligner import AlignedPrompts, Aligner
from services.embedder.alignment import Change, to_tokens
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, Tokens


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Serves encoders and an aligner, neither of which it owns."""

    def __init__(self, encoders: EncoderThread, aligner: Aligner) -> None:
        self._encoders = encoders
        self._aligner = aligner

    async def Embed(
        self,
        request: embedder_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.EmbedRequest, embedder_pb2.EmbedResponse],
    ) -> embedder_pb2.EmbedResponse:
        violations = Violations()
        prompt = _trim(request.prompt, "prompt", violations)
        violations.raise_if_any()
        encoder = self._find_conditioning(request.conditioning_encoder_id)
        [states] = await self._encoders.encode(encoder, [prompt])
        retrieval = self._encoders.retrieval
        [vector] = [states] if encoder is retrieval else await self._encoders.encode(retrieval, [prompt])
        return embedder_pb2.EmbedResponse(
            retrieval_encoder_id=retrieval.id,
            retrieval_vector=vector.retrieval.tolist(),
            conditioning_encoder_id=encoder.id,
            token_states=encode_tensor(states.states),
            tokens=_make_tokens(states, request.prompt, range(len(states.tokens))),
            truncated=states.truncated or vector.truncated,
        )

    async def Align(
        self,
        request: embedder_pb2.AlignRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.AlignRequest, embedder_pb2.AlignResponse],
    ) -> embedder_pb2.AlignResponse:
        violations = Violations()
        sent = request.donor_prompts
        violations.require(
            1 <= len(sent) <= MAX_DONORS, "donor_prompts", f"must be 1 to {MAX_DONORS}, not {len(sent)}"
        )
        target = _trim(request.target_prompt, "target_prompt", violations)
        donors = [
            _trim(prompt, f"donor_prompts[{i}]", violations) for i, prompt in enumerate(sent[:MAX_DONORS])
        ]
        violations.raise_if_any()
        retrieval = self._encoders.retrieval
        encoder_id = request.conditioning_encoder_id
        positions = retrieval if encoder_id in ("", retrieval.id) else self._find_conditioning(encoder_id)
        states = None
        if request.HasField("target_states"):
            limit = retrieval.max_tokens * retrieval.text_dim
            states = decode_tensor(request.target_states, "target_states", rank=2, max_elements=limit)
        found = await self._aligner.align(target, donors, positions=positions, target_states=states)
        return make_align_response(found, request.target_prompt, sent)

    async def DescribeEncoders(
        self,
        request: embedder_pb2.DescribeEncodersRequest,
        context: grpc.aio.ServicerContext[
            embedder_pb2.DescribeEncodersRequest, embedder_pb2.DescribeEncodersResponse
        ],
    ) -> embedder_pb2.DescribeEncodersResponse:
        retrieval, conditioning = self._encoders.retrieval, self._encoders.conditioning
        served = {retrieval.id: retrieval, **conditioning}
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
                for encoder in served.values()
            ]
        )

    def _find_conditioning(self, encoder_id: str) -> Encoder:
        served = self._encoders.conditioning
        if encoder_id not in served:
            raise ChorusError(
                errors.UNKNOWN_ENCODER,
                f"conditioning_encoder_id: {encoder_id!r} is not served here; see DescribeEncoders",
                metadata={"available": ",".join(served)},
                violations=[
                    errors.Violation("conditioning_encoder_id", f"must be one of {', '.join(served)}")
                ],
            )
        return served[encoder_id]


def make_align_response(
    compared: AlignedPrompts, target: str, donors: Sequence[str]
) -> embedder_pb2.AlignResponse:
    """Returns the message for a comparison.

    Args:
        target: the target's prompt as it was sent, before trimming; token ranges refer to it.
        donors: prompts of the donors as they were sent, in the order compared.
    """
    return embedder_pb2.AlignResponse(
        alignments=[
            embedder_pb2.Alignment(
                gained=_make_aligned(compared.target, target, donor.alignment.gained),
                lost=_make_aligned(donor.tokens, prompt, donor.alignment.lost),
                reordered=donor.alignment.reordered,
                things_added=donor.alignment.things_added,
            )
            for donor, prompt in zip(compared.donors, donors, strict=True)
        ]
    )


def _trim(prompt: str, field: str, violations: Violations) -> str:
    fault = find_prompt_fault(prompt)
    violations.require(fault is None, field, fault or "")
    return prompt.strip()


def _make_tokens(encoding: Tokens, sent: str, indices: Iterable[int]) -> list[embedder_pb2.Token]:
    """Returns tokens with their ranges in the prompt as it was sent, before trimming."""
    shift = len(sent) - len(sent.lstrip())
    tokens = []
    for index in indices:
        start, end = encoding.offsets[index]
        lead = shift if end > start else 0
        tokens.append(embedder_pb2.Token(text=encoding.tokens[index], start=start + lead, end=end + lead))
    return tokens


def _make_aligned(encoding: Tokens, sent: str, changes: Sequence[Change]) -> list[embedder_pb2.AlignedToken]:
    changed = to_tokens(changes, encoding.offsets)
    tokens = _make_tokens(encoding, sent, (change.index for change in changed))
    return [
        embedder_pb2.AlignedToken(
            token=token,
            weight=change.weight,
            index=change.index,
            category=embedder_pb2.TokenCategory.Value(f"TOKEN_CATEGORY_{change.category.name}"),
            unknown=change.index in encoding.unknown,
        )
        for token, change in zip(tokens, changed, strict=True)
    ]
