"""What training reads: captions with their token states, and videos rendered on the fly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.movingshapes import world
from models.movingshapes.captions import Phrasing, caption
from models.movingshapes.world import (
    Scene,
    Split,
    nominal_paths,
    pair_scene,
    render,
    scene_table,
    single_scenes,
)
from services.denoiser.codec import SpaceToDepthCodec

CODEC = SpaceToDepthCodec(temporal=4, spatial=2)
LATENT_GRID = CODEC.latent_shape(world.FRAMES, world.HEIGHT, world.WIDTH)[1:]
PATCH = (1, 2, 2)
GRID = (LATENT_GRID[0], LATENT_GRID[1] // 2, LATENT_GRID[2] // 2)  # of tokens: 4 x 12 x 12
TEXT_DIM = 384
NEAR = 11.0  # pixels; the largest object reaches 10 from its centroid


@dataclass(frozen=True)
class Captions:
    """Prompts, and what they ask for.

    table: rows of `scene_table` [n, 9]; states: float16 [n, L, 384]; mask: bool [n, L].
    """

    texts: list[str]
    table: Tensor
    states: Tensor
    mask: Tensor

    def text(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Captions' states [B, L, 384] float32 and key bias [B, L]."""
        bias = torch.zeros(self.mask[index].shape).masked_fill(~self.mask[index], float("-inf"))
        return self.states[index].float(), bias

    def blurred_text(self, index: Tensor, blur: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same with normal noise on the states, `blur` of their own spread: what words never trained,
        or trained words among others, do to them."""
        states, bias = self.text(index)
        spread = states[self.mask[index]].std()
        return states + blur * spread * torch.randn(states.shape, generator=generator), bias


def draw_scenes(split: Split, count: int, seed: int, pairs: float = 0.5) -> list[Scene]:
    """Scenes of a split, a share `pairs` of them with two objects; those with one come in whole rounds."""
    rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    singles = single_scenes(split)
    two = [pair_scene(split, draw) for _ in range(round(pairs * count))]
    one: list[Scene] = []
    while len(one) < count - len(two):
        one += rng.sample(singles, len(singles))
    chosen = one[: count - len(two)] + two
    rng.shuffle(chosen)
    return chosen


def write_captions(
    scenes: list[Scene], seed: int, phrasing: Phrasing, unseen_words: bool = False
) -> list[str]:
    """One caption for each scene."""
    rng = random.Random(seed)
    return [caption(s, rng, phrasing, unseen_words) for s in scenes]


def encode_captions(scenes: list[Scene], texts: list[str]) -> Captions:
    """Captions with MiniLM's token states."""
    from services.embedder.encoders import MiniLMEncoder  # only here: training machines need no encoder

    encoder = MiniLMEncoder()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of about equal length
    encoded = encoder.encode([texts[i] for i in order])
    longest = max(len(e.tokens) for e in encoded)
    states = torch.zeros(len(texts), longest, encoder.text_dim, dtype=torch.float16)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for i, e in zip(order, encoded, strict=True):
        states[i, : len(e.tokens)] = torch.from_numpy(e.states)
        mask[i, : len(e.tokens)] = True
    return Captions(texts, scene_table(scenes), states, mask)


def load_captions(cache: Path, split: Split, count: int, seed: int, phrasing: Phrasing = "seen") -> Captions:
    """Captions of a split's scenes from `cache`, or computed and written there."""
    if cache.exists():
        return Captions(**torch.load(cache))
    scenes = draw_scenes(split, count, seed)
    result = encode_captions(scenes, write_captions(scenes, seed, phrasing))
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result.__dict__, cache)
    return result


def latents(table: Tensor, generator: torch.Generator) -> Tensor:
    """Latents [B, C, T, H, W] of freshly rendered videos of scenes."""
    return torch.vmap(CODEC.encode)(render(table, generator))


def near_paths(table: Tensor) -> Tensor:
    """Which tokens lie near an object's nominal path, bool [B, N].

    Depends on how many objects there are and how they move, but not on their shapes, sizes or colours: a
    choice of tokens by it tells the network nothing about those.
    """
    frames, rows, columns = GRID
    cell = world.HEIGHT / rows  # pixels
    path = nominal_paths(table).reshape(len(table), world.MAX_OBJECTS, frames, -1, 2)  # [B, 2, T, f, 2]
    x, y = path.unbind(-1)
    dx = (torch.arange(columns) + 0.5) * cell - x[..., None]  # [B, 2, T, f, W]
    dy = (torch.arange(rows) + 0.5) * cell - y[..., None]
    near = dx.square()[..., None, :] + dy.square()[..., :, None] <= NEAR**2  # [B, 2, T, f, H, W]
    there = (table[:, 1::4] >= 0)[:, :, None, None, None, None]
    found: Tensor = (near & there).any(3).any(1).flatten(1)
    return found
