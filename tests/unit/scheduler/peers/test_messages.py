"""Verifies the messages to the peers."""

from __future__ import annotations

from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.contract.schedule import shifted_schedule
from services.scheduler.peers.messages import build_denoise_request, build_latent_identity

MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    weights_digest="ab" * 32,
    model_digest="cd" * 32,
    conditioning_encoder_id="enc",
    codec=denoiser_pb2.CodecInfo(codec_id="c", latent_channels=12, temporal_factor=1, spatial_factor=2),
    latent_dtype=latents_pb2.D_TYPE_FLOAT32,
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9375, 0.8333, 0.625, 0.0]),
)


def test_identity_follows_the_spec_not_the_models_defaults() -> None:
    spec = pb.GenerationSpec(
        prompt="x",
        shape=video_pb2.VideoShape(frames=16, height=64, width=32),
        schedule=latents_pb2.Schedule(sigmas=shifted_schedule(7, 5.0)),
    )
    identity = build_latent_identity(spec, MODEL)
    assert list(identity.latent_shape) == [12, 16, 32, 16]
    assert list(identity.schedule.sigmas) == shifted_schedule(7, 5.0)
    assert (identity.model_id, identity.weights_digest) == ("small", "ab" * 32)
    assert (identity.codec_id, identity.conditioning_encoder_id) == ("c", "enc")
    assert identity.latent_dtype == latents_pb2.D_TYPE_FLOAT32


def test_denoise_request_asks_for_admission_unless_the_spec_forbids_storing() -> None:
    encoded = embedder_pb2.EmbedResponse(retrieval_vector=[0.5, 0.5])
    spec = pb.GenerationSpec(prompt="x", seed=7)
    request = build_denoise_request("g", spec, encoded, plan_pb2.Plan(total_steps=4))
    assert (request.generation_id, request.seed, request.vector_dim) == ("g", 7, 2)
    assert request.admission.prompt == "x"
    assert list(request.admission.retrieval_vector) == [0.5, 0.5]
    assert build_denoise_request("g", spec, encoded, plan_pb2.Plan(seed=8)).seed == 8
    spec.no_store = True
    assert not build_denoise_request("g", spec, encoded, plan_pb2.Plan()).HasField("admission")
