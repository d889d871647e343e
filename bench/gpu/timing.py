"""Clocks of a device, and how far two results lie apart."""

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


def milliseconds(run: Step, repeats: int, device: torch.device, warmups: int = 1) -> list[float]:
    """Each repeat's own time: by events on a CUDA device, by the host's clock elsewhere."""
    for _ in range(warmups):
        run()
    synchronize(device)
    if device.type != "cuda":
        return [1e3 * seconds(run, device) for _ in range(repeats)]
    event: Any = torch.cuda.Event
    marks = [event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    synchronize(device)
    return [begin.elapsed_time(end) for begin, end in pairwise(marks)]


def seconds(run: Step, device: torch.device) -> float:
    """One run, until the device is done, by the host's clock."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def relative(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in float64; infinite where anything is not a number. Shapes must be the same."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {list(got.shape)}, {list(want.shape)}")
    got, want = got.double(), want.double()
    off, size = float((got - want).norm()), float(want.norm())
    if off != off:
        return float("inf")
    return off / size if size else (0.0 if off == 0 else float("inf"))


def top_kernels(run: Step, count: int = 10) -> list[str]:
    """The CUDA kernels that took longest in one run: share of all kernels' time, calls, name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    events = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in events)
    events.sort(key=lambda event: event.self_device_time_total, reverse=True)
    return [f"{e.self_device_time_total / total:.1%} {e.count}x {e.key[:100]}" for e in events[:count]]
