"""Training data: captions with their token states, and videos rendered on the fly."""

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
GRID = (LATENT_GRID[0], LATENT_GRID[1] // 2, LATENT_GRID[2] // 2)  # in tokens: 4 x 12 x 12
TEXT_DIM = 384
NEAR_RADIUS = 11.0  # pixels; the largest object reaches 10 from its centroid


@dataclass(frozen=True)
class Captions:
    """Prompts with their scenes and token states.

    Attributes:
        texts: Prompts.
        table: Rows of `scene_table`, [n, 9].
        states: Token states, float16 [n, L, 384].
        mask: True for tokens, False for padding, bool [n, L].
    """

    texts: list[str]
    table: Tensor
    states: Tensor
    mask: Tensor

    def text(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states [B, L, 384] float32 and the key bias [B, L] of captions."""
        bias = torch.zeros(self.mask[index].shape).masked_fill(~self.mask[index], float("-inf"))
        return self.states[index].float(), bias

    def blurred_text(self, index: Tensor, blur: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns states and key bias, with normal noise of `blur` times the states' spread added to the
        states.

        The noise imitates the effect of unseen words, and of known words in unfamiliar contexts.
        """
        states, bias = self.text(index)
        spread = states[self.mask[index]].std()
        return states + blur * spread * torch.randn(states.shape, generator=generator), bias


def draw_scenes(split: Split, count: int, seed: int, pairs: float = 0.5) -> list[Scene]:
    """Draws scenes of a split, a share `pairs` of them with two objects.

    Scenes of one object are drawn without replacement until all have been used.
    """
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
    """Draws one caption for each scene."""
    rng = random.Random(seed)
    return [caption(s, rng, phrasing, unseen_words) for s in scenes]


def encode_captions(scenes: list[Scene], texts: list[str]) -> Captions:
    """Encodes captions with MiniLM."""
    from services.embedder.encoders import MiniLMEncoder  # imported here because training needs no encoder

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
    """Reads the captions of a split from `cache`, or computes them and writes them there."""
    if cache.exists():
        return Captions(**torch.load(cache))
    scenes = draw_scenes(split, count, seed)
    result = encode_captions(scenes, write_captions(scenes, seed, phrasing))
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result.__dict__, cache)
    return result


def latents(table: Tensor, generator: torch.Generator) -> Tensor:
    """Renders videos of scenes and encodes them to latents [B, C, T, H, W]."""
    return torch.vmap(CODEC.encode)(render(table, generator))


def near_paths(table: Tensor) -> Tensor:
    """Selects the tokens near an object's nominal path, bool [B, N].

    Depends on the number and motions of the objects, but not on their shapes, sizes or colours, so that the
    selection of tokens reveals none of these to the network.
    """
    frames, rows, columns = GRID
    cell = world.HEIGHT / rows  # pixels
    path = nominal_paths(table).reshape(len(table), world.MAX_OBJECTS, frames, -1, 2)  # [B, 2, T, f, 2]
    x, y = path.unbind(-1)
    dx = (torch.arange(columns) + 0.5) * cell - x[..., None]  # [B, 2, T, f, W]
    dy = (torch.arange(rows) + 0.5) * cell - y[..., None]
    near = dx.square()[..., None, :] + dy.square()[..., :, None] <= NEAR_RADIUS**2  # [B, 2, T, f, H, W]
    exists = (table[:, 1::4] >= 0)[:, :, None, None, None, None]
    selected: Tensor = (near & exists).any(3).any(1).flatten(1)
    return selected
