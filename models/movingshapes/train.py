"""Trains the teacher: `python -m models.movingshapes.train --out build/movingshapes/teacher`.

Flow matching on videos rendered on the fly, conditioned on MiniLM token states that are computed once per
caption. The network predicts the clean data, and the loss is on the velocity that follows, (x - data) /
sigma, so that the network need not carry the noise through its few channels (arXiv 2511.13720). At first an
update uses a quarter of each video's tokens and four times as many videos, because the tokens of one video
carry nearly the same information and captions do not: first a random quarter, then mostly tokens near the
objects' paths, where shapes are learned. The last part of the run uses full videos. Training is seeded, and a
checkpoint contains the complete state, so `--resume` continues the same run. Writes checkpoint.pt,
ema.safetensors and curve.jsonl into the output directory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.movingshapes.analyzer import accuracy
from models.movingshapes.data import CODEC, GRID, Captions, latents, load_captions, near_paths
from models.movingshapes.network import FEW_STEPS, SHIFT, Network, noise, to_tokens
from models.movingshapes.world import Scene, parse_scene
from models.shapes.muon import Muon

TOKENS = GRID[0] * GRID[1] * GRID[2]
PURE_NOISE_SHARE = 0.3  # share of samples at sigma = 1, the level that decides objects and motions
CAPTIONS = 64_000


def draw_sigmas(n: int, generator: torch.Generator) -> Tensor:
    """Draws noise levels [n]: a share at pure noise, the rest from the shifted continuum."""
    t = torch.rand(n, generator=generator)
    continuum = SHIFT * t / (1 + (SHIFT - 1) * t)
    return torch.where(torch.rand(n, generator=generator) < PURE_NOISE_SHARE, torch.ones(n), continuum)


def velocity_loss(data: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Computes the error [B] of the velocity that follows from predicted data; bounded for small sigma."""
    error = F.mse_loss(data, target, reduction="none").mean((1, 2))
    return error / sigma.clamp_min(0.25).square()


class Trainer:
    """State of a training run, with checkpoints: network, averaged weights, optimisers, random generator."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(args.seed)
        self.network = Network(args.dim, args.layers).to(self.device)
        self.ema = {k: v.detach().clone() for k, v in self.network.transformer.state_dict().items()}
        self.optimisers = self._optimisers()
        self.generator = torch.Generator().manual_seed(args.seed + 1)
        self.update, self.seconds = 0, 0.0
        forward: Any = torch.compile(self._loss, dynamic=False) if args.compile else self._loss
        self.loss: Callable[..., Tensor] = forward

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in self.network.transformer.named_parameters():
            hidden = name.startswith("blocks.") and p.ndim == 2
            (matrices if hidden else rest).append(p)
        adam = torch.optim.AdamW(rest, lr=self.args.lr, betas=(0.9, 0.98), weight_decay=0.01)
        return [adam, Muon(matrices, lr=self.args.muon_lr)]

    def _loss(
        self, x: Tensor, index: Tensor, target: Tensor, sigma: Tensor, text: Tensor, bias: Tensor
    ) -> Tensor:
        return velocity_loss(self.network(x, index, sigma, text, bias), target, sigma)

    def lr_scale(self) -> float:
        """Returns the factor on the learning rates: a warm-up, a constant part and a linear decay at the
        end."""
        updates: int = self.args.updates
        warm_up = min(1.0, (self.update + 1) / 100)
        decay: float = (updates - self.update) / (self.args.decay * updates)
        return warm_up * max(0.01, min(1.0, decay))

    def sigmas(self, n: int) -> Tensor:
        """Draws the noise levels [n] of a batch."""
        return draw_sigmas(n, self.generator)

    def flow_batch(self, captions: Captions) -> list[Tensor]:
        """Renders new videos and returns the arguments of the loss: a subset of their tokens, noised."""
        g, full_videos = self.generator, self.update >= self.args.subset_until * self.args.updates
        share = 1 if full_videos else self.args.subset
        n = self.args.batch * share
        pick = torch.randint(len(captions.table), (n,), generator=g)
        data = to_tokens(latents(captions.table[pick], g))
        order = torch.rand(n, TOKENS, generator=g)
        if not full_videos and self.update >= self.args.focus_from * self.args.updates:
            order -= 0.9 * near_paths(captions.table[pick])
        index = order.argsort(1)[:, : TOKENS // share]
        data = data.gather(1, index[..., None].expand(-1, -1, data.shape[2]))
        sigma = self.sigmas(n)
        s = sigma.view(-1, 1, 1)
        x = (1 - s) * data + s * torch.randn(data.shape, generator=g)
        return [x, index, data, sigma, *captions.blurred_text(pick, self.args.blur, g)]

    def step(self, batch: list[Tensor]) -> tuple[float, float]:
        """Runs one update. Returns the mean loss, and the mean loss of samples at sigma = 1 (NaN without
        any)."""
        scale = self.lr_scale()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = scale * group.setdefault("base_lr", group["lr"])
        losses = self.loss(*(t.to(self.device) for t in batch))
        torch.autograd.backward(losses.mean())
        losses = losses.detach().cpu()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(self.args.ema, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            for k, v in self.network.transformer.state_dict().items():
                self.ema[k].lerp_(v, 1 - decay)
        self.update += 1
        top = losses[batch[3] == 1]
        return float(losses.mean()), float(top.mean()) if len(top) else float("nan")

    def evaluate(self, captions: Captions, count: int) -> dict[str, float]:
        """Computes the accuracy of `count` four-step videos, generated with the averaged weights."""
        transformer = self.network.transformer
        own = {k: v.clone() for k, v in transformer.state_dict().items()}
        transformer.load_state_dict(self.ema)
        scores = judge(self.network, captions, torch.arange(count), FEW_STEPS, self.device)
        transformer.load_state_dict(own)
        return {k: round(v, 4) for k, v in scores.items()}

    def start_from(self, weights: Path) -> None:
        """Loads weights; learning rates and averages start from the beginning."""
        state = {k: v.float() for k, v in load_file(weights, device=str(self.device)).items()}
        self.network.transformer.load_state_dict(state)
        self.ema = {k: v.clone() for k, v in state.items()}

    def save(self, out: Path) -> None:
        """Writes the checkpoint and the averaged weights."""
        state = {
            "model": self.network.transformer.state_dict(),
            "ema": self.ema,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "update": self.update,
            "seconds": self.seconds,
            "args": {k: str(v) for k, v in vars(self.args).items()},
        }
        torch.save(state, out / "checkpoint.tmp")
        (out / "checkpoint.tmp").replace(out / "checkpoint.pt")
        save_file({k: v.cpu().contiguous() for k, v in self.ema.items()}, out / "ema.tmp")
        (out / "ema.tmp").replace(out / "ema.safetensors")

    def load(self, out: Path) -> None:
        """Restores the state from the checkpoint."""
        state = torch.load(out / "checkpoint.pt", map_location=self.device)
        self.network.transformer.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.update, self.seconds = state["update"], state["seconds"]

    def run(self, out: Path, batch: Callable[[], list[Tensor]], calibration: Captions) -> None:
        """Runs the remaining updates.

        Writes a row of the curve every 50 updates, and every `eval_every` updates accuracy and a checkpoint.
        """
        args, start, losses = self.args, time.monotonic() - self.seconds, []
        while self.update < args.updates:
            losses.append(self.step(batch()))
            if self.update % 50 and self.update != args.updates:
                continue
            self.seconds = time.monotonic() - start
            mean = torch.tensor(losses).nanmean(0).tolist()
            losses = []
            row: dict[str, Any] = {"update": self.update, "seconds": round(self.seconds, 1)}
            row |= {"loss": round(mean[0], 5), "loss_at_1": round(mean[1], 5)}
            if self.update % args.eval_every == 0 or self.update == args.updates:
                self.save(out)
                row["calibration"] = self.evaluate(calibration, args.eval_count)
            print(json.dumps(row), flush=True)
            with (out / "curve.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def judge(
    network: Network,
    captions: Captions,
    index: Tensor,
    sigmas: tuple[float, ...],
    device: torch.device,
    batch: int = 16,
    seed: int = 7,
) -> dict[str, float]:
    """Samples videos for the captions at `index` and computes their accuracy."""
    g = torch.Generator().manual_seed(seed)
    videos: list[Tensor] = []
    wanted: list[Scene] = []
    for part in torch.split(index, batch):
        text, bias = (t.to(device) for t in captions.text(part))
        *_, last = network.trajectory(noise(len(part), g).to(device), text, bias, sigmas)
        videos += [CODEC.decode(x) for x in last.cpu()]
        wanted += [parse_scene(row) for row in captions.table[part]]
    return accuracy(videos, wanted)


def arguments(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that teacher and student share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--captions", type=Path, default=Path("build/movingshapes"), help="folder of token states"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--updates", type=int, default=2700, help="number of updates")
    parser.add_argument(
        "--batch", type=int, default=16, help="full videos per update, or the same number of tokens"
    )
    parser.add_argument("--dim", type=int, default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--layers", type=int, default=6, help="number of blocks")
    parser.add_argument(
        "--subset", type=int, default=4, help="updates at first use one in this number of tokens"
    )
    parser.add_argument(
        "--focus-from", type=float, default=0.6, help="share of the run after which the subset is near paths"
    )
    parser.add_argument(
        "--subset-until", type=float, default=0.9, help="share of the run after which full videos are used"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3, help="learning rate of Muon")
    parser.add_argument(
        "--blur", type=float, default=0.3, help="noise on the captions' states, relative to their spread"
    )
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument(
        "--decay", type=float, default=0.4, help="share of the run over which learning rates decay"
    )
    parser.add_argument("--eval-every", type=int, default=300, help="updates between evaluations")
    parser.add_argument("--eval-count", type=int, default=64, help="number of videos per evaluation")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    return parser


def prepare(args: argparse.Namespace) -> tuple[Captions, Captions]:
    """Creates the output folder. Returns the captions to train on and the captions to evaluate on."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    captions = load_captions(args.captions / "captions-train.pt", "train", CAPTIONS, args.seed)
    return captions, load_captions(args.captions / "captions-calibration.pt", "calibration", 600, 1, "unseen")


def main() -> None:
    parser = arguments("Trains the teacher.")
    parser.add_argument("--start-from", type=Path, help="weights to begin with instead of random ones")
    args = parser.parse_args()
    captions, calibration = prepare(args)
    trainer = Trainer(args)
    if args.start_from:
        trainer.start_from(args.start_from)
    if args.resume:
        trainer.load(args.out)
    parameters = sum(p.numel() for p in trainer.network.parameters())
    print(f"{parameters:,} parameters, {len(captions.table):,} captions", flush=True)
    trainer.run(args.out, lambda: trainer.flow_batch(captions), calibration)


if __name__ == "__main__":
    main()
