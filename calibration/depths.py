"""Depths of reuse that a calibration measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.calibration import Depth

# Strength of contrast that no other was better than (docs/ablation.md).
CONTRAST: Final = 0.5


def list_depths(sigmas: Sequence[float], limit: int, *, amplified: bool = True) -> dict[str, Depth]:
    """Returns the depths to measure, by name.

    "2 full" continues the donor's x_2, "2 draft" a draft there, "2 contrast" amplifies the words that the
    target's prompt gained. Each reuses every token: whether regions pay depends on the videos
    (docs/ablation.md).

    Args:
        sigmas: Schedule of the model, N + 1 values.
        limit: Upper bound on the depths without a draft; they are spread evenly over the steps.
        amplified: Whether donors hold the side data that amplification needs.
    """
    last = len(sigmas) - 2
    count = min(limit, last)
    steps = sorted({last - round(n * (last - 1) / max(count - 1, 1)) for n in range(count)})
    depths = {f"{step} full": Depth(sigmas[step]) for step in steps}
    drafts = {
        f"{step} draft": Depth(sigmas[step], draft_sigma=sigmas[last]) for step in steps if step >= last - 1
    }
    contrast = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=CONTRAST)
    contrasts = {
        f"{step} contrast": Depth(sigmas[step], amplification=contrast) for step in steps if step >= last - 1
    }
    return depths | drafts | (contrasts if amplified else {})


def depends_on_seed(depth: Depth, sampler: str) -> bool:
    """Returns whether the seed of a request affects what a depth generates from a given donor."""
    return depth.draft_sigma is not None or sampler == "renoise"
