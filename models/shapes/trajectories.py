"""The teacher's trajectories, computed once: `distill.py --trajectories N` trains every student on them.

A student that learns from fresh rows waits for the teacher's small steps in every update. Stored latents of
the teacher at the levels of the 4-step schedule serve many updates, and the students of 4, 2 and 1 steps.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.shapes.network import FEW_STEPS, SCALE, Network, subdivide, to_tokens
from models.shapes.network import noise as draw_noise
from models.shapes.prompts import MAX_TOKENS, Prompts, blur_text
from models.shapes.training import Batch, Trainer


class Trajectories:
    """Latents of a teacher from noise, for random prompts; 4 MB of memory each.

    Attributes:
        pick: Indices of the prompts, [n].
        latents: At the levels of FEW_STEPS, float16 [n, 5, C, T, H, W].
    """

    def __init__(self, teacher: Network, prompts: Prompts, count: int, args: argparse.Namespace) -> None:
        """Computes `count` trajectories with the options of `distill.py`."""
        g = torch.Generator(args.device).manual_seed(args.seed + 2)
        parts = [subdivide(a, b, args.substeps) for a, b in pairwise(FEW_STEPS)]
        fine = (FEW_STEPS[0], *(sigma for part in parts for sigma in part[1:]))
        self.pick = torch.randint(len(prompts), (count,), generator=g)
        kept = []
        for pick in torch.split(self.pick, args.batch):
            text, bias = prompts.text(pick, MAX_TOKENS)
            start = draw_noise(len(pick), g)
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
                steps = list(teacher.trajectory(start, text, bias, fine, guidance=args.guidance))
            kept.append(torch.stack([start, *steps[args.substeps - 1 :: args.substeps]], 1).half())
        self.latents = torch.cat(kept)

    def __len__(self) -> int:
        return len(self.pick)


class TrajectoryStudent(Trainer):
    """Trainer of a student that takes the steps of `sigmas`, levels of FEW_STEPS, on stored trajectories.

    Later half of the rows start from where the student's own steps lead. Their target is the next level of
    the teacher's trajectory from the same noise.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        network: Network,
        trajectories: Trajectories,
        prompts: Prompts,
        sigmas: Sequence[float],
    ) -> None:
        super().__init__(args, network)
        self.trajectories, self.prompts, self.sigmas = trajectories, prompts, tuple(sigmas)
        self.levels = [FEW_STEPS.index(sigma) for sigma in sigmas]
        self.scale = SCALE

    def batch(self) -> Batch:
        """Returns rows of one level each for a batch."""
        g, n = self.generator, self.args.batch
        level = random.Random(f"{self.args.seed} {self.update}").randrange(len(self.sigmas) - 1)
        row = torch.randint(len(self.trajectories), (n,), generator=g)
        text, bias = self.prompts.text(self.trajectories.pick[row], MAX_TOKENS)
        x, after = (self.trajectories.latents[row, i].float() for i in self.levels[level : level + 2])
        if level and self.update >= self.args.own_from * self.args.updates:
            half = n // 2
            x[:half] = self.own_steps(row[:half], text[:half], bias[:half], level)
        start, end = self.sigmas[level : level + 2]
        target = x - start * (after - x) / (end - start)
        text = blur_text(text, bias, self.args.blur, g)
        return Batch(to_tokens(x), torch.full((n,), start), text, bias, to_tokens(target))

    def own_steps(self, row: Tensor, text: Tensor, bias: Tensor, level: int) -> Tensor:
        """Returns where the student's own steps lead from the noise of trajectories, [n, C, T, H, W]."""
        noise = self.trajectories.latents[row, 0].float()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            *_, last = self.network.trajectory(noise, text, bias, self.sigmas, end_step=level)
        return last
