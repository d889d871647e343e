"""Trains the teacher: `python -m models.movingshapes.train --out build/movingshapes/teacher`.

Flow matching on videos rendered on the fly, conditioned on MiniLM token states that are computed once per
caption. The network predicts the clean data and is judged by its velocity, (x - data) / sigma: so it need
not carry the noise through its few channels (arXiv 2511.13720). At first it sees a quarter of each video's
tokens and four times as many videos, for tokens of one video teach nearly the same and captions do not: first
a random quarter, then mostly tokens near the objects' paths, where shapes are learned. The last part of the
run sees whole videos. Seeded; a checkpoint holds everything, so `--resume` continues the same run. Writes
checkpoint.pt, ema.safetensors and curve.jsonl into the output directory.
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
from models.movingshapes.muon import Muon
from models.movingshapes.network import FEW_STEPS, SHIFT, Network, noise, to_tokens
from models.movingshapes.world import Scene, parse_scene

TOKENS = GRID[0] * GRID[1] * GRID[2]
AT_NOISE = 0.3  # share of samples at sigma = 1, where it is decided what moves where
CAPTIONS = 64_000


def draw_sigmas(n: int, generator: torch.Generator) -> Tensor:
    """Noise levels [n]: some pure noise, the rest from the shifted continuum."""
    t = torch.rand(n, generator=generator)
    anywhere = SHIFT * t / (1 + (SHIFT - 1) * t)
    return torch.where(torch.rand(n, generator=generator) < AT_NOISE, torch.ones(n), anywhere)


def velocity_loss(data: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Error of the velocity that follows from predicted data, [B]; bounded where sigma is small."""
    error = F.mse_loss(data, target, reduction="none").mean((1, 2))
    return error / sigma.clamp_min(0.25).square()


class Trainer:
    """The state of one run: network, its average, optimisers, generator; and their checkpoint."""

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
        """Warm-up, a flat stretch, and a linear way down over the last part."""
        updates: int = self.args.updates
        warm = min(1.0, (self.update + 1) / 100)
        left: float = (updates - self.update) / (self.args.decay * updates)
        return warm * max(0.01, min(1.0, left))

    def sigmas(self, n: int) -> Tensor:
        """Noise levels [n] to learn at."""
        return draw_sigmas(n, self.generator)

    def flow_batch(self, captions: Captions) -> list[Tensor]:
        """Arguments of the loss for fresh videos: a random part of their tokens, noised."""
        g, whole = self.generator, self.update >= self.args.subset_until * self.args.updates
        share = 1 if whole else self.args.subset
        n = self.args.batch * share
        pick = torch.randint(len(captions.table), (n,), generator=g)
        data = to_tokens(latents(captions.table[pick], g))
        order = torch.rand(n, TOKENS, generator=g)
        if not whole and self.update >= self.args.focus_from * self.args.updates:
            order -= 0.9 * near_paths(captions.table[pick])
        index = order.argsort(1)[:, : TOKENS // share]
        data = data.gather(1, index[..., None].expand(-1, -1, data.shape[2]))
        sigma = self.sigmas(n)
        s = sigma.view(-1, 1, 1)
        x = (1 - s) * data + s * torch.randn(data.shape, generator=g)
        return [x, index, data, sigma, *captions.blurred_text(pick, self.args.blur, g)]

    def step(self, batch: list[Tensor]) -> tuple[float, float]:
        """One update; returns the loss and the part of it at sigma = 1."""
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
        """Accuracy of `count` four-step videos with the averaged weights."""
        transformer = self.network.transformer
        own = {k: v.clone() for k, v in transformer.state_dict().items()}
        transformer.load_state_dict(self.ema)
        scores = judge(self.network, captions, torch.arange(count), FEW_STEPS, self.device)
        transformer.load_state_dict(own)
        return {k: round(v, 4) for k, v in scores.items()}

    def start_from(self, weights: Path) -> None:
        """Begins with saved weights; rates and averages begin anew."""
        state = {k: v.float() for k, v in load_file(weights, device=str(self.device)).items()}
        self.network.transformer.load_state_dict(state)
        self.ema = {k: v.clone() for k, v in state.items()}

    def save(self, out: Path) -> None:
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
        state = torch.load(out / "checkpoint.pt", map_location=self.device)
        self.network.transformer.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.update, self.seconds = state["update"], state["seconds"]

    def run(self, out: Path, batch: Callable[[], list[Tensor]], calibration: Captions) -> None:
        """Updates until the last; a row of the curve every 50, accuracy and a checkpoint less often."""
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
    """Accuracy of videos sampled for some captions, one seed each."""
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
    """Options that teacher and student share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--captions", type=Path, default=Path("build/movingshapes"), help="folder of token states"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=2700)
    parser.add_argument("--batch", type=int, default=16, help="whole videos of an update, or as many tokens")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--subset", type=int, default=4, help="one in how many tokens is seen at first")
    parser.add_argument(
        "--focus-from", type=float, default=0.6, help="share of the run after which it is near paths"
    )
    parser.add_argument("--subset-until", type=float, default=0.9, help="share of the run that sees a subset")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--blur", type=float, default=0.3, help="noise on captions' states, of their spread")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the run over which rates go down")
    parser.add_argument("--eval-every", type=int, default=300)
    parser.add_argument("--eval-count", type=int, default=64)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser


def prepare(args: argparse.Namespace) -> tuple[Captions, Captions]:
    """Makes the output folder; the captions to train on, and those to judge by."""
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
