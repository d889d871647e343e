"""What the scheduler says to the services behind it. Pure."""

from __future__ import annotations

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.contract.identity import latent_shape
from services.scheduler.planning.planner import Donor

# Donors below are no donors: opposite or unrelated.
MIN_SCORE = 0.0


def latent_identity(spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo) -> latents_pb2.LatentIdentity:
    """Everything that makes the latents of this request interchangeable with others.

    Args:
        spec: as accepted: shape and schedule are set.
    """
    return latents_pb2.LatentIdentity(
        model_id=model.model_id,
        weights_digest=model.weights_digest,
        adapters=model.adapters,
        schedule=spec.schedule,
        latent_shape=latent_shape(
            channels=model.codec.latent_channels,
            temporal_factor=model.codec.temporal_factor,
            spatial_factor=model.codec.spatial_factor,
            causal=model.codec.causal,
            frames=spec.shape.frames,
            height=spec.shape.height,
            width=spec.shape.width,
        ),
        latent_dtype=model.latent_dtype,
        codec_id=model.codec.codec_id,
        conditioning_encoder_id=model.conditioning_encoder_id,
    )


def lookup_request(
    identity: latents_pb2.LatentIdentity, encoded: embedder_pb2.EmbedResponse, limit: int
) -> cache_pb2.LookupRequest:
    return cache_pb2.LookupRequest(
        identity=identity,
        retrieval_encoder_id=encoded.retrieval_encoder_id,
        vector=encoded.retrieval_vector,
        limit=limit,
        min_score=MIN_SCORE,
    )


def donors_of(reply: cache_pb2.LookupResponse) -> list[Donor]:
    return [
        Donor(
            entry_id=donor.entry.entry_id,
            score=donor.score,
            steps=frozenset(
                blob.step.index for blob in donor.entry.blobs if blob.kind != latents_pb2.BLOB_KIND_SIDE_DATA
            ),
            side_data=any(blob.kind == latents_pb2.BLOB_KIND_SIDE_DATA for blob in donor.entry.blobs),
            prompt=donor.entry.prompt,
            traceparent=donor.entry.traceparent,
            generation_id=donor.entry.generation_id,
        )
        for donor in reply.donors
    ]


def denoise_request(
    generation_id: str, spec: pb.GenerationSpec, encoded: embedder_pb2.EmbedResponse, plan: plan_pb2.Plan
) -> denoiser_pb2.DenoiseRequest:
    request = denoiser_pb2.DenoiseRequest(
        generation_id=generation_id,
        model_id=spec.model_id,
        shape=spec.shape,
        schedule=spec.schedule,
        seed=spec.seed,
        conditioning_encoder_id=encoded.conditioning_encoder_id,
        token_states=encoded.token_states,
        plan=plan,
        retrieval_encoder_id=encoded.retrieval_encoder_id,
        vector_dim=len(encoded.retrieval_vector),
    )
    if not spec.no_store:
        request.admission.CopyFrom(
            denoiser_pb2.AdmissionContext(prompt=spec.prompt, retrieval_vector=encoded.retrieval_vector)
        )
    return request
