"""Messages to the peers, built from a spec by pure functions."""

from __future__ import annotations

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.contract.identity import latent_shape
from services.scheduler.planning.calibration import Policy

# Entries with a lower score are opposite or unrelated, so they are never donors.
_MIN_SCORE = 0.0


def build_latent_identity(
    spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo
) -> latents_pb2.LatentIdentity:
    """Returns everything that must agree for latents to be interchangeable with those of this request.

    Args:
        spec: an accepted spec, whose shape and schedule are set.
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
        model_digest=model.model_digest,
    )


def build_approximation(
    spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo, policy: Policy
) -> latents_pb2.Approximation:
    """Returns what the latents of this request are stored as if they reuse a donor."""
    host = model.host_adapter if model.HasField("host_adapter") else None
    return latents_pb2.Approximation(policy=policy, max_reuse_steps=spec.max_reuse_steps, host_adapter=host)


def truncate_tokens(encoded: embedder_pb2.EmbedResponse, limit: int) -> embedder_pb2.EmbedResponse:
    """Returns an encoding with at most `limit` tokens; `encoded` itself if it has no more.

    Args:
        limit: maximum number of tokens; 0 if unknown.
    """
    states = encoded.token_states
    count = states.shape[0] if states.shape else 0
    if not limit or count <= limit:
        return encoded
    cut = embedder_pb2.EmbedResponse()
    cut.CopyFrom(encoded)
    cut.token_states.shape[0] = limit
    cut.token_states.data = states.data[: len(states.data) // count * limit]
    del cut.tokens[limit:]
    return cut


def build_lookup_request(
    identity: latents_pb2.LatentIdentity, encoded: embedder_pb2.EmbedResponse, limit: int
) -> cache_pb2.LookupRequest:
    """Returns the request for at most `limit` donors of this identity."""
    return cache_pb2.LookupRequest(
        identity=identity,
        retrieval_encoder_id=encoded.retrieval_encoder_id,
        vector=encoded.retrieval_vector,
        limit=limit,
        min_score=_MIN_SCORE,
    )


def build_denoise_request(
    generation_id: str,
    spec: pb.GenerationSpec,
    encoded: embedder_pb2.EmbedResponse,
    plan: plan_pb2.Plan,
    approximation: latents_pb2.Approximation | None = None,
    *,
    seed_drawn: bool = False,
    max_resume_point_bytes: int = 0,
) -> denoiser_pb2.DenoiseRequest:
    """Returns the request that runs `plan`; without `no_store` it requests the admission of the latents.

    Args:
        approximation: what the result is stored as if it reuses a donor; None if only full computations are.
        seed_drawn: whether the seed was not stated.
        max_resume_point_bytes: upper bound on the states from which another call can continue the run, in
            bytes; 0 for a run that none continues.
    """
    request = denoiser_pb2.DenoiseRequest(
        generation_id=generation_id,
        model_id=spec.model_id,
        shape=spec.shape,
        schedule=spec.schedule,
        seed=plan.seed if plan.HasField("seed") else spec.seed,
        conditioning_encoder_id=encoded.conditioning_encoder_id,
        token_states=encoded.token_states,
        plan=plan,
        retrieval_encoder_id=encoded.retrieval_encoder_id,
        vector_dim=len(encoded.retrieval_vector),
        max_resume_point_bytes=max_resume_point_bytes,
        step_previews=spec.step_previews,
    )
    if not spec.no_store:
        request.admission.CopyFrom(
            denoiser_pb2.AdmissionContext(
                prompt=spec.prompt,
                retrieval_vector=encoded.retrieval_vector,
                approximation=approximation,
                seed_drawn=seed_drawn,
                retention=spec.retention if spec.HasField("retention") else None,
            )
        )
    return request
