"""Corrupts videos in known ways, to validate the measures: ghosts of other objects, blur, wrong texture."""

from __future__ import annotations

import random
from typing import Final, Literal

import torch
import torch.nn.functional as F
from chorus_cli.explain.video import decode_mp4
from torch import Tensor

from models.shapes.layout import draw_layout
from models.shapes.render import centres, coverage, render_background, unit_rgb
from models.shapes.world import COLOURS, SIDE, TEXTURES, draw_scene, objects_of, scene_table
from models.shapes.yardstick.reader import Reading
from services.denoiser.codec.mp4 import encode_mp4, to_frames

GHOSTS: Final = ("moving", "fixed", "streak")
MIN_GHOST_AREA: Final = 20  # pixels of a frame that differ visibly, in at least half of the frames
MIN_GHOST_CONTRAST: Final = 0.1  # largest difference of a channel, over the full range
UPSCALE: Final = 6  # number of times that the denoiser repeats each pixel in both directions
_TRIES: Final = 50
_BLOCK: Final = (14, 28)  # pixels, sides of the patch with a wrong texture

Ghost = Literal["moving", "fixed", "streak"]


def paste_ghost(
    video: Tensor, kind: Ghost, opacity: float, rng: random.Random
) -> tuple[Tensor, Tensor] | None:
    """Pastes an object of another scene with low opacity at that scene's place.

    Args:
        video: Video [3, T, H, W] in [-1, 1].
        kind: `moving` along the object's path, `fixed` at a place of its path, or the `streak` of its path.
        opacity: Opacity of the ghost, 0..1.
        rng: Random generator.

    Returns:
        The video, and the same with an opaque object instead of the ghost, as the donor may have looked; None
        if no ghost drawn was visible, that is MIN_GHOST_AREA pixels with MIN_GHOST_CONTRAST in half of the
        frames.
    """
    for _ in range(_TRIES):
        table = scene_table([draw_scene("train", rng, 1)])
        layout = draw_layout(table, torch.Generator().manual_seed(rng.getrandbits(32)))
        shape, colour = objects_of(table)[0, 0, :2]
        inside = coverage(shape[None], layout.radius[:, 0], centres(layout)[:, 0])[0]  # [T, H, W]
        if kind == "fixed":
            inside = inside[rng.randrange(len(inside))].expand_as(inside)
        elif kind == "streak":
            inside = inside.amax(0).expand_as(inside)
        solid = torch.lerp(video, unit_rgb(COLOURS)[colour].view(3, 1, 1, 1), inside)
        ghosted = torch.lerp(video, solid, opacity)
        visible = (ghosted - video).abs().amax(0) / 2 >= MIN_GHOST_CONTRAST
        if (visible.sum((1, 2)) >= MIN_GHOST_AREA).float().mean() >= 0.5:
            return ghosted, solid
    return None


def blur(video: Tensor, sigma: float) -> Tensor:
    """Blurs every frame of [3, T, H, W] with a Gaussian of standard deviation `sigma` pixels."""
    reach = max(1, round(4 * sigma))
    weights = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    weights = weights / weights.sum()
    frames = F.pad(video.transpose(0, 1), (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(frames, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return blurred.view(video.shape[1], 3, SIDE, SIDE).transpose(0, 1)


def pass_codec(video: Tensor) -> Tensor:
    """Encodes a video as the denoiser does, decodes it, and averages the repeated pixels."""
    data = encode_mp4(to_frames(video, UPSCALE), 8.0)
    frames = torch.from_numpy(decode_mp4(data)).permute(3, 0, 1, 2).float()  # [3, T, H, W]
    return F.avg_pool2d(frames, UPSCALE) / 127.5 - 1


def add_noise(video: Tensor, spread: float, rng: random.Random) -> Tensor:
    """Adds normal noise to a video."""
    return video + spread * torch.randn(
        video.shape, generator=torch.Generator().manual_seed(rng.getrandbits(32))
    )


def shift_colours(reading: Reading, contrast: float, rng: random.Random) -> Tensor:
    """Moves the background's colour and the colour of each object by up to `contrast` of the range."""
    video = reading.video
    offset = [(2 * rng.random() - 1) * 2 * contrast for _ in range(3 * (1 + len(reading.objects)))]
    offsets = torch.tensor(offset).view(-1, 3, 1, 1, 1)
    moved = video + offsets[0]
    for share, o in zip(reading.objects.shares(), offsets[1:], strict=True):
        moved = torch.lerp(moved, video + o, share)
    return moved.clamp(-1, 1)


def replace_texture(reading: Reading, rng: random.Random) -> Tensor:
    """Shows another texture of the same tones inside a rectangle of the background."""
    colour, texture = reading.background.colour, reading.background.texture
    other = rng.choice([t for t in range(len(TEXTURES)) if t != texture])
    table = torch.full((1, 12), -1)
    table[0, :2] = torch.tensor([colour, other])
    picture = render_background(
        table, draw_layout(table, torch.Generator().manual_seed(rng.getrandbits(32)))
    )[0]
    height, width = (rng.randint(*_BLOCK) for _ in range(2))
    top, left = rng.randrange(SIDE - height), rng.randrange(SIDE - width)
    patch = torch.zeros(SIDE, SIDE)
    patch[top : top + height, left : left + width] = 1
    covered = reading.objects.shares().amax(0) if len(reading.objects) else torch.zeros_like(reading.video[0])
    return torch.lerp(reading.video, picture[:, None], patch * (1 - covered))
