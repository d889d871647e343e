"""Masks of regions, the tokens that stage 2 computes. Pure functions on small tensors.

Masks are bool [N] over a grid of tokens (T, H, W): over time, then rows, then columns, as in `patchify`.
Differences of predictions are divided by the variance of the donor's prediction, so that a threshold means
the same at every noise level and for every codec.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from services.denoiser.network.wan import Grid


def select_probe_tokens(grid: Grid, device: torch.device | str = "cpu") -> Tensor:
    """Returns every fourth token: one of each 2 x 2 in rows and columns, int64, ascending.

    The choice among the four changes from frame to frame, so that four frames cover every place.
    """
    frames, rows, columns = grid
    index = torch.arange(frames * rows * columns, device=device).view(grid)
    return torch.cat(
        [index[t, t % 2 % rows :: 2, t // 2 % 2 % columns :: 2].flatten() for t in range(frames)]
    )


def compare_predictions(prediction: Tensor, donor: Tensor, variance: Tensor) -> Tensor:
    """Returns the mean square difference of predictions [n, D] per token [n], in units of `variance`."""
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
    differing = torch.zeros(_count_tokens(grid), dtype=torch.bool, device=differences.device)
    differing[probes] = differences > threshold
    return _spread_over_time(dilate(differing, grid, max(1, dilation)), grid)


def find_attended_region(
    maps: Tensor, weights: Sequence[tuple[int, float]], grid: Grid, *, threshold: float, dilation: int
) -> Tensor:
    """Returns the places where some tokens of the donor's prompt acted, bool [N].

    Args:
        maps: [L, N], 0 to 1: where each token acted.
        weights: Positions in the prompt, and their weights; positions of L or above are ignored.
        threshold: Share of the largest attention above which a place belongs to the region.
    """
    total = torch.zeros(_count_tokens(grid), device=maps.device)
    for position, weight in weights:
        if position < len(maps):
            total = torch.maximum(total, weight * maps[position])
    largest = total.max()
    attended = total > threshold * largest if largest > 0 else torch.zeros_like(total, dtype=torch.bool)
    return dilate(_close_in_time(attended, grid), grid, dilation)


def refine_region(
    active: Tensor, differences: Tensor, grid: Grid, *, threshold: float, dilation: int
) -> Tensor:
    """Returns the part of `active` that still differs from the donor, with its surroundings, bool [N].

    Args:
        differences: [n], of the active tokens in order.
    """
    differing = torch.zeros_like(active)
    differing[active] = differences > threshold
    return active & dilate(_close_in_time(differing, grid), grid, dilation)


def dilate(mask: Tensor, grid: Grid, by: int) -> Tensor:
    """Returns the mask grown by `by` tokens, in rows and columns of the same frame."""
    if by == 0:
        return mask
    padded = F.max_pool3d(mask.view(1, 1, *grid).float(), (1, 2 * by + 1, 2 * by + 1), 1, (0, by, by))
    return padded.view(-1) > 0


def compute_edge_weights(mask: Tensor, grid: Grid) -> Tensor:
    """Returns the share of a step's own result per token: 1 inside, less at the edge, 0 outside; float32 [N].

    The rest comes from the donor, which avoids a visible seam. The border of the frame is not an edge.
    """
    inside = mask.view(1, 1, *grid).float()
    share = F.avg_pool3d(F.pad(inside, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
    return (share * inside).view(-1)


def select_context(active: Tensor, grid: Grid) -> Tensor:
    """Returns the inactive tokens among the probe tokens (`select_probe_tokens`), int64, ascending."""
    probes = select_probe_tokens(grid, active.device)
    return probes[~active[probes]]


def pack_mask(mask: Tensor) -> bytes:
    """Packs a mask into one bit per token, lowest bit first."""
    bits = F.pad(mask.to("cpu", torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (bits * weights).sum(1, dtype=torch.uint8).numpy().tobytes()


def _count_tokens(grid: Grid) -> int:
    frames, rows, columns = grid
    return frames * rows * columns


def _spread_over_time(mask: Tensor, grid: Grid) -> Tensor:
    """Returns the mask grown by one frame in both directions of time."""
    spread = F.max_pool3d(mask.view(1, 1, *grid).float(), (3, 1, 1), 1, (1, 0, 0))
    return spread.view(-1) > 0


def _close_in_time(mask: Tensor, grid: Grid) -> Tensor:
    """Returns the mask without gaps of one frame: a place active before and after is active between."""
    frames = mask.view(grid)
    if grid[0] < 3:
        return mask
    closed = frames.clone()
    closed[1:-1] |= frames[:-2] & frames[2:]
    return closed.view(-1)
