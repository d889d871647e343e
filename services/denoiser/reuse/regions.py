"""Which tokens stage 2 computes. Pure functions on small tensors.

Masks are bool [N] over a grid of tokens (T, H, W): over time, then rows, then columns, as `patchify` lays
tokens out. Predictions are compared in one unit, the variance of the donor's own prediction, so that a
threshold means the same at every noise level and for every codec.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from services.denoiser.network.wan import Grid


def select_probe_tokens(grid: Grid, device: torch.device | str = "cpu") -> Tensor:
    """Every fourth token: one of each 2 x 2 in rows and columns, int64, ascending.

    Which of the four it is changes from frame to frame, so that together the frames see every place.
    """
    frames, rows, columns = grid
    index = torch.arange(frames * rows * columns, device=device).view(grid)
    return torch.cat(
        [index[t, t % 2 % rows :: 2, t // 2 % 2 % columns :: 2].flatten() for t in range(frames)]
    )


def compare_predictions(prediction: Tensor, donor: Tensor, variance: Tensor) -> Tensor:
    """Mean square difference of predictions [n, D] for each token, in units of `variance`; [n]."""
    return (prediction - donor).square().mean(-1) / variance.clamp_min(1e-12)


def find_differing_region(
    differences: Tensor, grid: Grid, *, threshold: float, dilation: int, probes: Tensor | None = None
) -> Tensor:
    """Returns the tokens around those whose prediction differs by more than `threshold`, bool [N].

    Args:
        differences: [n], of the tokens `probes` [n] where they are given, else of all [N].
        probes: Each stands for the 2 x 2 tokens around it, and for the same place in the frames before and
            after, where other places were probed.
    """
    if probes is None:
        return dilate(_close_in_time(differences > threshold, grid), grid, dilation)
    hot = torch.zeros(_count(grid), dtype=torch.bool, device=differences.device)
    hot[probes] = differences > threshold
    return _spread_over_time(dilate(hot, grid, max(1, dilation)), grid)


def find_attended_region(
    maps: Tensor, weights: Sequence[tuple[int, float]], grid: Grid, *, threshold: float, dilation: int
) -> Tensor:
    """Where some tokens of the donor's prompt acted.

    Args:
        maps: [L, N], 0 to 1: where each token acted.
        weights: positions in the prompt, and how much each counts; positions beyond L count nothing.
        threshold: of the largest attention, above which a place counts.
    """
    total = torch.zeros(_count(grid), device=maps.device)
    for position, weight in weights:
        if position < len(maps):
            total = torch.maximum(total, weight * maps[position])
    largest = total.max()
    hot = total > threshold * largest if largest > 0 else torch.zeros_like(total, dtype=torch.bool)
    return dilate(_close_in_time(hot, grid), grid, dilation)


def refine_region(
    active: Tensor, differences: Tensor, grid: Grid, *, threshold: float, dilation: int
) -> Tensor:
    """The part of `active` that still differs from the donor, with its surroundings.

    Args:
        differences: [n], of the active tokens in order.
    """
    hot = torch.zeros_like(active)
    hot[active] = differences > threshold
    return active & dilate(_close_in_time(hot, grid), grid, dilation)


def dilate(mask: Tensor, grid: Grid, by: int) -> Tensor:
    """The mask and `by` tokens around it, in rows and columns of the same frame."""
    if by == 0:
        return mask
    padded = F.max_pool3d(mask.view(1, 1, *grid).float(), (1, 2 * by + 1, 2 * by + 1), 1, (0, by, by))
    return padded.view(-1) > 0


def compute_edge_weights(mask: Tensor, grid: Grid) -> Tensor:
    """How much of a step's result each token takes: 1 inside, less at the edge, 0 outside; float32 [N].

    The rest comes from the donor, so that no seam shows. The frame's own border is no edge.
    """
    inside = mask.view(1, 1, *grid).float()
    share = F.avg_pool3d(F.pad(inside, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
    return (share * inside).view(-1)


def select_context(active: Tensor, grid: Grid) -> Tensor:
    """Every fourth token of those that are not active: int64, ascending."""
    probes = select_probe_tokens(grid, active.device)
    return probes[~active[probes]]


def pack_mask(mask: Tensor) -> bytes:
    """One bit for each token, lowest bit first."""
    bits = F.pad(mask.to("cpu", torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (bits * weights).sum(1, dtype=torch.uint8).numpy().tobytes()


def _count(grid: Grid) -> int:
    frames, rows, columns = grid
    return frames * rows * columns


def _spread_over_time(mask: Tensor, grid: Grid) -> Tensor:
    """The mask and the same places one frame earlier and later."""
    spread = F.max_pool3d(mask.view(1, 1, *grid).float(), (3, 1, 1), 1, (1, 0, 0))
    return spread.view(-1) > 0


def _close_in_time(mask: Tensor, grid: Grid) -> Tensor:
    """The mask without gaps of one frame: what is active before and after is active between."""
    frames = mask.view(grid)
    if grid[0] < 3:
        return mask
    closed = frames.clone()
    closed[1:-1] |= frames[:-2] & frames[2:]
    return closed.view(-1)
