"""Trains the text refiner: `python -m models.shapes.refine`.

MiniLM's token states say little about which of two objects a colour or a motion belongs to, and a network
needs hundreds of thousands of videos to learn it. The refiner learns it from captions alone: a reader that
has no more than one attention to the refined states, as a block of the model has, must name every attribute
of the scene. The reader is not used afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.shapes.network import DIM, HEADS, REFINER, new_refiner
from models.shapes.prompts import Prompts, blur_text, draw_prompts, load_training_prompts
from models.shapes.world import COLOURS, MAX_OBJECTS, MOTIONS, PLACES, SHAPES, SIZES, TEXTURES, objects_of

# Values of each attribute of an object, and one more for an object or a place that is missing.
_OBJECT_VALUES: Final = tuple(len(table) + 1 for table in (SHAPES, COLOURS, MOTIONS, SIZES, PLACES))
_VALUES: Final = (len(COLOURS), len(TEXTURES), *_OBJECT_VALUES * MAX_OBJECTS)
_MAX_TOKENS: Final = 40  # longer captions are cut
_CHECKED: Final = 1000  # captions per check
_ROW: Final = 200  # updates per row of the curve


class Reader(nn.Module):
    """Reads the attributes of a scene by one attention to the token states, with a query per attribute."""

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        first, second = nn.Linear(text_dim, DIM), nn.Linear(DIM, DIM)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=2.5 * layer.in_features**-0.5)
        self.embedder = nn.Sequential(first, nn.GELU(approximate="tanh"), second)
        self.queries = nn.Parameter(0.3 * torch.randn(len(_VALUES), DIM))
        self.to_k, self.to_v = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.heads = nn.ModuleList(nn.Linear(DIM, n) for n in _VALUES)

    def forward(self, states: Tensor, bias: Tensor) -> list[Tensor]:
        """Returns the logits of each attribute, [B, values], for states [B, L, D] and key bias [B, L]."""
        text = self.embedder(states)

        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:-1], HEADS, -1).transpose(-3, -2)

        queries = split(self.queries).expand(len(text), -1, -1, -1)
        found = F.scaled_dot_product_attention(
            queries, split(self.to_k(text)), split(self.to_v(text)), bias[:, None, None].to(text.dtype)
        )
        found = found.transpose(1, 2).flatten(2)  # [B, attributes, D]
        return [head(found[:, i]) for i, head in enumerate(self.heads)]


def labels(table: Tensor) -> Tensor:
    """Returns the values of the attributes that the reader names, [B, attributes], from a scene table."""
    objects = objects_of(table)
    missing = torch.tensor(_OBJECT_VALUES, device=table.device) - 1
    return torch.cat([table[:, :2], torch.where(objects < 0, missing, objects).flatten(1)], 1)


class Refinement(nn.Module):
    """Refiner and reader."""

    def __init__(self) -> None:
        super().__init__()
        self.refiner = new_refiner()
        self.reader = Reader(self.refiner.proj_out.out_features)

    def forward(
        self, states: Tensor, bias: Tensor, noise: Tensor | None = None, read: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the logits of each attribute, [B, values].

        Args:
            noise: Added to the refined states, in units of their spread, [B, L, D].
            read: Key bias of the tokens that the reader sees, [B, L]; all by default.
        """
        refined = self.refiner(states, bias < 0)
        if noise is not None:
            refined = refined + refined.detach().std() * noise
        logits: list[Tensor] = self.reader(refined, bias if read is None else read)
        return logits


def hide_tokens(bias: Tensor, generator: torch.Generator) -> Tensor:
    """Hides tokens from the reader, another share of each caption's, so that every token's state must say
    what the whole caption asks for. Returns the key bias, [B, L]; at least two tokens remain.

    Without it each attribute is found in one token. A network has few heads, and after 800,000 videos it did
    not read words that the encoder hardly tells apart, like left and right.
    """
    kept = 0.1 + 0.9 * torch.rand(len(bias), 1, generator=generator) ** 2
    chance = torch.rand(bias.shape, generator=generator) + 9 * (bias < 0)
    first = chance.argsort(1).argsort(1) < 2
    return torch.where((chance < kept) | first, bias, -1e4)


def loss(logits: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Returns the sum of all attributes' cross entropies, in nats."""
    parts = [F.cross_entropy(x.float(), y) for x, y in zip(logits, wanted.unbind(1), strict=True)]
    return torch.stack(parts).sum()


def shares_read(model: nn.Module, prompts: Prompts) -> dict[str, float]:
    """Returns the share of prompts of which all attributes are read, with one object and with two, and the
    lowest share of an attribute."""
    wanted = labels(prompts.table)
    right: list[Tensor] = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(prompts)), 250):
            logits = model(*prompts.text(rows, _MAX_TOKENS))
            right.append(torch.stack([x.argmax(1) for x in logits], 1) == wanted[rows])
    found, two = torch.cat(right).float(), objects_of(prompts.table)[:, 1, 0] >= 0
    shares = {"one object": found[~two].amin(1).mean(), "two objects": found[two].amin(1).mean(),
              "lowest attribute": found[two].mean(0).amin()}  # fmt: skip
    return {name: round(float(share), 3) for name, share in shares.items()}


def train(args: argparse.Namespace, prompts: Prompts, checks: dict[str, Prompts]) -> Refinement:
    """Trains refiner and reader, and prints what is read of the prompts to check."""
    torch.manual_seed(args.seed)
    model, g = Refinement(), torch.Generator().manual_seed(args.seed + 1)
    optimiser = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, args.updates, pct_start=0.05)
    compiled = torch.compile(model) if args.compile else model
    wanted, total, start = labels(prompts.table), 0.0, time.monotonic()
    # Captions are so short that fused attention takes longer than plain products.
    with sdpa_kernel(SDPBackend.MATH):
        for update in range(1, args.updates + 1):
            pick = torch.randint(len(prompts), (args.batch,), generator=g)
            text, bias = prompts.text(pick, _MAX_TOKENS)
            blur = args.blur * float(torch.rand((), generator=g))
            with torch.autocast("cpu", torch.bfloat16):
                noise = args.noise * torch.randn(text.shape, generator=g)
                logits = compiled(blur_text(text, bias, blur, g), bias, noise, hide_tokens(bias, g))
            value = loss(logits, wanted[pick])
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            rate.step()
            total += float(value.detach())
            if update % _ROW == 0 or update == args.updates:
                row: dict[str, Any] = {
                    "update": update,
                    "seconds": round(time.monotonic() - start),
                    "loss": total / _ROW,
                }
                row |= {name: shares_read(model, some) for name, some in checks.items()}
                print(json.dumps(row), flush=True)
                total = 0.0
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=Path("build/shapes/captions"), help="token states")
    parser.add_argument("--prompt-count", type=int, default=160_000, help="number of training captions")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--updates", type=int, default=2400, help="number of updates")
    parser.add_argument("--batch", type=int, default=128, help="captions per update")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--blur", type=float, default=0.8, help="largest noise on token states, over their "
                        "spread")  # fmt: skip
    parser.add_argument("--noise", type=float, default=0.7, help="noise on refined states, over their spread")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    args = parser.parse_args()
    prompts = load_training_prompts(args.prompts, args.prompt_count, args.seed)
    checks = {
        "new phrasings": draw_prompts("calibration", _CHECKED, 5),
        "new words": draw_prompts("calibration", _CHECKED, 6, unseen_words=True),
    }
    torch.set_num_threads(args.threads)
    refiner = train(args, prompts, checks).refiner
    REFINER.parent.mkdir(exist_ok=True)
    state = {k: v.to(torch.float16).contiguous() for k, v in refiner.state_dict().items()}
    save_file(state, REFINER, metadata={"format": "pt"})
    print(f"{REFINER.name}: {REFINER.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
