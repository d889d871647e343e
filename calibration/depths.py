"""Depths of reuse that a calibration measures."""

from __future__ import annotations

from collections.abc import Sequence

from services.scheduler.planning.calibration import Depth


def list_depths(sigmas: Sequence[float], limit: int) -> dict[str, Depth]:
    """Returns the depths to measure, by name: "2 full" continues the donor's x_2, "2 draft" a draft there.

    Each reuses every token. Regions and amplification are left out: their strengths must be tuned to a model
    first, and with the shipped model's host adapter contrast lowers alignment at the depth that saves most
    (`bench.shapes`, cells host_k3 and host_contrast_k3).

    Args:
        sigmas: Schedule of the model, N + 1 values.
        limit: Upper bound on the depths without a draft; they are spread evenly over the steps.
    """
    last = len(sigmas) - 2
    count = min(limit, last)
    steps = sorted({last - round(n * (last - 1) / max(count - 1, 1)) for n in range(count)})
    depths = {f"{step} full": Depth(sigmas[step]) for step in steps}
    drafts = {
        f"{step} draft": Depth(sigmas[step], draft_sigma=sigmas[last]) for step in steps if step >= last - 1
    }
    return depths | drafts


def depends_on_seed(depth: Depth, sampler: str) -> bool:
    """Returns whether the seed of a request affects what a depth generates from a given donor."""
    return depth.draft_sigma is not None or sampler == "renoise"
