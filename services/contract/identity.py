"""Identity of latents: the digest of all properties that make them interchangeable."""

from __future__ import annotations

import hashlib
import json

from chorus.common.v1 import latents_pb2
from google.protobuf.json_format import MessageToDict


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
