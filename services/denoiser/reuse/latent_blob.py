"""Latents as the cache stores them: a safetensors file with one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.torch
from chorus_rpc.chunks import BlobFault
from torch import Tensor

from services.contract.safetensors_header import TensorHeader, parse_tensor_headers

NAME = "latents"


def pack_latents(latents: Tensor) -> bytes:
    """Packs latents, float32 [C, T, H, W] on the CPU; equal latents give equal bytes."""
    data: bytes = safetensors.torch.save({NAME: latents.contiguous()})
    return data


def unpack_latents(data: bytes, shape: Sequence[int]) -> Tensor:
    """Unpacks latents, float32 of `shape`; nothing is allocated before the header matches.

    Raises BlobFault for another tensor, type or shape, and for NaN or infinity.
    """
    expected = TensorHeader(NAME, "F32", tuple(shape))
    if (found := parse_tensor_headers(data)) != [expected]:
        raise BlobFault(f"holds {found}, expected {expected}")
    try:
        latents: Tensor = safetensors.torch.load(data)[NAME]
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise BlobFault("not a safetensors file: its tensor cannot be read") from error
    if not latents.isfinite().all():
        raise BlobFault("holds NaN or infinity")
    return latents
