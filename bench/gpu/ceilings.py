"""What the device can do at most: bytes and operations a second, as measured."""

from __future__ import annotations

import torch

from bench.gpu.section import Bench
from bench.gpu.timing import milliseconds
from bench.results import median

# Enough products in a row that the clock rate is one that the device keeps up.
_PRODUCTS, _COPIES = 200, 20


@torch.inference_mode()
def run(bench: Bench) -> None:
    """`copy_tb_s`, bytes read and written; `matmul_tflops`, of random matrices in the networks' type."""
    device, scale = bench.device, bench.scale
    source = torch.empty(scale.copy_bytes, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    times = milliseconds(lambda: target.copy_(source), _COPIES, device, warmups=3)
    bench.report.figure("copy_tb_s", median([2 * scale.copy_bytes / ms / 1e9 for ms in times], "TB/s"))
    side = scale.matrix
    a, b = (torch.randn(side, side, device=device).to(bench.dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=bench.dtype, device=device)
    times = milliseconds(lambda: torch.mm(a, b, out=out), _PRODUCTS, device, warmups=10)
    bench.report.figure("matmul_tflops", median([2 * side**3 / ms / 1e9 for ms in times], "TFLOP/s"))
