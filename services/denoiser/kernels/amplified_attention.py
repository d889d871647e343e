"""Triton kernel for amplified attention: source, launch configurations, launch and compilation.

The only module of this package that imports Triton. `reference.py` defines the computation. The kernel
attends to both texts in one pass over each block of queries, with one running softmax per text accumulated
in float32.

Source: the running softmax is FlashAttention-2's (arXiv 2307.08691).
"""
# Triton interprets the annotations of kernel functions.
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

from services.denoiser.kernels.signature import ARGUMENTS, COUNTS, get_parameter_type

MAX_HEAD_DIM = 128
# PTX ISA version per architecture: the oldest usable one, so that drivers from CUDA 12.0 on (sm_100: 12.7)
# can load the PTX.
PTX_VERSIONS = {80: 80, 89: 80, 90: 80, 100: 86}
LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is one instruction, exp is not


@dataclass(frozen=True)
class Tactic:
    """Launch configuration.

    Attributes:
        block_m: Queries per block.
        block_n: Keys per block.
        warps: Warps of 32 threads per block.
        stages: Software pipeline depth: blocks of keys loaded from memory concurrently.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


TACTICS = {
    "small": Tactic(block_m=64, block_n=64, warps=8, stages=1),  # fits 48 KiB of shared memory in 16 bits
    "fast": Tactic(block_m=128, block_n=64, warps=8, stages=3),
    "exact": Tactic(block_m=32, block_n=32, warps=8, stages=1),  # float32: larger blocks exhaust registers
}


@triton.jit
def _attend(
    q, k, v, bias, gained, gate, keys, stride, columns, dims, in_head, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAINED: tl.constexpr,
):  # fmt: skip
    """Computes softmax(qkᵀ/√d + bias [+ gate · gained]) · v for one block of queries.

    Returns float32 [BLOCK_M, BLOCK_D].
    """
    scale: tl.constexpr = LOG2E * HEAD_DIM**-0.5
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, keys, BLOCK_N):
        at = start + columns
        here = at < keys
        k_block = tl.load(k + at[None, :] * stride + dims[:, None], here[None, :] & in_head[:, None], 0.0)
        # "ieee": tf32 would reduce float32 to three significant digits.
        logits = tl.dot(q, k_block, input_precision="ieee") * scale
        # A bias of -inf masks keys past the last one.
        logits += tl.load(bias + at, here, float("-inf"))[None, :] * LOG2E
        if GAINED:
            logits += gate[:, None] * (tl.load(gained + at, here, 0.0) * LOG2E)[None, :]
        higher = tl.maximum(top, tl.max(logits, 1))
        # A row without a visible key so far subtracts 0, because -inf minus -inf is NaN.
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
    """Computes one block of queries of one head. Grid: (blocks of queries, batch · heads)."""
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


def build_constants(head_dim: int, tactic: Tactic) -> dict[str, int]:
    """Returns the kernel's compile-time constants."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    return {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": tactic.block_m, "BLOCK_N": tactic.block_n}


def launch(inputs: Sequence[Tensor], out: Tensor, tactic: str | None = None) -> None:
    """Computes `reference(*inputs)` into `out` [B, H, N, d], on a GPU or in Triton's interpreter.

    q, k, v, other_k and other_v may be views with any strides. A tensor whose channels are not contiguous is
    copied, and so is a key-value pair with different strides.

    Args:
        inputs: Arguments of `reference`, in order.
        tactic: Key of `TACTICS`. None selects "exact" for float32 and "fast" for 16-bit types.

    Raises:
        ValueError: The kernel does not support these sizes.
    """
    q, k, v, key_bias, gained, gate, other_k, other_v, other_bias, strength = inputs
    batch, heads, queries, head_dim = q.shape
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"q: the kernel supports at most {MAX_HEAD_DIM} channels per head, not {head_dim}")
    if batch * heads > 65_535:
        raise ValueError(f"q: the kernel supports batch * heads up to 65535, not {batch * heads}")
    if any(t.numel() >= 2**31 for t in (q, k, other_k)):
        raise ValueError("q, k, other_k: the kernel supports tensors with fewer than 2^31 elements")
    if not out.numel():
        return
    q = _with_contiguous_channels(q)
    k, v = _with_equal_strides(k, v)
    other_k, other_v = _with_equal_strides(other_k, other_v)
    flat = [t.contiguous() for t in (key_bias, gained, gate, other_bias, strength)]
    config = TACTICS[tactic or ("exact" if q.dtype == torch.float32 else "fast")]
    amplified_attention[(triton.cdiv(queries, config.block_m), batch * heads)](
        q, k, v, *flat[:3], other_k, other_v, *flat[3:],
        heads, queries, k.shape[2], other_k.shape[2],
        *(stride for t in (q, k, other_k, out) for stride in t.stride()[:3]),
        out,
        **build_constants(head_dim, config),
        num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
    )  # fmt: skip


def compile_kernel(arch: int, dtype: str, head_dim: int, tactic: Tactic) -> Any:
    """Compiles the kernel with Triton. Needs no GPU.

    The result requires pointers and strides that are multiples of 16. Contiguous tensors whose head size is
    a multiple of 16 fulfil this.

    Args:
        arch: Target architecture, 10 times the compute capability.
        dtype: Type of q, k, v and the output, "fp16" or "bf16".

    Returns Triton's compiled kernel.
    """
    fixed = build_constants(head_dim, tactic)
    types = {name: get_parameter_type(name, dtype) for name in ARGUMENTS} | dict.fromkeys(fixed, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(ARGUMENTS) if name not in COUNTS}
    options = {
        "num_warps": tactic.warps,
        "num_stages": tactic.stages,
        "ptx_version": PTX_VERSIONS[arch],
        "enable_fp_fusion": True,
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # contains file paths of the compiling machine
        source = ASTSource(amplified_attention, types, fixed, aligned)
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _with_contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _with_equal_strides(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    k = _with_contiguous_channels(k)
    return (k, v) if v.stride() == k.stride() else (k.contiguous(), v.contiguous())
