"""Input of a section."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.gpu.report import Budget, Report
from bench.gpu.shapes import Scale


@dataclass
class Bench:
    """Run of one section.

    Attributes:
        report: Report that receives figures and notes.
        device: Device to measure.
        scale: Sizes of networks and inputs.
        budget: Remaining time of the section.
        matmul_tflops: Rate measured by the section "ceilings"; None if not measured.
        compiling: Whether torch.compile is measured.
    """

    report: Report
    device: torch.device
    scale: Scale
    budget: Budget
    matmul_tflops: float | None
    compiling: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type in which networks compute: float32 on a CPU, which has no fast bfloat16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def skip(self, name: str, reason: str) -> None:
        self.report.note("skipped", name, reason)

    def has_time_for(self, name: str, seconds: float) -> bool:
        """Returns whether enough time remains; otherwise records that `name` was skipped."""
        if (left := self.budget.left) >= seconds:
            return True
        self.skip(name, f"needs about {seconds:.0f} s, and the section has {left:.0f} s left")
        return False
