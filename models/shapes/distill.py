"""Distils the teacher: `python -m models.shapes.distill --out build/shapes/student --teacher WEIGHTS`.

Trajectory regression, segment by segment: each row starts at a level of the student's schedule, the teacher
takes several small steps to the next level, and the student learns the one step that leads there. Rows start
from noised renders at first; later half of them start from where the student's own steps lead, which are the
latents that it meets in use. With `--trajectories` the teacher's steps are computed once, from noise, for all
updates (`trajectories.py`), which is much faster. Students of one and of two steps are the honest rivals of
reuse: the same rows, updates and teacher, other levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import draw_layout
from models.shapes.network import FEW_STEPS, SCALE, Network, encode, subdivide, to_tokens
from models.shapes.network import noise as draw_noise
from models.shapes.prompts import MAX_TOKENS, Prompts, blur_text, load_training_prompts
from models.shapes.render import render
from models.shapes.training import Batch, Trainer, add_arguments, prepare, start_from
from models.shapes.trajectories import Trajectories, TrajectoryStudent

SCHEDULES: Final = {4: FEW_STEPS, 2: (1.0, FEW_STEPS[2], 0.0), 1: (1.0, 0.0)}


def noised_renders(table: Tensor, sigma: float, g: torch.Generator) -> Tensor:
    """Renders scenes with fresh layouts and brings their latents to a noise level, [B, C, T, H, W]."""
    noise = draw_noise(len(table), g)
    if sigma == 1:
        return noise
    return (1 - sigma) * encode(render(table, draw_layout(table, g))) + sigma * noise


class Student(Trainer):
    """Trainer of a student that takes the steps of `sigmas`."""

    def __init__(
        self,
        args: argparse.Namespace,
        network: Network,
        teacher: Network,
        prompts: Prompts,
        sigmas: Sequence[float],
    ) -> None:
        super().__init__(args, network)
        self.teacher, self.prompts, self.sigmas = teacher.to(self.device), prompts, tuple(sigmas)
        self.scale = SCALE
        if args.compile:
            self.teacher.compile_blocks()

    def batch(self) -> Batch:
        """Returns rows of one level each for a batch: all rows of a level are computed together."""
        g, levels = self.generator, len(self.sigmas) - 1
        level = int(torch.randint(levels, (1,), generator=g))
        pick = torch.randint(len(self.prompts), (self.args.batch,), generator=g)
        text, bias = self.prompts.text(pick, MAX_TOKENS)
        x = noised_renders(self.prompts.table[pick], self.sigmas[level], g)
        if level and self.update >= self.args.own_from * self.args.updates:
            half = self.args.batch // 2
            steps = self.network.trajectory(
                draw_noise(half, g), text[:half], bias[:half], self.sigmas, end_step=level
            )
            *_, x[:half] = steps
        target = self.teach(x, text, bias, level)
        sigma = torch.full((len(x),), self.sigmas[level])
        text = blur_text(text, bias, self.args.blur, g)
        return Batch(to_tokens(x), sigma, text, bias, to_tokens(target))

    def teach(self, x: Tensor, text: Tensor, bias: Tensor, level: int) -> Tensor:
        """Returns the data with which one step from `x` leads to where the teacher's small steps lead."""
        start, end = self.sigmas[level : level + 2]
        fine = subdivide(start, end, self.args.substeps * 4 // (len(self.sigmas) - 1))
        whole = fine if end == 0 else (*fine, 0.0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            *_, last = self.teacher.trajectory(
                x, text, bias, whole, end_step=len(fine) - 1, guidance=self.args.guidance
            )
        return x - start * (last - x) / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(updates=300, batch=32, lr=1e-3, muon_lr=1.5e-3, warm_up=20, decay=0.5, ema=0.98)
    parser.add_argument("--teacher", type=Path, required=True, help="averaged weights of the teacher")
    parser.add_argument("--start-from", type=Path, help="weights to begin with instead of the teacher's")
    parser.add_argument("--steps", type=int, choices=tuple(SCHEDULES), default=4, help="steps of the student")
    parser.add_argument("--substeps", type=int, default=6, help="teacher's steps for a quarter of a video")
    parser.add_argument("--guidance", type=float, default=2.0, help="scale of guidance in the teacher's "
                        "steps; the student takes it over at no cost")  # fmt: skip
    parser.add_argument("--own-from", type=float, default=0.5, help="share of the run after which half of "
                        "the rows continue the student's own steps")  # fmt: skip
    parser.add_argument("--trajectories", type=int, default=0, help="number of trajectories of the teacher "
                        "that are computed beforehand; 0 takes its steps in every update")  # fmt: skip
    args = parser.parse_args()
    prompts = load_training_prompts(args.prompts, args.prompt_count, args.seed).to(args.device)
    prepare(args)
    teacher, network = Network(), Network()
    start_from(teacher, args.teacher)
    start_from(network, args.start_from or args.teacher)
    sigmas = SCHEDULES[args.steps]
    student: Student | TrajectoryStudent
    if args.trajectories:
        rows = Trajectories(teacher.to(args.device), prompts, args.trajectories, args)
        student = TrajectoryStudent(args, network, rows, prompts, sigmas)
    else:
        student = Student(args, network, teacher, prompts, sigmas)
    if args.resume:
        student.load(args.out)
    student.run(args.out, student.batch)


if __name__ == "__main__":
    main()
