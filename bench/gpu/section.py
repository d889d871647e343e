"""What a section is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.gpu.report import Budget, Report
from bench.gpu.shapes import Scale


@dataclass
class Bench:
    """One section's run.

    Args:
        matmul_tflops: as the ceilings' section measured it; None where it did not.
        compiling: whether torch.compile is measured.
    """

    report: Report
    device: torch.device
    scale: Scale
    budget: Budget
    matmul_tflops: float | None
    compiling: bool

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in: a CPU has no fast bfloat16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def skip(self, what: str, why: str) -> None:
        self.report.note("skipped", what, why)

    def affords(self, what: str, seconds: float) -> bool:
        """Whether so much time is left; where it is not, that is noted."""
        if (left := self.budget.left) >= seconds:
            return True
        self.skip(what, f"takes about {seconds:.0f} s, and {left:.0f} s are left to its section")
        return False
