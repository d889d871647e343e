"""Kernel errors against float64 in Triton's interpreter: `python -m services.denoiser.kernels.check`.

The interpreter runs the kernel source on a CPU and does not reproduce the rounding of a GPU. Its bfloat16
matrix products are wrong, so only float32 and float16 are measured.
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
# Batch, heads, queries, keys, keys of the other text, channels per head.
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
    """Generates random arguments of `reference`.

    q, k and v have the network's memory layout: views of [B, rows, H, d].

    Args:
        hidden: Share of keys that are padding, 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def bias(count: int) -> Tensor:
        padding = torch.rand(batch, count, generator=generator) < hidden
        return normal(batch, count).masked_fill(padding, -torch.inf)

    rows = (queries, keys, keys, others, others)
    q, k, v, other_k, other_v = (normal(batch, n, heads, head_dim).to(dtype).transpose(1, 2) for n in rows)
    gate = torch.rand(batch, queries, generator=generator)
    strength = 3 * torch.rand(batch, generator=generator)
    gained = normal(batch, keys).abs()
    return q, k, v, bias(keys), gained, gate, other_k, other_v, bias(others), strength


def relative_error(got: Tensor, want: Tensor) -> float:
    """Returns the largest difference divided by the largest absolute value of `want`; infinite for NaN."""
    if not want.numel():
        return 0.0
    difference = (got.double() - want.double()).abs().max().item()
    scale = want.double().abs().max().item()
    if difference != difference:
        return float("inf")
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def measure_kernel_error(args: tuple[Tensor, ...], tactic: str | None = None) -> float:
    """Runs the kernel on the device of `args`. Returns its error relative to the reference in float64."""
    from services.denoiser.kernels.amplified_attention import launch

    q = args[0]
    batch, heads, queries, head_dim = q.shape
    out = torch.full((batch, queries, heads, head_dim), torch.nan, dtype=q.dtype, device=q.device).transpose(
        1, 2
    )
    launch(args, out, tactic)
    return relative_error(out, reference(*(t.double() for t in args)))


def measure_interpreter_errors(timeout: float = 120.0) -> dict[str, float]:
    """Measures `kernel_fp32_rel` and `kernel_fp16_rel`, the largest errors over `CASES`. Takes seconds.

    Runs in a separate process, because Triton selects its interpreter at import.

    Args:
        timeout: Upper bound on the run time of the process, in seconds.

    Raises:
        subprocess.CalledProcessError: Triton is missing or fails.
    """
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=True,
    )
    errors: dict[str, float] = json.loads(process.stdout)
    return errors


def main() -> None:
    worst = {
        name: max(measure_kernel_error(example(*case, dtype, seed=i)) for i, case in enumerate(CASES))
        for name, dtype in TYPES.items()
    }
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
