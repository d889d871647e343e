"""The Triton kernel of amplified attention, its launch configurations, its launch and its compilation.

The only module here that imports Triton. What is computed stands in `reference.py`; both texts are attended
to in one pass over each block of queries, each with a running softmax accumulated in float32.

Source: the running softmax is FlashAttention-2's (arXiv 2307.08691).
"""
# Triton reads a kernel's annotations itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.denoiser.kernels.signature import ARGUMENTS, COUNTS, parameter_type

MAX_HEAD_DIM = 128
# PTX of a version that drivers of CUDA 12.0 read already; for sm_100, of CUDA 12.7.
PTX_VERSIONS = {80: 80, 89: 80, 90: 80, 100: 86}
LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is one instruction, exp is not


@dataclass(frozen=True)
class Tactic:
    """A launch configuration.

    Attributes:
        block_m, block_n: queries and keys of a block.
        warps: of 32 threads each.
        stages: blocks of keys that are under way from memory at a time.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


TACTICS = {
    "small": Tactic(block_m=64, block_n=64, warps=8, stages=1),  # within 48 KiB of shared memory, in 16 bits
    "fast": Tactic(block_m=128, block_n=64, warps=8, stages=3),
    "exact": Tactic(block_m=32, block_n=32, warps=8, stages=1),  # for float32, which fills registers
}


@triton.jit
def _attend(
    q, k, v, bias, gained, gate, keys, stride, columns, dims, in_head, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAINED: tl.constexpr,
):  # fmt: skip
    """softmax(qkᵀ/√d + bias [+ gate · gained]) · v of one block of queries; float32 [BLOCK_M, BLOCK_D]."""
    scale: tl.constexpr = LOG2E * HEAD_DIM**-0.5
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, keys, BLOCK_N):
        at = start + columns
        here = at < keys
        k_block = tl.load(k + at[None, :] * stride + dims[:, None], here[None, :] & in_head[:, None], 0.0)
        # "ieee": tf32 would leave float32 with three digits.
        logits = tl.dot(q, k_block, input_precision="ieee") * scale
        # Keys beyond the last are hidden by their bias.
        logits += tl.load(bias + at, here, float("-inf"))[None, :] * LOG2E
        if GAINED:
            logits += gate[:, None] * (tl.load(gained + at, here, 0.0) * LOG2E)[None, :]
        higher = tl.maximum(top, tl.max(logits, 1))
        # -inf minus -inf is no number: a row that has seen no key subtracts nothing.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logits - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        v_block = tl.load(v + at[:, None] * stride + dims[None, :], here[:, None] & in_head[None, :], 0.0)
        out = tl.dot(weights.to(v_block.dtype), v_block, out * decay[:, None], input_precision="ieee")
        top = higher
    return out / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=COUNTS)
def amplified_attention(
    q, k, v, key_bias, gained, gate, other_k, other_v, other_bias, strength,
    heads, queries, keys, others,
    q_batch, q_head, q_row, k_batch, k_head, k_row, o_batch, o_head, o_row, out_batch, out_head, out_row,
    out,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head, of the grid (blocks, batch · heads)."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < HEAD_DIM
    inside = (rows < queries)[:, None] & in_head[None, :]
    q_block = tl.load(
        q + batch * q_batch + head * q_head + rows[:, None] * q_row + dims[None, :], inside, 0.0
    )
    row_gate = tl.load(gate + batch * queries + rows, rows < queries, 0.0)
    text = batch * k_batch + head * k_head
    result = _attend(
        q_block, k + text, v + text, key_bias + batch * keys, gained + batch * keys, row_gate, keys, k_row,
        columns, dims, in_head, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, True,
    )  # fmt: skip
    if others > 0:
        text = batch * o_batch + head * o_head
        other = _attend(
            q_block, other_k + text, other_v + text, other_bias + batch * others, gained, row_gate, others,
            o_row, columns, dims, in_head, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
        result += (tl.load(strength + batch) * row_gate)[:, None] * (result - other)
    at = out + batch * out_batch + head * out_head + rows[:, None] * out_row + dims[None, :]
    tl.store(at, result.to(out.dtype.element_ty), inside)


def constants(head_dim: int, tactic: Tactic) -> dict[str, int]:
    """What is fixed when the kernel is compiled."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    return {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": tactic.block_m, "BLOCK_N": tactic.block_n}


def launch(inputs: Sequence[Tensor], out: Tensor, tactic: str | None = None) -> None:
    """Compute `reference` of its inputs into `out` [B, H, N, d]: on a GPU, or in Triton's interpreter.

    q, k, v and their counterparts may be any views whose channels lie side by side; v is copied where it does
    not lie as k does. `tactic` is one of `TACTICS`. Raises ValueError where the kernel cannot do it.
    """
    q, k, v, key_bias, gained, gate, other_k, other_v, other_bias, strength = inputs
    batch, heads, queries, head_dim = q.shape
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"q: the kernel takes heads of at most {MAX_HEAD_DIM} channels, not {head_dim}")
    if batch * heads > 65_535:
        raise ValueError(f"q: the kernel takes at most 65535 heads, over the batch, not {batch * heads}")
    if any(t.numel() >= 2**31 for t in (q, k, other_k)):
        raise ValueError("q, k, other_k: the kernel takes tensors of less than 2^31 elements")
    if not out.numel():
        return
    q = _rows(q)
    k, v = _alike(k, v)
    other_k, other_v = _alike(other_k, other_v)
    flat = [t.contiguous() for t in (key_bias, gained, gate, other_bias, strength)]
    chosen = TACTICS[tactic or ("exact" if q.dtype == torch.float32 else "fast")]
    amplified_attention[(triton.cdiv(queries, chosen.block_m), batch * heads)](
        q, k, v, *flat[:3], other_k, other_v, *flat[3:],
        heads, queries, k.shape[2], other_k.shape[2],
        *(stride for t in (q, k, other_k, out) for stride in t.stride()[:3]),
        out,
        **constants(head_dim, chosen),
        num_warps=chosen.warps, num_stages=chosen.stages, enable_fp_fusion=True,
    )  # fmt: skip


def compile_for(arch: int, dtype: str, head_dim: int, tactic: Tactic) -> Any:
    """Triton's compiled kernel for compute capability arch / 10; needs no GPU. `dtype`: "fp16" or "bf16".

    It counts on pointers and strides being multiples of 16, as they are where tensors are contiguous and
    heads have a multiple of 16 channels.
    """
    fixed = constants(head_dim, tactic)
    types = {name: parameter_type(name, dtype) for name in ARGUMENTS} | dict.fromkeys(fixed, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(ARGUMENTS) if name not in COUNTS}
    options = {
        "num_warps": tactic.warps,
        "num_stages": tactic.stages,
        "ptx_version": PTX_VERSIONS[arch],
        "enable_fp_fusion": True,
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # it names files of the machine that compiles
        source = ASTSource(amplified_attention, types, fixed, aligned)
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _alike(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    k = _rows(k)
    return (k, v) if v.stride() == k.stride() else (k.contiguous(), v.contiguous())
