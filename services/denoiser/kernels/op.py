"""PyTorch operator `chorus::amplified_attention`.

Runs the reference on a CPU and the Triton kernel on a GPU. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.denoiser.kernels.reference import reference
from services.denoiser.kernels.signature import TENSORS, VALUES

NAME = "chorus::amplified_attention"


@torch.library.custom_op(NAME, mutates_args=(), device_types="cpu")
def amplified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor,
    gained: Tensor,
    gate: Tensor,
    other_k: Tensor,
    other_v: Tensor,
    other_bias: Tensor,
    strength: Tensor,
) -> Tensor:
    """Computes `reference` as one operator, for float16, bfloat16 or float32 (on a CPU also float64).

    Returns [B, H, N, d] as a view of [B, N, H, d], so that merging the heads needs no copy.

    Raises:
        ValueError: Shapes or types do not match, or the kernel does not support them.
    """
    args = (q, k, v, key_bias, gained, gate, other_k, other_v, other_bias, strength)
    _check(*args)
    return _empty_output(q).copy_(reference(*args))


@amplified_attention.register_kernel("cuda")
def _cuda(*args: Tensor) -> Tensor:
    from services.denoiser.kernels.amplified_attention import launch  # machines without a GPU lack Triton

    _check(*args)
    q = args[0]
    if q.dtype == torch.float64:
        raise ValueError("q: the kernel supports float16, bfloat16 and float32, not float64")
    out = _empty_output(q)
    with torch.cuda.device(q.device):
        launch(args, out)
    return out


@amplified_attention.register_fake
def _fake(*args: Tensor) -> Tensor:
    _check(*args)
    return _empty_output(args[0])


def _empty_output(q: Tensor) -> Tensor:
    batch, heads, queries, head_dim = q.shape
    return q.new_empty(batch, queries, heads, head_dim).transpose(1, 2)


def _check(*args: Tensor) -> None:
    named = dict(zip(TENSORS, args, strict=True))
    q, k, other_k = named["q"], named["k"], named["other_k"]
    if q.ndim != 4 or k.ndim != 4 or other_k.ndim != 4:
        raise ValueError("q, k, other_k: must have four axes, [B, H, rows, d]")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"q: must have a floating-point type, not {q.dtype}")
    batch, heads, queries, head_dim = q.shape
    keys, others = k.shape[2], other_k.shape[2]
    shapes = {
        "q": q.shape,
        **dict.fromkeys(("k", "v"), (batch, heads, keys, head_dim)),
        **dict.fromkeys(("other_k", "other_v"), (batch, heads, others, head_dim)),
        **dict.fromkeys(("key_bias", "gained"), (batch, keys)),
        "gate": (batch, queries),
        "other_bias": (batch, others),
        "strength": (batch,),
    }
    for name, tensor in named.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name}: must be {list(shapes[name])}, not {list(tensor.shape)}")
        dtype = q.dtype if name in VALUES or q.dtype == torch.float64 else torch.float32
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: must be {dtype}, not {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name}: must be on {q.device}, not {tensor.device}")
