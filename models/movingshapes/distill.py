"""Distils the teacher: `python -m models.movingshapes.distill --out DIRECTORY --teacher WEIGHTS`.

Methods:
- `flow`: flow matching as for the teacher, but only at the four noise levels of the schedule;
- `trajectory`: predicts, from the teacher's x_i, the step to its x_{i+1} (many small steps of the teacher in
one); - `endpoint`: predicts, from the teacher's x_i, its clean x_N, as in consistency distillation.
The last two learn from trajectories that the teacher writes to a folder once, file by file. Seeded and
resumable like the teacher's training; writes the same files.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.movingshapes.data import Captions
from models.movingshapes.network import FEW_STEPS, Network, noise, to_tokens
from models.movingshapes.train import TOKENS, Trainer, arguments, prepare

FILE_SIZE = 64  # trajectories per file
STEPS = len(FEW_STEPS) - 1


def fine_schedule(substeps: int) -> tuple[float, ...]:
    """Returns the four-step schedule with every step divided into `substeps` equal ones."""
    inner = [a + (b - a) * k / substeps for a, b in pairwise(FEW_STEPS) for k in range(substeps)]
    return (*inner, 0.0)


@torch.no_grad()
def write_trajectories(
    network: Network, captions: Captions, folder: Path, count: int, substeps: int, seed: int
) -> None:
    """Writes the teacher's trajectories, FILE_SIZE per file; existing files are kept.

    A file contains `caption` [n], `x` [n, 5, C, T, H, W] at the boundaries x_0 ... x_4, float16, and `data`
    [n, 4, C, T, H, W]: the prediction at x_i with which one Euler step reaches x_{i+1}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device, sigmas = network.cos.device, fine_schedule(substeps)
    for part in range(-(-count // FILE_SIZE)):
        path = folder / f"{part:04}.safetensors"
        if path.exists():
            continue
        begin, g = time.monotonic(), torch.Generator().manual_seed(seed + part)
        pick = torch.randint(len(captions.table), (FILE_SIZE,), generator=g)
        kept = []
        for some in torch.split(pick, 16):
            x0 = noise(len(some), g).to(device)
            text, bias = (t.to(device) for t in captions.text(some))
            fine = [x0, *network.trajectory(x0, text, bias, sigmas)]
            kept.append(torch.stack(fine[::substeps], dim=1))
        x = torch.cat(kept)
        data = [
            x[:, i] - s * (x[:, i + 1] - x[:, i]) / (t - s) for i, (s, t) in enumerate(pairwise(FEW_STEPS))
        ]
        tensors = {"caption": pick, "x": x.half(), "data": torch.stack(data, dim=1).half()}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"{path.name}: {FILE_SIZE} trajectories in {time.monotonic() - begin:.0f} s", flush=True)


class Student(Trainer):
    """Trainer that starts from the teacher's weights and learns four noise levels."""

    def sigmas(self, n: int) -> Tensor:
        """Draws levels of the schedule."""
        return torch.tensor(FEW_STEPS)[torch.randint(STEPS, (n,), generator=self.generator)]

    def teacher_batch(self, captions: Captions, kept: dict[str, Tensor]) -> list[Tensor]:
        """Returns the arguments of the loss for full videos of the teacher's trajectories."""
        g, n = self.generator, self.args.batch
        row = torch.randint(len(kept["caption"]), (n,), generator=g)
        level = torch.randint(STEPS, (n,), generator=g)
        target = kept["data"][row, level] if self.args.method == "trajectory" else kept["x"][row, STEPS]
        x, sigma = kept["x"][row, level], torch.tensor(FEW_STEPS)[level]
        text = captions.blurred_text(kept["caption"][row], self.args.blur, g)
        return [
            to_tokens(x.float()),
            torch.arange(TOKENS).expand(n, -1),
            to_tokens(target.float()),
            sigma,
            *text,
        ]


def main() -> None:
    parser = arguments("Distils the teacher to four steps.")
    parser.set_defaults(
        updates=500, lr=1e-3, muon_lr=1.5e-3, ema=0.99, decay=0.8, eval_every=250, eval_count=128
    )
    parser.set_defaults(focus_from=0.0, subset_until=0.7)
    parser.add_argument("--teacher", type=Path, required=True, help="averaged weights of the teacher")
    parser.add_argument(
        "--method",
        choices=("flow", "trajectory", "endpoint"),
        default="trajectory",
        help="distillation method, see above",
    )
    parser.add_argument(
        "--trajectories",
        type=Path,
        default=Path("build/movingshapes/trajectories"),
        help="folder of the teacher's trajectories",
    )
    parser.add_argument("--count", type=int, default=768, help="number of trajectories to learn from")
    parser.add_argument(
        "--substeps", type=int, default=4, help="number of teacher steps per step of the student"
    )
    args = parser.parse_args()
    captions, calibration = prepare(args)
    student = Student(args)
    student.start_from(args.teacher)
    if args.method == "flow":
        batch = partial(student.flow_batch, captions)
    else:
        write_trajectories(student.network, captions, args.trajectories, args.count, args.substeps, args.seed)
        files = sorted(args.trajectories.glob("*.safetensors"))[: -(-args.count // FILE_SIZE)]
        parts = [load_file(f) for f in files]
        kept = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        batch = partial(student.teacher_batch, captions, kept)
    if args.resume:
        student.load(args.out)
    student.run(args.out, batch, calibration)


if __name__ == "__main__":
    main()
