"""Trains movingshapes: `python -m models.movingshapes.train --out build/movingshapes`.

Flow matching on videos rendered on the fly, conditioned on MiniLM token states that are computed once
per caption. The network predicts the clean data and is judged by its velocity, (x - data) / sigma: so it
need not carry the noise through its few channels (arXiv 2511.13720). Seeded; a checkpoint holds
everything, so `--resume` continues the same run. Writes checkpoint.pt, ema.safetensors and curve.jsonl
into the output directory.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.movingshapes import world
from models.movingshapes.muon import Muon
from models.movingshapes.readback import accuracy
from models.movingshapes.world import Scene, attribute_table, caption, held_out, render, scenes
from services.denoiser.codec import SpaceToDepthCodec
from services.denoiser.models.positions import position_channels, position_count
from services.denoiser.models.wan import WanConfig, WanTransformer, patchify, rope_table, unpatchify
from services.denoiser.sampler import sample

SIGMAS = (1.0, 0.9375, 0.8333333333333334, 0.625, 0.0)
POINT_WEIGHTS = (0.34, 0.22, 0.22, 0.22)  # how often each of the four levels is trained
CONTINUOUS = 0.15  # share of samples at a level of the shift-5 continuum instead
SHIFT = 5.0
POSITIONS = 4  # order of the position basis
PHRASINGS = 10  # per scene
CODEC = SpaceToDepthCodec(temporal=2, spatial=2)
LATENT_GRID = CODEC.latent_shape(world.FRAMES, world.HEIGHT, world.WIDTH)[1:]


@dataclass(frozen=True)
class Captions:
    """Captions with their token states: states float16 [n, L, 384], mask bool [n, L], scene index [n]."""

    scene: Tensor
    states: Tensor
    mask: Tensor

    def text(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Captions' states [B, L, 384] float32 and key bias [B, L]."""
        bias = torch.zeros(self.mask[index].shape).masked_fill(~self.mask[index], float("-inf"))
        return self.states[index].float(), bias


def model_config(dim: int = 128, layers: int = 5) -> WanConfig:
    return WanConfig(
        in_channels=CODEC.latent_channels + position_count(POSITIONS),
        out_channels=CODEC.latent_channels,
        heads=dim // 32,
        head_dim=32,
        ffn_dim=4 * dim,
        layers=layers,
        text_dim=384,
    )


def load_captions(cache: Path, items: list[Scene], phrasings: int, seed: int) -> Captions:
    """Captions of scenes with their states, from `cache` or computed and written there."""
    if cache.exists():
        saved = torch.load(cache)
        return Captions(saved["scene"], saved["states"], saved["mask"])
    from services.embedder.encoders import MiniLMEncoder  # only here: training machines need no encoder

    rng = random.Random(seed)
    pairs = [(i, caption(s, rng)) for i, s in enumerate(items) for _ in range(phrasings)]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))  # batches of equal length
    encoder = MiniLMEncoder()
    encoded = encoder.encode([pairs[i][1] for i in order])
    longest = max(len(e.tokens) for e in encoded)
    states = torch.zeros(len(pairs), longest, encoder.text_dim, dtype=torch.float16)
    mask = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for i, e in zip(order, encoded, strict=True):
        states[i, : len(e.tokens)] = torch.from_numpy(e.states)
        mask[i, : len(e.tokens)] = True
    result = Captions(torch.tensor([p[0] for p in pairs]), states, mask)
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result.__dict__, cache)
    return result


def initialise(model: WanTransformer) -> None:
    """Open gates, a strong voice for the text, and small branches otherwise."""
    depth = len(model.blocks)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        if name.endswith(("attn1.to_out.0.weight", "net.2.weight")):
            p.data.mul_(0.5 / math.sqrt(depth))
        elif "text_embedder" in name and p.ndim == 2:
            p.data.mul_(2.5)  # the encoder's states are small, and averaged over some twenty tokens
        elif name.endswith(("time_proj.weight", "proj_out.weight")):
            p.data.mul_(0.1)
        elif name.endswith("scale_shift_table"):
            torch.nn.init.zeros_(p)
            if p.shape[1] == 6:
                p.data[:, 2::3] = 1.0  # the two gates


def draw_sigmas(n: int, generator: torch.Generator) -> Tensor:
    """Noise levels [n]: mostly the schedule's own four, the rest from the shifted continuum."""
    weights = torch.tensor(POINT_WEIGHTS)
    points = torch.tensor(SIGMAS)[torch.multinomial(weights, n, replacement=True, generator=generator)]
    t = torch.rand(n, generator=generator)
    anywhere = SHIFT * t / (1 + (SHIFT - 1) * t)
    return torch.where(torch.rand(n, generator=generator) < CONTINUOUS, anywhere, points)


class Trainer:
    """The state of one run, and its update."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(args.seed)
        self.config = model_config(args.dim, args.layers)
        self.model = WanTransformer(self.config)
        initialise(self.model)
        self.model.to(self.device)
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimisers = self._optimisers()
        self.generator = torch.Generator().manual_seed(args.seed + 1)
        self.update, self.seconds = 0, 0.0
        grid = (LATENT_GRID[0], LATENT_GRID[1] // 2, LATENT_GRID[2] // 2)
        self.grid = grid
        self.rope = tuple(t.to(self.device) for t in rope_table(self.config, grid))
        self.positions = position_channels(POSITIONS, LATENT_GRID).to(self.device)
        self.step_fn: Any = torch.compile(self._loss, dynamic=False) if args.compile else self._loss

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in self.model.named_parameters():
            hidden = name.startswith("blocks.") and p.ndim == 2
            (matrices if hidden else rest).append(p)
        adam = {"lr": self.args.lr, "betas": (0.9, 0.98), "weight_decay": 0.01}
        if self.args.optimiser == "adamw":
            return [torch.optim.AdamW(matrices + rest, **adam)]
        return [torch.optim.AdamW(rest, **adam), Muon(matrices, lr=self.args.muon_lr)]

    def predict(self, x: Tensor, sigma: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """Clean data behind latents x [B, C, T, H, W] at sigma [B], in tokens [B, N, C*P]."""
        full = torch.cat((x, self.positions.expand(x.shape[0], -1, -1, -1, -1)), dim=1)
        tokens = patchify(full, self.config.patch_size)
        out: Tensor = self.model(tokens, *self.rope, self.model.encode_text(text), bias, 1000 * sigma)
        return out

    def _loss(self, x: Tensor, target: Tensor, sigma: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        error = F.mse_loss(self.predict(x, sigma, text, bias), target, reduction="none").mean((1, 2))
        # (x - data) / sigma is the velocity: this is the error of v, bounded where sigma is small.
        return error / sigma.clamp_min(0.25).square()

    def lr_scale(self) -> float:
        """Warm-up, a flat stretch, and a linear way down over the last 40 %."""
        updates: int = self.args.updates
        warm = min(1.0, (self.update + 1) / 100)
        left = (updates - self.update) / (0.4 * updates)
        return warm * max(0.01, min(1.0, left))

    def train_step(self, captions: Captions, table: Tensor) -> tuple[float, float]:
        """One update; returns loss and the part of it at sigma = 1."""
        g, b = self.generator, self.args.batch
        pick = torch.randint(len(captions.scene), (b,), generator=g)
        data = torch.vmap(CODEC.encode)(render(table[captions.scene[pick]], g))
        noise = torch.randn(data.shape, generator=g)
        sigma = draw_sigmas(b, g)
        s = sigma.view(-1, 1, 1, 1, 1)
        x = (1 - s) * data + s * noise
        text, bias = captions.text(pick)
        target = patchify(data, self.config.patch_size)
        batch = [t.to(self.device) for t in (x, target, sigma, text, bias)]
        scale = self.lr_scale()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = scale * group.setdefault("base_lr", group["lr"])
        losses: Tensor = self.step_fn(*batch)
        torch.autograd.backward(losses.mean())
        losses = losses.detach().cpu()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            for k, v in self.model.state_dict().items():
                self.ema[k].lerp_(v, 1 - decay)
        self.update += 1
        top = losses[sigma == 1]
        return float(losses.mean()), float(top.mean()) if len(top) else float("nan")

    @torch.no_grad()
    def evaluate(self, captions: Captions, items: list[Scene], count: int) -> dict[str, float]:
        """Accuracy of `count` four-step samples with the averaged weights."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        g = torch.Generator().manual_seed(7)
        pick = torch.randperm(len(captions.scene), generator=g)[:count]
        videos = []
        for part in torch.split(pick, 20):
            text, bias = (t.to(self.device) for t in captions.text(part))
            noise = torch.randn(len(part), CODEC.latent_channels, *LATENT_GRID, generator=g).to(self.device)

            def velocity(x: Tensor, sigma: float, text: Tensor = text, bias: Tensor = bias) -> Tensor:
                data = self.predict(x, torch.full((len(x),), sigma, device=self.device), text, bias)
                return (x - unpatchify(data, self.grid, self.config.patch_size)) / sigma

            *_, last = sample(velocity, noise, SIGMAS)
            videos += [CODEC.decode(x) for x in last.latents.cpu()]
        self.model.load_state_dict(own)
        return accuracy(torch.stack(videos), [items[i] for i in captions.scene[pick].tolist()])

    def save(self, out: Path) -> None:
        state = {
            "model": self.model.state_dict(),
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
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.update, self.seconds = state["update"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--eval-count", type=int, default=60)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    items = scenes()
    table = attribute_table(items)
    everything = load_captions(args.out.parent / f"captions-{args.seed}.pt", items, PHRASINGS, args.seed)
    out_of_training = torch.tensor([held_out(s) for s in items])[everything.scene]
    split = [Captions(everything.scene[m], everything.states[m], everything.mask[m])
             for m in (~out_of_training, out_of_training)]  # fmt: skip
    trainer = Trainer(args)
    if args.resume:
        trainer.load(args.out)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"{parameters:,} parameters, {len(split[0].scene)} captions", flush=True)
    start, losses = time.monotonic() - trainer.seconds, []
    while trainer.update < args.updates:
        losses.append(trainer.train_step(split[0], table))
        if trainer.update % 50 == 0 or trainer.update == args.updates:
            trainer.seconds = time.monotonic() - start
            mean = torch.tensor(losses).nanmean(0).tolist()
            losses = []
            row: dict[str, Any] = {"update": trainer.update, "seconds": round(trainer.seconds, 1)}
            row |= {"loss": round(mean[0], 5), "loss_at_1": round(mean[1], 5)}
            if trainer.update % args.eval_every == 0 or trainer.update == args.updates:
                row["train"] = trainer.evaluate(split[0], items, args.eval_count)
                row["held_out"] = trainer.evaluate(split[1], items, args.eval_count)
                trainer.save(args.out)
            print(json.dumps(row), flush=True)
            with (args.out / "curve.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
