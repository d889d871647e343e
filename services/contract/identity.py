"""Identity of latents: the digest of all properties that make them interchangeable."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Final

from chorus.common.v1 import latents_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.limits import MAX_ID_CHARACTERS, MAX_STEPS, SHA256_PATTERN
from google.protobuf.json_format import MessageToDict

APPROXIMATING_POLICIES: Final = ("safe", "balanced", "fast")


def canonical_digest(value: object) -> str:
    """Returns the SHA-256, lower-case hex, of a value's JSON with sorted keys and without spaces."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
    ).hexdigest()


def latent_shape(
    *,
    channels: int,
    temporal_factor: int,
    spatial_factor: int,
    causal: bool,
    frames: int,
    height: int,
    width: int,
) -> tuple[int, int, int, int]:
    """Returns the shape of a video's latents: (channels, latent frames, latent height, latent width).

    A causal codec (Wan's) encodes the first frame separately, which gives
    1 + (frames − 1) / temporal_factor latent frames.
    """
    latent_frames = 1 + (frames - 1) // temporal_factor if causal else frames // temporal_factor
    return channels, latent_frames, height // spatial_factor, width // spatial_factor


def identity_digest(identity: latents_pb2.LatentIdentity) -> str:
    """Returns the SHA-256, lower-case hex, of every field, independent of protobuf's encoding."""
    return canonical_digest(
        MessageToDict(identity, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)
    )


def served_digest(model: denoiser_pb2.ModelInfo) -> str:
    """Returns the SHA-256, lower-case hex, of all of a model that changes what reuse of its latents costs.

    That is everything that the identity of its latents holds for every request, and its host adapter.
    """
    described = MessageToDict(
        model, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )
    names = ("weights_digest", "adapters", "model_digest", "conditioning_encoder_id", "codec", "host_adapter")
    return canonical_digest({name: described.get(name) for name in names})


def approximate(
    identity: latents_pb2.LatentIdentity, approximation: latents_pb2.Approximation | None
) -> latents_pb2.LatentIdentity:
    """Returns the identity of approximations of the latents of `identity`; `identity` itself for None."""
    if approximation is None:
        return identity
    approximated = latents_pb2.LatentIdentity()
    approximated.CopyFrom(identity)
    approximated.approximation.CopyFrom(approximation)
    return approximated


def find_approximation_fault(approximation: latents_pb2.Approximation) -> str | None:
    """Returns what is wrong with the description of approximated latents, or None."""
    if approximation.policy not in APPROXIMATING_POLICIES:
        known = ", ".join(APPROXIMATING_POLICIES)
        return f"its policy must be one of {known}, not {approximation.policy[:40]!r}"
    if approximation.max_reuse_steps > MAX_STEPS:
        return f"its max_reuse_steps must be 0 to {MAX_STEPS}, not {approximation.max_reuse_steps}"
    if approximation.HasField("host_adapter"):
        host = approximation.host_adapter
        if not 1 <= len(host.adapter_id) <= MAX_ID_CHARACTERS:
            return f"its host_adapter.adapter_id must have 1 to {MAX_ID_CHARACTERS} characters"
        if re.fullmatch(SHA256_PATTERN, host.digest) is None:
            return "its host_adapter.digest must be 64 lower-case hex digits"
        if not math.isfinite(host.scale):
            return "its host_adapter.scale must be finite, not NaN or infinity"
    return None


def prompt_hash(prompt: str) -> str:
    """Returns the SHA-256, lower-case hex, of a prompt's UTF-8."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def entry_id(tenant: str, identity: str, prompt: str, seed: int) -> str:
    """Returns the id of a cache entry, 64 hex digits: admitting one request twice yields one entry.

    Args:
        identity: the `identity_digest` of the latents.
    """
    return canonical_digest(
        {"tenant": tenant, "identity": identity, "prompt": prompt_hash(prompt), "seed": seed}
    )
