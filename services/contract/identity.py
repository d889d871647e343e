"""Identity of latents: the digest of all properties that make them interchangeable."""

from __future__ import annotations

import hashlib
import json

from chorus.common.v1 import latents_pb2


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
    """Returns the SHA-256, lower-case hex, of a canonical form that is independent of protobuf's encoding."""
    return _digest(
        {
            "model": identity.model_id,
            "weights": identity.weights_digest,
            "adapters": [[a.adapter_id, a.digest, repr(a.scale)] for a in identity.adapters],
            "sigmas": [repr(s) for s in identity.schedule.sigmas],
            "shape": list(identity.latent_shape),
            "dtype": latents_pb2.DType.Name(identity.latent_dtype),
            "codec": identity.codec_id,
            "encoder": identity.conditioning_encoder_id,
        }
    )


def prompt_hash(prompt: str) -> str:
    """Returns the SHA-256, lower-case hex, of a prompt's UTF-8."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def entry_id(tenant: str, identity: str, prompt: str, seed: int) -> str:
    """Returns the id of a cache entry, 64 hex digits: admitting one request twice yields one entry.

    Args:
        identity: the `identity_digest` of the latents.
    """
    return _digest({"tenant": tenant, "identity": identity, "prompt": prompt_hash(prompt), "seed": seed})


def _digest(value: object) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
    ).hexdigest()
