"""State of a run between two steps, from which another call continues it to the same result, bit for bit.

Noise is a function of seed and step boundary, and the donor's data come from the cache again, so the state
is the latents and, within stage 2, the region.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import safetensors
import safetensors.torch
import torch
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.chunks import BlobFault
from torch import Tensor

from services.contract.safetensors_header import TensorHeader, parse_header

_LATENTS: Final = "latents"
_REGION: Final = "region"
_RUN: Final = "run"
_BOUNDARY: Final = "boundary"
# Upper bound on the header of a packed point, in bytes.
_OVERHEAD_BYTES: Final = 1024


@dataclass(frozen=True)
class ResumePoint:
    """State of a run at a step boundary.

    Attributes:
        boundary: The latents are x_boundary.
        latents: float32 [C, T, H, W], on the CPU.
        region: bool [N], on the CPU: tokens that the next step of stage 2 computes. None means that all later
            steps compute every token.
    """

    boundary: int
    latents: Tensor
    region: Tensor | None


def describe_run(request: denoiser_pb2.DenoiseRequest, weights_digest: str) -> str:
    """Returns the digest of what a run's result depends on: its points continue such runs only."""
    relevant = denoiser_pb2.DenoiseRequest()
    relevant.CopyFrom(request)
    for field in ("generation_id", "admission", "max_resume_point_bytes", "resume_point", "step_previews"):
        relevant.ClearField(field)
    # Estimates and explanations of the plan do not change what is computed.
    relevant.plan.ClearField("reasons")
    relevant.plan.ClearField("predicted_seconds_saved")
    digest = hashlib.sha256(relevant.SerializeToString(deterministic=True))
    digest.update(weights_digest.encode())
    return digest.hexdigest()


def estimate_bytes(shape: Sequence[int], tokens: int) -> int:
    """Returns an upper bound on the size of a packed point, in bytes."""
    return 4 * math.prod(shape) + tokens + _OVERHEAD_BYTES


def pack_resume_point(point: ResumePoint, run: str) -> bytes:
    """Packs a point as a safetensors file.

    Args:
        run: digest of the run, see `describe_run`.
    """
    tensors = {_LATENTS: point.latents.contiguous()}
    if point.region is not None:
        tensors[_REGION] = point.region.to(torch.uint8).contiguous()
    data: bytes = safetensors.torch.save(tensors, {_RUN: run, _BOUNDARY: str(point.boundary)})
    return data


def unpack_resume_point(
    data: bytes, run: str, shape: Sequence[int], tokens: int, boundaries: range
) -> ResumePoint:
    """Unpacks a point; nothing is allocated before its header matches.

    Args:
        run: digest of the run that it has to continue.
        shape: shape of the latents.
        tokens: number of tokens of a region.
        boundaries: step boundaries after which the run can continue.

    Raises BlobFault if it is damaged or belongs to another run.
    """
    header = parse_header(data)
    expected = [TensorHeader(_LATENTS, "F32", tuple(shape)), TensorHeader(_REGION, "U8", (tokens,))]
    if sorted(header.tensors, key=attrgetter("name")) not in (expected[:1], expected):
        raise BlobFault(
            f"holds {list(header.tensors)}, expected {expected[0]}, with or without {expected[1]}"
        )
    if header.metadata.get(_RUN) != run:
        raise BlobFault("belongs to a run of another request, model or plan")
    number = header.metadata.get(_BOUNDARY, "")
    if not number.isdecimal() or len(number) > 4 or int(number) not in boundaries:
        raise BlobFault(f"its step boundary must be {boundaries[0]} to {boundaries[-1]}, not {number[:20]!r}")
    try:
        loaded = safetensors.torch.load(data)
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise BlobFault("not a safetensors file: its tensors cannot be read") from error
    latents, region = loaded[_LATENTS], loaded.get(_REGION)
    if not latents.isfinite().all():
        raise BlobFault("holds NaN or infinity")
    return ResumePoint(int(number), latents, None if region is None else region.bool())
