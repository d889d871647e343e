"""Rows of training for hosting: noisy latents of one prompt's video that lead to another prompt's.

Rows of donors are what hosting meets in use, but each donor must be generated and read. Rows of renders are
unlimited: two scenes are rendered in one layout, and the first one is noised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from models.shapes.carry import carry_drawn, match_tables
from models.shapes.donors import Donors, donor_noise
from models.shapes.layout import draw_layout
from models.shapes.network import FEW_STEPS, Network, encode, to_tokens
from models.shapes.network import noise as draw_noise
from models.shapes.pairs import Pairs
from models.shapes.prompts import MAX_TOKENS
from models.shapes.render import render

LEVEL_SHARES: Final = {1: 0.2, 2: 0.35, 3: 0.45}  # of edit rows, by the level that is reused
_BATCH: Final = 64
Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # tokens, noise level, text, bias, clean tokens


def draw_level(rng: random.Random) -> int:
    """Draws the level that the rows of an update reuse."""
    return rng.choices(tuple(LEVEL_SHARES), tuple(LEVEL_SHARES.values()))[0]


class DonorRows:
    """Rows that start from the student's own donors.

    The latents and targets of all donors are computed once, 1.6 MB for each donor.

    Args:
        targets: "renders" or "reruns": what edits lead to that open nothing.
        bf16: Whether the student computes in bfloat16.
    """

    def __init__(self, student: Network, pairs: Pairs, donors: Donors, targets: str, *, bf16: bool) -> None:
        self._pairs, self._pick = pairs, donors.pair
        starts, goals = [], []
        for rows in torch.split(torch.arange(len(donors)), _BATCH):
            with torch.autocast(donors.pair.device.type, torch.bfloat16, enabled=bf16):
                start, goal = _compute_rows(student, pairs, donors, rows, targets)
            starts.append(start.half())
            goals.append(goal.half())
        self._starts, self._goals = torch.cat(starts), torch.cat(goals)

    def draw(self, n: int, level: int, g: torch.Generator) -> Rows:
        """Draws n rows that start from a level."""
        row = torch.randint(len(self._pick), (n,), generator=g)
        text, bias = self._pairs.targets.text(self._pick[row], MAX_TOKENS)
        x, goal = (to_tokens(t[row].float()) for t in (self._starts[:, level - 1], self._goals))
        return x, torch.full((n,), FEW_STEPS[level]), text, bias, goal


def _compute_rows(
    student: Network, pairs: Pairs, donors: Donors, rows: Tensor, targets: str
) -> tuple[Tensor, Tensor]:
    """Computes donors' latents at levels 1 to 3, [n, 3, C, T, H, W], and targets, [n, C, T, H, W]."""
    pick = donors.pair[rows]
    donor_text, donor_bias = pairs.donors.text(pick, MAX_TOKENS)
    text, bias = pairs.targets.text(pick, MAX_TOKENS)
    start = donor_noise(pick.tolist(), pick.device)
    levels = list(student.trajectory(start, donor_text, donor_bias, FEW_STEPS, end_step=3))
    goal = encode(render(pairs.targets.table[pick], donors.layout.select(rows)))
    reruns = pairs.opening[pick] | (targets == "reruns")
    if reruns.any():
        *_, rerun = student.trajectory(levels[0], text, bias, FEW_STEPS, 1)
        goal = torch.where(reruns.view(-1, 1, 1, 1, 1), rerun, goal)
    return torch.stack(levels, 1), goal


class RenderedRows:
    """Rows that start from noised renders of the donors' scenes, for the pairs whose edit opens nothing."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._closed = (~pairs.opening).nonzero()[:, 0]
        self._matches = match_tables(pairs.donors.table, pairs.targets.table).to(pairs.opening.device)

    def __len__(self) -> int:
        return len(self._closed)

    def draw(self, n: int, level: int, g: torch.Generator) -> Rows:
        """Draws n rows that start from a level."""
        pick = self._closed[torch.randint(len(self), (n,), generator=g)]
        before, after = self._pairs.donors.table[pick], self._pairs.targets.table[pick]
        state = g.get_state()
        layout = draw_layout(before, g)
        g.set_state(state)
        carried = carry_drawn(before, after, layout, draw_layout(after, g, before), self._matches[pick])
        x, goal = encode(render(before, layout)), encode(render(after, carried))
        sigma = FEW_STEPS[level]
        noisy = (1 - sigma) * x + sigma * draw_noise(n, g)
        text, bias = self._pairs.targets.text(pick, MAX_TOKENS)
        return to_tokens(noisy), torch.full((n,), sigma), text, bias, to_tokens(goal)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Joins rows to one set."""
    x, sigma, text, bias, goal = (torch.cat(p) for p in zip(*parts, strict=True))
    return x, sigma, text, bias, goal
