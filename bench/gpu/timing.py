"""Timing on a device, and the relative error of a result."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_milliseconds(run: Step, repeats: int, device: torch.device, warmups: int = 1) -> list[float]:
    """Measures the time of each repeat: with events on a CUDA device, otherwise with the host's clock."""
    for _ in range(warmups):
        run()
    synchronize(device)
    if device.type != "cuda":
        return [1e3 * measure_seconds(run, device) for _ in range(repeats)]
    event: Any = torch.cuda.Event
    marks = [event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    synchronize(device)
    return [begin.elapsed_time(end) for begin, end in pairwise(marks)]


def measure_seconds(run: Step, device: torch.device) -> float:
    """Measures one run including device synchronisation, with the host's clock."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def relative_error(got: Tensor, want: Tensor) -> float:
    """Computes |got - want| / |want| in float64; infinite if a value is NaN. Shapes must be equal."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {list(got.shape)}, {list(want.shape)}")
    got, want = got.double(), want.double()
    difference, size = float((got - want).norm()), float(want.norm())
    if difference != difference:
        return float("inf")
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def profile_top_kernels(run: Step, count: int = 10) -> list[str]:
    """Profiles one run. Returns its slowest CUDA kernels: share of all kernel time, calls, name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in events)
    events.sort(key=lambda event: event.self_device_time_total, reverse=True)
    return [f"{e.self_device_time_total / total:.1%} {e.count}x {e.key[:100]}" for e in events[:count]]
