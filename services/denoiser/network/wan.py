"""The Wan video diffusion transformer in plain torch, on tokens.

It has the same parameters, by name and shape, as diffusers' `WanTransformer3DModel` (text-to-video), so its
checkpoints load. Unlike diffusers', its `forward` accepts tokens with their own rotary angles instead of a
whole video: a caller may pass any subset of a video's tokens.

Shapes: B batch, N video tokens, L text tokens, D = heads * head_dim, P = pt*ph*pw positions a patch.
Source: Wan, arXiv 2503.20314.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Parts of the names of parameters that stay in float32 for every type of computation, as in diffusers.
_FLOAT32 = {"time_embedder", "norm2", "scale_shift_table"}

TextKV = tuple[tuple[Tensor, Tensor], ...]  # per block: keys and values, each [B, heads, L, head_dim]
Grid = tuple[int, int, int]  # tokens along time, height, width
# Called with the number of a block, and the cross-attention queries [B, h, N, head_dim] and text keys
# [B, h, L, head_dim] of its observed heads.
AttentionObserver = Callable[[int, Tensor, Tensor], None]
# Computes a block's attention to the text: queries [B, heads, N, head_dim], keys and values
# [B, heads, L, head_dim], a bias broadcast to [B, heads, N, L] -> [B, heads, N, head_dim].
CrossAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Number of observed heads, for networks of every size.
_WATCHED_HEADS = 8


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the network; the defaults are Wan2.1-T2V-1.3B."""

    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    heads: int = 12
    head_dim: int = 128
    ffn_dim: int = 8960
    layers: int = 30
    text_dim: int = 4096
    freq_dim: int = 256
    rope_theta: float = 10_000.0
    eps: float = 1e-6

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def patch_volume(self) -> int:
        return math.prod(self.patch_size)

    @property
    def watched_heads(self) -> dict[int, list[int]]:
        """Heads whose attention shows where words act, by block.

        They belong to the middle third of the blocks, where words have found their places. They are few and
        spread evenly, so that observing them takes hardly any time.
        """
        first = self.layers // 3
        blocks = range(first, max(first + 1, 2 * self.layers // 3))
        every = [(block, head) for block in blocks for head in range(self.heads)]
        count = min(_WATCHED_HEADS, len(every))
        chosen = [every[i * len(every) // count] for i in range(count)]
        return {block: [h for b, h in chosen if b == block] for block in dict(chosen)}


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the type in which a parameter is stored if the network computes in `dtype`."""
    return torch.float32 if _FLOAT32 & set(name.split(".")) else dtype


def patchify(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Converts [B, C, T, H, W] to tokens [B, N, C*P], ordered by time, then rows, then columns."""
    b, c, t, h, w = latents.shape
    pt, ph, pw = patch
    x = latents.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, -1, c * pt * ph * pw)


def unpatchify(tokens: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Inverts `patchify`: tokens [B, N, C*P] -> [B, C, T, H, W]."""
    b = tokens.shape[0]
    (gt, gh, gw), (pt, ph, pw) = grid, patch
    x = tokens.reshape(b, gt, gh, gw, -1, pt, ph, pw)
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, -1, gt * pt, gh * ph, gw * pw)


def rope_table(config: WanConfig, grid: Grid) -> tuple[Tensor, Tensor]:
    """Returns rotary cosines and sines of every token of a grid, float32 [N, head_dim] each.

    A head's channels split into time, height and width parts; each pair of channels shares an angle.
    """
    side = 2 * (config.head_dim // 6)
    parts = []
    for axis, size in enumerate((config.head_dim - 2 * side, side, side)):
        freq = config.rope_theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.outer(torch.arange(grid[axis], dtype=torch.float64), freq).repeat_interleave(2, dim=1)
        view = [1, 1, 1, size]
        view[axis] = grid[axis]
        parts.append(angle.view(view).expand(*grid, size))
    angles = torch.cat(parts, dim=-1).reshape(-1, config.head_dim)  # [N, head_dim]
    return angles.cos().float(), angles.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs of x [B, heads, N, head_dim] by angles [B or none, 1, N, head_dim]."""
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).type_as(x)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Applies a layer norm without weights, then adaptive shift and scale [B, 1, D], in float32."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (over all heads together)."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)

    def _split(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return x.view(b, n, self.heads, -1).transpose(1, 2)  # [B, n, D] -> [B, heads, n, head_dim]

    def query(self, x: Tensor) -> Tensor:
        return self._split(self.norm_q(self.to_q(x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.norm_k(self.to_k(x))), self._split(self.to_v(x))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        rule: CrossAttention = F.scaled_dot_product_attention,
    ) -> Tensor:
        """Attends: q [B, heads, N, d], k and v [B, heads, M, d], bias for [B, heads, N, M] -> [B, N, D]."""
        out = rule(q, k, v, bias)
        projected: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return projected

    def attend_to_itself(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Runs self-attention with rotary positions, as in `Block.forward`: x [B, N, D] -> [B, N, D]."""
        k, v = self.key_value(x)
        return self.attend(_rotate(self.query(x), *rope), _rotate(k, *rope), v)


class _Projection(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.proj(x)
        return F.gelu(h, approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_Projection(dim, inner), nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    """Self-attention and feed-forward, modulated by the timestep, with text cross-attention between."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn1 = Attention(config.dim, config.heads, config.eps)
        self.attn2 = Attention(config.dim, config.heads, config.eps)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        modulation: Tensor,  # [B, 6, D] float32
        rope: tuple[Tensor, Tensor],  # [B or none, 1, N, head_dim] each
        text: tuple[Tensor, Tensor],  # keys, values [B, heads, L, head_dim]
        key_bias: Tensor | None,  # [B, 1, 1, L]
        amplify: CrossAttention | None = None,
        on_attention: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation).chunk(6, dim=1)
        y: Tensor = _modulate(x, shift1, scale1, self.eps)
        y = self.attn1.attend_to_itself(y, rope)
        x = (x.float() + y * gate1).type_as(x)
        y = F.layer_norm(
            x.float(), x.shape[-1:], self.norm2.weight.float(), self.norm2.bias.float(), self.eps
        ).type_as(x)
        q = self.attn2.query(y)
        if on_attention is not None:
            on_attention(q, text[0])
        x = x + self.attn2.attend(q, *text, key_bias, amplify or F.scaled_dot_product_attention)
        y = self.ffn(_modulate(x, shift2, scale2, self.eps))
        out: Tensor = (x.float() + y.float() * gate2).type_as(x)
        return out


class _MLP(nn.Module):
    """Two linear layers under the names diffusers gives them."""

    def __init__(self, dim_in: int, dim: int, tanh_gelu: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.tanh_gelu = tanh_gelu

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear_1(x)
        h = F.gelu(h, approximate="tanh") if self.tanh_gelu else F.silu(h)
        out: Tensor = self.linear_2(h)
        return out


class ConditionEmbedder(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = _MLP(config.freq_dim, config.dim, tanh_gelu=False)
        self.time_proj = nn.Linear(config.dim, 6 * config.dim)
        self.text_embedder = _MLP(config.text_dim, config.dim, tanh_gelu=True)

    def time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds timesteps [B] in 0..1000: embedding [B, D], block modulation [B, 6, D]; both float32.

        The embedding is computed in float32 and then rounded to the network's type, as diffusers does.
        """
        half = self.freq_dim // 2
        freq = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device) / half)
        angle = timestep.float()[:, None] * freq
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)  # [B, freq_dim]
        embedding = self.time_embedder(waves.to(self.time_embedder.linear_1.weight.dtype))
        embedding = embedding.to(self.time_proj.weight.dtype)
        modulation = self.time_proj(F.silu(embedding))
        return embedding.float(), modulation.unflatten(-1, (6, -1)).float()


class WanTransformer(nn.Module):
    """The network, for rectified flow: predicts the velocity v = noise - data of every given token.

    A model may be trained to predict the data instead; `Transformer.prediction` states which.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.proj_out = nn.Linear(config.dim, config.out_channels * config.patch_volume)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def encode_text(self, text: Tensor) -> TextKV:
        """Converts text states [B, L, text_dim] to cross-attention keys and values of every block.

        They depend on neither timestep nor video, so one call per request is enough.
        """
        states = self.condition_embedder.text_embedder(text)  # [B, L, D]
        return tuple(block.attn2.key_value(states) for block in self.blocks)  # type: ignore[union-attr,operator]

    def forward(
        self,
        tokens: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        text_kv: TextKV,
        key_bias: Tensor | None,
        timestep: Tensor,
        amplify: Sequence[CrossAttention | None] | None = None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        """Predicts every token's velocity, [B, N, out_channels*P] in the layout of `patchify`.

        Args:
            tokens: Video tokens, [B, N, in_channels*P] in the layout of `patchify`.
            rope_cos, rope_sin: Rows of `rope_table` for these tokens, [N, head_dim] or [B, N, head_dim].
            key_bias: Bias of the cross-attention logits, [B, L]; -inf hides padding. None means no bias.
            timestep: Timesteps, [B], 1000 * sigma.
            amplify: Cross-attention of every block; None means the plain one.
        """
        x, modulation, embedding = self.begin(tokens, timestep)
        rope = (rope_cos.unsqueeze(-3), rope_sin.unsqueeze(-3))
        bias = None if key_bias is None else key_bias[:, None, None, :].to(x.dtype)
        x = self.run_blocks(
            range(self.config.layers), x, modulation, rope, text_kv, bias, amplify, on_attention
        )
        return self.end(x, embedding)

    def begin(self, tokens: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the first block's input [B, N, D], modulation [B, 6, D] and the time embedding [B, D]."""
        weight = self.patch_embedding.weight.flatten(1)  # [D, in_channels*P]
        x = F.linear(tokens, weight, self.patch_embedding.bias)
        embedding, modulation = self.condition_embedder.time(timestep)
        return x, modulation, embedding

    def run_blocks(
        self,
        blocks: range,
        x: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        text_kv: TextKV,
        bias: Tensor | None,
        amplify: Sequence[CrossAttention | None] | None = None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        """Runs consecutive blocks, x [B, N, D] -> [B, N, D].

        Args:
            text_kv, amplify: Arguments of `forward`, for these blocks only.
        """
        observed = {} if on_attention is None else self.config.watched_heads
        for n, (i, text) in enumerate(zip(blocks, text_kv, strict=True)):
            observer = None
            if on_attention is not None and i in observed:
                observer = partial(_observe_heads, on_attention, i, observed[i])
            x = self.blocks[i](x, modulation, rope, text, bias, amplify[n] if amplify else None, observer)
        return x

    def end(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Computes the prediction [B, N, out_channels*P] from the last block's output."""
        shift, scale = (self.scale_shift_table + embedding.unsqueeze(1)).chunk(2, dim=1)
        out = self.proj_out(_modulate(x, shift, scale, self.config.eps))  # [B, N, P*out_channels]
        # diffusers writes channels last inside a patch; tokens here have them first.
        tokens_out: Tensor = out.unflatten(-1, (self.config.patch_volume, -1)).transpose(-1, -2).flatten(-2)
        return tokens_out


def _observe_heads(
    on_attention: AttentionObserver, block: int, heads: list[int], queries: Tensor, keys: Tensor
) -> None:
    on_attention(block, queries[:, heads], keys[:, heads])
