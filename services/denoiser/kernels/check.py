"""How far the kernel is from float64, in Triton's interpreter: `python -m services.denoiser.kernels.check`.

The interpreter runs the kernel's source on a CPU; what a GPU rounds otherwise, it does not see. Its bfloat16
matrix products are wrong, so float32 and float16 stand for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from torch import Tensor

from services.denoiser.kernels.reference import reference

TYPES = {"kernel_fp32_rel": torch.float32, "kernel_fp16_rel": torch.float16}
# batch, heads, queries, keys, keys of the other text, channels of a head
CASES = (
    (1, 2, 200, 77, 0, 64),
    (2, 1, 130, 65, 130, 128),
    (1, 1, 64, 300, 77, 40),
    (1, 1, 33, 512, 512, 96),
    (1, 1, 1, 1, 1, 32),
)


def example(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    others: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    hidden: float = 0.2,
) -> tuple[Tensor, ...]:
    """Arguments of `reference`: q, k and v as the network has them, views of [B, rows, H, d].

    `hidden` is the share of keys that are padding.
    """
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    def bias(count: int) -> Tensor:
        away = torch.rand(batch, count, generator=chance) < hidden
        return normal(batch, count).masked_fill(away, -torch.inf)

    rows = (queries, keys, keys, others, others)
    q, k, v, other_k, other_v = (normal(batch, n, heads, head_dim).to(dtype).transpose(1, 2) for n in rows)
    gate = torch.rand(batch, queries, generator=chance)
    strength = 3 * torch.rand(batch, generator=chance)
    gained = normal(batch, keys).abs()
    return q, k, v, bias(keys), gained, gate, other_k, other_v, bias(others), strength


def relative_error(got: Tensor, want: Tensor) -> float:
    """The largest difference as a share of the largest of `want`; infinite where there is a NaN."""
    if not want.numel():
        return 0.0
    off, scale = (got.double() - want.double()).abs().max().item(), want.double().abs().max().item()
    if off != off:
        return float("inf")
    return off / scale if scale else (0.0 if off == 0 else float("inf"))


def kernel_error(args: tuple[Tensor, ...], tactic: str | None = None) -> float:
    """The kernel's `relative_error` against the reference in float64, where the tensors are."""
    from services.denoiser.kernels.amplified_attention import launch

    q = args[0]
    batch, heads, queries, head_dim = q.shape
    out = torch.full((batch, queries, heads, head_dim), torch.nan, dtype=q.dtype, device=q.device).transpose(
        1, 2
    )
    launch(args, out, tactic)
    return relative_error(out, reference(*(t.double() for t in args)))


def interpreter_errors(timeout: float = 120.0) -> dict[str, float]:
    """`kernel_fp32_rel` and `kernel_fp16_rel`, the largest over `CASES`; takes some seconds.

    In a process of its own, since Triton decides when it is imported whether it interprets.
    Raises subprocess.CalledProcessError where Triton is missing or fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=True,
    )
    errors: dict[str, float] = json.loads(done.stdout)
    return errors


def main() -> None:
    worst = {
        name: max(kernel_error(example(*case, dtype, seed=i)) for i, case in enumerate(CASES))
        for name, dtype in TYPES.items()
    }
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
