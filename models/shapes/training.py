"""Training shared by teacher and students: optimisers, averaged weights, checkpoints, curves.

Training is seeded, and a checkpoint contains the complete state, so `--resume` continues the same run. A run
writes checkpoint.pt, ema.safetensors and curve.jsonl into its output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.shapes.contents import Contents, ContentsHead
from models.shapes.muon import Muon
from models.shapes.network import Network

ROW: Final = 20  # updates per row of the curve
LEVELS: Final = (0.0, 0.5, 0.8, 0.92, 0.999, 1.01)  # limits of the noise levels by which losses are reported


def velocity_loss(data: Tensor, target: Tensor, sigma: Tensor, scale: float) -> Tensor:
    """Computes the error [B] of the velocity that follows from predicted data, in units of pixels in [-1, 1].

    It is bounded for small sigma. `scale` is the scale of the latents.
    """
    error = F.mse_loss(data.float(), target, reduction="none").mean((1, 2)) / scale**2
    return error / sigma.clamp_min(0.25).square()


@dataclass(frozen=True)
class Batch:
    """Samples of one update.

    Attributes:
        x: Noisy tokens, [B, n, C*P].
        sigma: Noise levels, [B].
        text: Token states of the prompts, [B, L, D].
        bias: Key bias of the prompts, [B, L].
        target: Clean tokens, [B, n, C*P].
        index: Positions of the tokens, [B, n]; None if they are all of the videos' tokens.
        contents: What the tokens show, if that is to be learned, too.
    """

    x: Tensor
    sigma: Tensor
    text: Tensor
    bias: Tensor
    target: Tensor
    index: Tensor | None = None
    contents: Contents | None = None


class Trainer:
    """State of a training run: network, averaged weights, optimisers, random generator."""

    def __init__(
        self,
        args: argparse.Namespace,
        network: Network,
        trained: Iterable[str] | None = None,
        head: ContentsHead | None = None,
        head_weight: float = 0.0,
    ) -> None:
        """Creates the state.

        Args:
            args: Options of `add_arguments`.
            network: Network to train.
            trained: Names of the transformer's parameters to train; all by default.
            head: Head that is trained with the network and not used afterwards.
            head_weight: Factor on its loss.
        """
        self.args, self.device = args, torch.device(args.device)
        if args.compile:
            network.compile_blocks()
        self.network = network.to(self.device)
        chosen = None if trained is None else set(trained)
        self.parameters = {
            k: p for k, p in network.transformer.named_parameters() if chosen is None or k in chosen
        }
        for k, p in network.transformer.named_parameters():
            p.requires_grad_(k in self.parameters)
        self.ema = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.head, self.head_weight = head.to(self.device) if head else None, head_weight
        self.optimisers = self._optimisers()
        self.generator = torch.Generator(self.device).manual_seed(args.seed + 1)
        self.update, self.seconds = 0, 0.0
        self.scale = 1.0

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in self.parameters.items():
            hidden = name.startswith("blocks.") and p.ndim == 2 and "lora" not in name
            (matrices if hidden else rest).append(p)
        rest += self.head.parameters() if self.head else ()
        decay = 0.0 if not matrices else 0.01
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=self.args.lr, betas=(0.9, 0.98), weight_decay=decay)
        ]
        return optimisers + ([self._muon(matrices)] if matrices else [])

    def _muon(self, matrices: list[Tensor]) -> Muon:
        return Muon(matrices, lr=self.args.muon_lr, dtype=torch.bfloat16 if self.args.bf16 else torch.float32)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes the loss of each sample, [B], and that of the head, a scalar."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            data, hidden = self.network(batch.x, batch.sigma, batch.text, batch.bias, batch.index)
            if self.head is None or batch.contents is None:
                read = torch.zeros(())
            else:
                read = self.head(hidden, batch.contents)
        return velocity_loss(data, batch.target, batch.sigma, self.scale), read

    def lr_scale(self) -> float:
        """Returns the factor on the learning rates: a warm-up, a constant part and a linear decay."""
        updates: int = self.args.updates
        warm_up: float = min(1.0, (self.update + 1) / self.args.warm_up)
        decaying: float = self.args.decay * updates
        decay = (updates - self.update) / decaying if decaying else 1.0
        return warm_up * max(0.01, min(1.0, decay))

    def step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Runs one update. Returns the loss and the noise level of each sample, and the head's loss."""
        factor = self.lr_scale()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * group.setdefault("base_lr", group["lr"])
        losses, read = self.losses(batch)
        torch.autograd.backward(losses.mean() + self.head_weight * read)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(self.args.ema, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
        self.update += 1
        return losses.detach(), batch.sigma, read.detach()

    def averaged_weights(self) -> dict[str, Tensor]:
        """Returns the averaged weights of the trained parameters."""
        return {k: v.cpu().contiguous() for k, v in self.ema.items()}

    def save(self, out: Path) -> None:
        """Writes the checkpoint and the averaged weights."""
        state = {
            "model": {k: p.detach() for k, p in self.parameters.items()},
            "head": self.head.state_dict() if self.head else {},
            "ema": self.ema,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "update": self.update,
            "seconds": self.seconds,
            "args": {k: str(v) for k, v in vars(self.args).items()},
        }
        torch.save(state, out / "checkpoint.tmp")
        (out / "checkpoint.tmp").replace(out / "checkpoint.pt")
        save_file(self.averaged_weights(), out / "ema.tmp")
        (out / "ema.tmp").replace(out / "ema.safetensors")

    def load(self, out: Path) -> None:
        """Restores the state from the checkpoint."""
        state = torch.load(out / "checkpoint.pt", map_location=self.device)
        with torch.no_grad():
            for k, p in self.parameters.items():
                p.copy_(state["model"][k])
        if self.head:
            self.head.load_state_dict(state["head"])
        self.ema = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.update, self.seconds = state["update"], state["seconds"]

    def run(self, out: Path, batch: Callable[[], Batch]) -> None:
        """Runs the remaining updates. Writes a row of the curve every ROW updates, and checkpoints."""
        args, start = self.args, time.monotonic() - self.seconds
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        while self.update < args.updates:
            kept.append(self.step(batch()))
            last = self.update == args.updates
            if self.update % ROW and not last:
                continue
            self.seconds = time.monotonic() - start
            row: dict[str, Any] = {"update": self.update, "seconds": round(self.seconds, 1)}
            row |= summarise_losses(kept)
            kept = []
            if self.update % args.save_every == 0 or last:
                self.save(out)
            print(json.dumps(row), flush=True)
            with (out / "curve.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def summarise_losses(kept: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Returns the mean loss, the mean losses between the noise levels of LEVELS, and the head's."""
    losses, sigmas = (torch.cat([row[i] for row in kept]).cpu() for i in (0, 1))
    row = {"loss": round(float(losses.mean()), 5)}
    for low, high in pairwise(LEVELS):
        inside = (sigmas >= low) & (sigmas < high)
        if inside.any():
            row[f"loss_from_{low:g}"] = round(float(losses[inside].mean()), 5)
    read = float(torch.stack([row[2] for row in kept]).mean())
    return row | ({"loss_of_head": round(read, 5)} if read else {})


def start_from(network: Network, weights: Path, scale: float = 1.0) -> None:
    """Loads weights into a network, and multiplies its output by `scale`."""
    network.transformer.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    with torch.no_grad():
        network.transformer.proj_out.weight.mul_(scale)
        network.transformer.proj_out.bias.mul_(scale)


def prepare(args: argparse.Namespace) -> None:
    """Applies the options that all trainings share: threads, seed, device of new tensors, output folder.

    Call it after the files are read, whose tensors are on the CPU.
    """
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all trainings share."""
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--prompts", type=Path, default=Path("build/shapes/captions"), help="token states")
    parser.add_argument("--prompt-count", type=int, default=80_000, help="number of training captions")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--updates", type=int, default=3000, help="number of updates")
    parser.add_argument("--batch", type=int, default=48, help="videos per update")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3, help="learning rate of Muon")
    parser.add_argument("--warm-up", type=int, default=100, help="updates of warm-up")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the run in which rates decay")
    parser.add_argument("--blur", type=float, default=0.1, help="noise on token states, over their spread")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--save-every", type=int, default=100, help="updates between checkpoints")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="compute in float32")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
