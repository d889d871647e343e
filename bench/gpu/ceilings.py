"""Measured upper bounds of the device: bytes and operations per second."""

from __future__ import annotations

import torch

from bench.gpu.section import Bench
from bench.gpu.timing import measure_milliseconds
from bench.results import median

# Enough consecutive products for the clock rate to reach a sustained level.
_PRODUCTS, _COPIES = 200, 20


@torch.inference_mode()
def run(bench: Bench) -> None:
    """Measures `copy_tb_s`, counting bytes read and written, and `matmul_tflops`, for random matrices."""
    device, scale = bench.device, bench.scale
    source = torch.empty(scale.copy_bytes, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    times = measure_milliseconds(lambda: target.copy_(source), _COPIES, device, warmups=3)
    bench.report.figure("copy_tb_s", median([2 * scale.copy_bytes / ms / 1e9 for ms in times], "TB/s"))
    side = scale.matrix
    a, b = (torch.randn(side, side, device=device).to(bench.dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=bench.dtype, device=device)
    times = measure_milliseconds(lambda: torch.mm(a, b, out=out), _PRODUCTS, device, warmups=10)
    bench.report.figure("matmul_tflops", median([2 * side**3 / ms / 1e9 for ms in times], "TFLOP/s"))
