"""Latents as the cache stores them: a safetensors file with one tensor.

A donor's latents start another video, which need not equal the donor's: they may be stored in bfloat16, half
the size. The clean latents, which an exact repeat decodes, keep every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import safetensors.torch
import torch
from chorus_rpc.chunks import BlobFault
from torch import Tensor

from services.contract.safetensors_header import TensorHeader, parse_tensor_headers
from services.denoiser.settings import DonorDtype

NAME: Final = "latents"
_DTYPES: Final[Mapping[DonorDtype, torch.dtype]] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pack_latents(latents: Tensor, dtype: DonorDtype = "float32") -> bytes:
    """Packs latents, float32 [C, T, H, W] on the CPU; equal latents give equal bytes."""
    data: bytes = safetensors.torch.save({NAME: latents.to(_DTYPES[dtype]).contiguous()})
    return data


def unpack_latents(data: bytes, shape: Sequence[int], *, exact: bool = False) -> Tensor:
    """Unpacks latents to float32 of `shape`; nothing is allocated before the header matches.

    Raises BlobFault for another tensor, type or shape, and for NaN or infinity.

    Args:
        exact: whether they must be stored in float32.
    """
    expected = [TensorHeader(NAME, dtype, tuple(shape)) for dtype in (("F32",) if exact else ("F32", "BF16"))]
    found = parse_tensor_headers(data)
    if len(found) != 1 or found[0] not in expected:
        raise BlobFault(f"holds {found}, expected {expected[0]}")
    try:
        latents: Tensor = safetensors.torch.load(data)[NAME].float()
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise BlobFault("not a safetensors file: its tensor cannot be read") from error
    if not latents.isfinite().all():
        raise BlobFault("holds NaN or infinity")
    return latents
