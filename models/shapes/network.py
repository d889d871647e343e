"""Network of the model in the form used for training: it maps batches of noisy tokens to clean tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.shapes.prompts import TEXT_DIM, no_text
from models.shapes.world import FRAMES, SIDE
from services.denoiser.codec import SpaceToDepthCodec
from services.denoiser.network.positions import position_channels, position_count
from services.denoiser.network.refiner import TextRefiner
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import (
    Attention,
    CrossAttention,
    TextKV,
    WanConfig,
    WanTransformer,
    patchify,
    rope_table,
    unpatchify,
)

# Pixels are in [-1, 1]. At this scale the place of an object and the phase of a texture rise above the noise
# between the first and the third level of the schedule.
SCALE: Final = 0.4
CODEC: Final = SpaceToDepthCodec(temporal=4, spatial=2, scale=SCALE)
PATCH: Final = (1, 2, 2)
POSITIONS: Final = 4  # order of the position basis
DIM: Final = 192
HEADS: Final = 4
LAYERS: Final = 7
# The published 4-step schedule of Wan2.1 (LightX2V).
FEW_STEPS: Final = (1.0, 0.9375, 0.8333333333333334, 0.625, 0.0)
SHIFT: Final = 5.0
REFINER: Final = Path(__file__).parent / "weights" / "refiner.safetensors"
_SHORT: Final = 512  # number of tokens up to which plain products train faster than fused attention


def model_config(dim: int = DIM, heads: int = HEADS, layers: int = LAYERS) -> WanConfig:
    """Returns the configuration of a network with hidden size `dim`."""
    return WanConfig(
        in_channels=CODEC.latent_channels + position_count(POSITIONS),
        out_channels=CODEC.latent_channels,
        heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        layers=layers,
        text_dim=TEXT_DIM,
    )


def new_refiner() -> TextRefiner:
    """Returns a text refiner with random weights."""
    return TextRefiner(TEXT_DIM, dim=256, heads=4, layers=2)


def load_refiner() -> TextRefiner:
    """Returns the trained text refiner, without gradients."""
    refiner = new_refiner()
    refiner.load_state_dict({k: v.float() for k, v in load_file(REFINER).items()})
    return refiner.eval().requires_grad_(False)


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


def latent_grid(side: int = SIDE) -> tuple[int, int, int]:
    """Returns (T, H, W) of the latents of a video of `side` x `side` pixels."""
    return CODEC.latent_shape(FRAMES, side, side)[1:]


def noise(n: int, generator: torch.Generator, side: int = SIDE) -> Tensor:
    """Draws latents of pure noise, [n, C, T, H, W]."""
    shape = (n, CODEC.latent_channels, *latent_grid(side))
    return torch.randn(shape, generator=generator, device=generator.device)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    logits = logits if bias is None else logits + bias
    return torch.softmax(logits.float(), -1).to(v.dtype) @ v


def subdivide(start: float, end: float, count: int) -> tuple[float, ...]:
    """Divides a segment of the schedule into `count` steps that are equal before the shift."""
    a, b = (s / (SHIFT - (SHIFT - 1) * s) for s in (start, end))
    inner = [a + (b - a) * k / count for k in range(1, count)]
    return (start, *(SHIFT * t / (1 + (SHIFT - 1) * t) for t in inner), end)


class Network(torch.nn.Module):
    """Transformer with what is fixed for videos of one size: text refiner, rotary angles, position channels.

    A network for smaller videos has every second (or fourth, ...) rotary angle along height and width, so
    that its tokens have the positions of the same parts of the full frame.
    """

    cos: Tensor
    sin: Tensor
    positions: Tensor

    def __init__(self, side: int = SIDE, config: WanConfig | None = None, parts: int = 1) -> None:
        """Creates the network for videos of `side` x `side` pixels.

        Args:
            parts: Training passes one in this number of a video's tokens.
        """
        super().__init__()
        config = config or model_config()
        self.transformer = WanTransformer(config)
        initialise(self.transformer)
        self.refiner = load_refiner()
        grid, full = latent_grid(side), latent_grid()
        self.side = side
        self.grid = (grid[0], grid[1] // PATCH[1], grid[2] // PATCH[2])
        stride = SIDE // side
        whole = (full[0], full[1] // PATCH[1], full[2] // PATCH[2])
        for name, angles in zip(("cos", "sin"), rope_table(config, whole), strict=True):
            kept = angles.view(*whole, -1)[:, ::stride, ::stride].flatten(0, 2)
            self.register_buffer(name, kept.contiguous(), persistent=False)
        positions = to_tokens(position_channels(POSITIONS, grid)[None])[0]
        self.register_buffer("positions", positions, persistent=False)  # [N, F*P]
        self._cross: list[CrossAttention | None] | None = None
        if self.positions.device.type == "cpu" and math.prod(self.grid) // parts <= _SHORT:
            self._cross = [_attend] * config.layers
            for name, module in self.transformer.named_modules():
                if isinstance(module, Attention) and name.endswith("attn1"):
                    module.attend = partial(module.attend, rule=_attend)  # type: ignore[method-assign]

    def compile_blocks(self) -> None:
        """Compiles the blocks for training. All have the same code, so that one compilation serves all."""
        for block in self.transformer.blocks:
            block.compile(dynamic=False)

    def encode_text(self, text: Tensor, bias: Tensor) -> TextKV:
        """Returns the keys and values of every block for token states [B, L, D] and key bias [B, L]."""
        return self.transformer.encode_text(self.refiner(text, bias < 0))

    def forward(
        self, x: Tensor, sigma: Tensor, text: Tensor, bias: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicts the clean data of noisy latents, or of some of their tokens.

        Args:
            x: Noisy tokens, [B, n, C*P].
            sigma: Noise levels, [B].
            text: Token states of the prompts, [B, L, D].
            bias: Key bias of the prompts, [B, L].
            index: Positions of these tokens, [B, n]; all tokens by default.

        Returns:
            Clean tokens, [B, n, C*P], and the hidden states half-way through the network, [B, n, dim].
        """
        if index is None:
            positions, cos, sin = self.positions.expand(len(x), -1, -1), self.cos, self.sin
        else:
            positions, cos, sin = self.positions[index], self.cos[index], self.sin[index]
        kv = self.encode_text(text, bias)
        hidden, modulation, embedding = self.transformer.begin(
            torch.cat((x, positions), dim=-1), 1000 * sigma
        )
        rope, key_bias = (cos.unsqueeze(-3), sin.unsqueeze(-3)), bias[:, None, None].to(hidden.dtype)
        layers = self.transformer.config.layers
        middle = (layers + 1) // 2
        parts = []
        for blocks in (range(middle), range(middle, layers)):
            hidden = self.transformer.run_blocks(
                blocks, hidden, modulation, rope, kv[blocks.start : blocks.stop], key_bias, self._cross
            )
            parts.append(hidden)
        return self.transformer.end(hidden, embedding), parts[0]

    def trajectory(
        self,
        start: Tensor,
        text: Tensor,
        bias: Tensor,
        sigmas: Sequence[float] = FEW_STEPS,
        start_step: int = 0,
        end_step: int | None = None,
        guidance: float = 1.0,
    ) -> Iterator[Tensor]:
        """Yields the latents after every step from latents [B, C, T, H, W], without gradients.

        Args:
            start: Latents at level `sigmas[start_step]`.
            text: Token states of the prompts, [B, L, D].
            bias: Key bias of the prompts, [B, L].
            sigmas: Noise levels of the schedule.
            start_step, end_step: First step of the schedule that is computed, and the one before which the
                computation ends; by default the whole schedule is computed.
            guidance: Scale of classifier-free guidance (arXiv 2207.12598), which computes every step a
                second time without a prompt; 1 is none.
        """
        n = len(start)
        if guidance != 1:
            text, bias = (torch.cat(pair) for pair in zip((text, bias), no_text(text, bias), strict=True))
        with torch.no_grad():
            kv = self.encode_text(text, bias)
        positions = self.positions.expand(len(text), -1, -1)

        @torch.no_grad()  # needed here, because the steps run after this function has returned
        def velocity(x: Tensor, sigma: float) -> Tensor:
            noisy = to_tokens(x).repeat(len(text) // n, 1, 1)
            tokens = torch.cat((noisy, positions), dim=-1)
            timestep = torch.full((len(text),), 1000 * sigma, device=x.device)
            data = self.transformer(tokens, self.cos, self.sin, kv, bias, timestep)
            if guidance != 1:
                data = torch.lerp(data[n:], data[:n], guidance)
            return (x - unpatchify(data.float(), self.grid, PATCH)) / sigma

        steps = sample(velocity, start, sigmas, start_step)
        return steps if end_step is None else islice(steps, end_step - start_step)


def encode(videos: Tensor) -> Tensor:
    """Encodes videos [B, 3, T, side, side] to latents [B, C, T, H, W]."""
    return torch.vmap(CODEC.encode)(videos)


def decode(latents: Tensor) -> Tensor:
    """Decodes latents [B, C, T, H, W] to videos [B, 3, T, side, side]."""
    return torch.vmap(CODEC.decode)(latents)
