"""Side data: what stage 2 and amplification read of a donor in addition to its latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import safetensors.torch
import torch
import torch.nn.functional as F
from chorus_rpc.chunks import BlobFault
from torch import Tensor

from services.contract.safetensors_header import TensorHeader, parse_tensor_headers
from services.denoiser.network.wan import Grid

MAPS = "maps"
TEXT = "text"


@dataclass(frozen=True)
class SideData:
    """Side data of one run, on the CPU.

    Attributes:
        maps: uint8 [L, t, h, w]: where each token of the prompt acted, pooled over the grid of video tokens;
            each map is scaled so that its largest value is 255.
        text: float16 [L, D]: token states of the prompt.
    """

    maps: Tensor
    text: Tensor


def pack_side_data(side: SideData) -> bytes:
    """Packs side data as a safetensors file; equal data gives equal bytes."""
    data: bytes = safetensors.torch.save({MAPS: side.maps.contiguous(), TEXT: side.text.contiguous()})
    return data


def unpack_side_data(data: bytes, *, text_dim: int, max_tokens: int, token_grid: Grid) -> SideData:
    """Unpacks side data; nothing is allocated before the header matches.

    Raises BlobFault for other tensors, types or shapes, maps that are not pooled from `token_grid`, a prompt
    without tokens or with more than `max_tokens`, and NaN or infinity.
    """
    found = {tensor.name: tensor for tensor in parse_tensor_headers(data)}
    if found.keys() != {MAPS, TEXT}:
        raise BlobFault(f"holds {len(found)} tensors, expected only {MAPS} and {TEXT}")
    maps, text = found[MAPS], found[TEXT]
    tokens = maps.shape[0] if maps.shape else 0
    if not 1 <= tokens <= max_tokens:
        raise BlobFault(f"{MAPS} cover {tokens} tokens; must be 1 to {max_tokens}")
    if text != TensorHeader(TEXT, "F16", (tokens, text_dim)):
        raise BlobFault(f"{TEXT} is {_format_header(text)}, expected F16 {[tokens, text_dim]}")
    grids = [_pool_grid(token_grid, kernel) for kernel in _kernels(token_grid)]
    if maps.dtype != "U8" or maps.shape[1:] not in grids:
        raise BlobFault(
            f"{MAPS} are {_format_header(maps)}, expected U8 over {list(token_grid)} or pooled from it"
        )
    try:
        tensors = safetensors.torch.load(data)
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise BlobFault("not a safetensors file: its tensors cannot be read") from error
    if not tensors[TEXT].isfinite().all():
        raise BlobFault(f"{TEXT} holds NaN or infinity")
    return SideData(tensors[MAPS], tensors[TEXT])


def pool_maps(attention: Tensor, token_grid: Grid, limit_bytes: int) -> Tensor | None:
    """Pools maps to one byte per value: averages over 1x2x2 tokens, 2x2x2, 2x4x4 and so on until they fit.

    Args:
        attention: float [L, N] over `token_grid`, finite and at least 0.
        limit_bytes: Upper bound on the size of the result.

    Returns:
        uint8 [L, t, h, w], each map scaled so that its largest value is 255; None if `limit_bytes` allows
        less than one value per token and frame.
    """
    tokens = len(attention)
    if tokens * token_grid[0] > limit_bytes:
        return None
    kernel = next(
        k for k in _kernels(token_grid) if tokens * math.prod(_pool_grid(token_grid, k)) <= limit_bytes
    )
    maps = attention.float().view(tokens, *token_grid)
    maps = F.avg_pool3d(maps, kernel, ceil_mode=True, count_include_pad=False)
    largest = maps.amax((1, 2, 3), keepdim=True)
    return (maps / largest.where(largest > 0, 1.0) * 255).round().to(torch.uint8)


def unpool_maps(maps: Tensor, token_grid: Grid) -> Tensor:
    """Expands maps [L, t, h, w] to `token_grid`: float32 [L, N], 0 to 1, each token with its pool's value.

    Raises ValueError for maps that are not pooled from that grid.
    """
    grid = tuple(maps.shape[1:])
    kernel = next((k for k in _kernels(token_grid) if _pool_grid(token_grid, k) == grid), None)
    if kernel is None:
        raise ValueError(f"maps over {grid} are not pooled from {token_grid}")
    values = maps.float() / 255
    for axis, (side, size) in enumerate(zip(kernel, token_grid, strict=True), start=1):
        values = values.repeat_interleave(side, axis).narrow(axis, 0, size)
    return values.flatten(1)


def _kernels(grid: Grid) -> Iterator[Grid]:
    """Yields growing pool sizes, from single tokens to the whole grid; no axis exceeds the grid's."""
    frames, rows, columns = grid
    time = space = 1
    yield time, space, space
    while time < frames or space < max(rows, columns):
        if time == space:
            space *= 2
        else:
            time *= 2
        yield min(time, frames), min(space, rows), min(space, columns)


def _pool_grid(grid: Grid, kernel: Grid) -> Grid:
    frames, rows, columns = (-(-size // side) for size, side in zip(grid, kernel, strict=True))
    return frames, rows, columns


def _format_header(tensor: TensorHeader) -> str:
    # A header may declare anything; an error shows only the beginning of it.
    return f"{tensor.dtype[:8]} {list(tensor.shape[:8])}"
