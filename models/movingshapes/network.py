"""Network of movingshapes in the form used for training; it maps batches of noisy tokens to clean tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.movingshapes.data import CODEC, GRID, LATENT_GRID, PATCH, TEXT_DIM
from services.denoiser.network.positions import position_channels, position_count
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import WanConfig, WanTransformer, patchify, rope_table, unpatchify

POSITIONS = 4  # order of the position basis
FEW_STEPS = (
    1.0,
    0.9375,
    0.8333333333333334,
    0.625,
    0.0,
)  # the published 4-step schedule of Wan2.1 (LightX2V)
SHIFT = 5.0


def model_config(dim: int = 128, layers: int = 6) -> WanConfig:
    """Returns the configuration of a network with hidden size `dim`, a multiple of 32."""
    return WanConfig(
        in_channels=CODEC.latent_channels + position_count(POSITIONS),
        out_channels=CODEC.latent_channels,
        heads=dim // 32,
        head_dim=32,
        ffn_dim=4 * dim,
        layers=layers,
        text_dim=TEXT_DIM,
    )


def initialise(model: WanTransformer) -> None:
    """Initialises the weights: open gates, a large scale for the text, small residual branches."""
    depth = len(model.blocks)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        if name.endswith(("attn1.to_out.0.weight", "net.2.weight")):
            p.data.mul_(0.5 / math.sqrt(depth))
        elif "text_embedder" in name and p.ndim == 2:
            p.data.mul_(2.5)  # the encoder's states are small, and are averaged over about twenty tokens
        elif name.endswith(("time_proj.weight", "proj_out.weight")):
            p.data.mul_(0.1)
        elif name.endswith("scale_shift_table"):
            torch.nn.init.zeros_(p)
            if p.shape[1] == 6:
                p.data[:, 2::3] = 1.0  # the two gates


def to_tokens(latents: Tensor) -> Tensor:
    """Converts latents [B, C, T, H, W] to tokens [B, N, C*P]."""
    return patchify(latents, PATCH)


class Network(torch.nn.Module):
    """Transformer with its fixed inputs: rotary angles and position channels of its only video size."""

    cos: Tensor
    sin: Tensor
    positions: Tensor

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        config = model_config(dim, layers)
        self.transformer = WanTransformer(config)
        initialise(self.transformer)
        cos, sin = rope_table(config, GRID)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        positions = to_tokens(position_channels(POSITIONS, LATENT_GRID)[None])[0]
        self.register_buffer("positions", positions, persistent=False)  # [N, F*P]

    def forward(self, x: Tensor, index: Tensor, sigma: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """Predicts the clean data of a subset of the tokens of noisy latents.

        Args:
            x: Noisy tokens, [B, n, C*P].
            index: Positions of these tokens, [B, n].
            sigma: Noise levels, [B].
            text: Token states of the prompts, [B, L, D].
            bias: Key bias of the prompts, [B, L].

        Returns:
            Clean tokens, [B, n, C*P].
        """
        tokens = torch.cat((x, self.positions[index]), dim=-1)
        kv = self.transformer.encode_text(text)
        out: Tensor = self.transformer(tokens, self.cos[index], self.sin[index], kv, bias, 1000 * sigma)
        return out

    def trajectory(
        self, noise: Tensor, text: Tensor, bias: Tensor, sigmas: Sequence[float] = FEW_STEPS
    ) -> Iterator[Tensor]:
        """Yields the latents after every step from noise [B, C, T, H, W], without gradients.

        Args:
            noise: Start latents, [B, C, T, H, W].
            text: Token states of the prompts, [B, L, D].
            bias: Key bias of the prompts, [B, L].
            sigmas: Noise levels of the schedule.
        """
        with torch.no_grad():
            kv = self.transformer.encode_text(text)
        positions = self.positions.expand(len(noise), -1, -1)

        @torch.no_grad()  # needed here, because the steps run after this function has returned
        def velocity(x: Tensor, sigma: float) -> Tensor:
            tokens = torch.cat((to_tokens(x), positions), dim=-1)
            timestep = torch.full((len(x),), 1000 * sigma, device=x.device)
            data = self.transformer(tokens, self.cos, self.sin, kv, bias, timestep)
            return (x - unpatchify(data, GRID, PATCH)) / sigma

        return sample(velocity, noise, sigmas)


def noise(n: int, generator: torch.Generator) -> Tensor:
    """Draws latents of pure noise, [n, C, T, H, W]."""
    return torch.randn(n, CODEC.latent_channels, *LATENT_GRID, generator=generator)
