"""Captions with the token states that condition the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.shapes.captions import Phrasing, caption, training_caption
from models.shapes.world import Scene, Split, draw_scenes, scene_table

TEXT_DIM: Final = 384
MAX_TOKENS: Final = 48  # longest caption in training; longer ones are cut
_CHUNK: Final = 20_000  # captions per file


@dataclass(frozen=True)
class Prompts:
    """Captions with their scenes and token states.

    Attributes:
        texts: Captions, n of them.
        table: Rows of `scene_table`, [n, COLUMNS].
        states: Token states of all captions, one after the other, float16 [total, TEXT_DIM].
        offsets: Caption i has the states offsets[i] to offsets[i + 1], int64 [n + 1].
    """

    texts: list[str]
    table: Tensor
    states: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns the states [B, L, TEXT_DIM] float32 and the key bias [B, L] of captions.

        L is `length`, or by default the length of the longest caption.
        """
        first = self.offsets[index]
        count = self.offsets[index + 1] - first
        at = torch.arange(length or int(count.max()), device=index.device)
        inside = at < count[:, None]  # [B, L]
        rows = (first[:, None] + at).clamp_max(len(self.states) - 1)
        states = self.states[rows].float() * inside[..., None]
        return states, torch.where(inside, 0.0, float("-inf"))

    def to(self, device: torch.device | str) -> Prompts:
        """Returns the prompts with their tensors on a device."""
        return Prompts(self.texts, self.table.to(device), self.states.to(device), self.offsets.to(device))


def blur_text(states: Tensor, bias: Tensor, blur: float, generator: torch.Generator) -> Tensor:
    """Adds normal noise of `blur` times the states' spread to token states [B, L, TEXT_DIM].

    The noise imitates the effect of unseen words, and of known words in unfamiliar contexts.
    """
    spread = states[bias == 0].std()
    return states + blur * spread * torch.randn(states.shape, generator=generator, device=states.device)


def drop_text(
    states: Tensor, bias: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replaces the text of a random share of the samples by `no_text`."""
    dropped = torch.rand(len(states), generator=generator, device=generator.device) < share
    none, none_bias = no_text(states, bias)
    return torch.where(dropped[:, None, None], none, states), torch.where(dropped[:, None], none_bias, bias)


def no_text(states: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the states and key bias of samples without a prompt: one token, whose state is zero.

    Args:
        states, bias: Those of any text, whose shapes the result has.
    """
    none = torch.full_like(bias, float("-inf"))
    none[:, 0] = 0
    return torch.zeros_like(states), none


def encode_prompts(scenes: Sequence[Scene], texts: list[str]) -> Prompts:
    """Encodes captions with MiniLM."""
    from services.embedder.encoders import MiniLMEncoder  # imported here because training needs no encoder

    encoder = MiniLMEncoder()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of about equal length
    parts: list[Tensor] = [torch.empty(0)] * len(texts)
    for begin in range(0, len(order), 256):
        some = order[begin : begin + 256]
        for i, encoded in zip(some, encoder.encode([texts[j] for j in some]), strict=True):
            parts[i] = torch.from_numpy(encoded.states).half()
    offsets = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0)
    return Prompts(texts, scene_table(list(scenes)), torch.cat(parts), offsets)


def draw_prompts(
    split: Split, count: int, seed: int, phrasing: Phrasing = "unseen", unseen_words: bool = False
) -> Prompts:
    """Draws prompts of a split that name every attribute, half of them with two objects, and encodes them."""
    scenes = draw_scenes(split, count, seed)
    rng = random.Random(seed)
    return encode_prompts(scenes, [caption(s, rng, phrasing, unseen_words) for s in scenes])


def load_training_prompts(folder: Path, count: int, seed: int) -> Prompts:
    """Reads training captions from `folder`; the files that are missing are computed and written there.

    The tensors are on the CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for part in range(-(-count // _CHUNK)):
        path = folder / f"train-{seed}-{part:02}.pt"
        if not path.exists():
            scenes = draw_scenes("train", _CHUNK, 1000 * seed + part)
            rng = random.Random(1000 * seed + part)
            prompts = encode_prompts(scenes, [training_caption(s, rng) for s in scenes])
            torch.save(prompts.__dict__, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        chunks.append(Prompts(**torch.load(path)))
    starts = torch.tensor([0, *(len(c.states) for c in chunks)]).cumsum(0)
    return Prompts(
        [t for c in chunks for t in c.texts],
        torch.cat([c.table for c in chunks]),
        torch.cat([c.states for c in chunks]),
        torch.cat([torch.zeros(1, dtype=torch.int64)]
                  + [c.offsets[1:] + s for c, s in zip(chunks, starts[:-1], strict=True)]),
    )  # fmt: skip
