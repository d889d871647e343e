"""Measures of what a video shows that its best fit does not explain: residue, artefacts, a donor's share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.shapes.world import MAX_OBJECTS
from models.shapes.yardstick.reader import Reading

# Contrasts are the largest difference of a channel over the full range, 0..1.
# A pixel whose residue has at least this contrast is part of an artefact. A ghost of contrast 0.1 must be
# found in spite of the codec, whose errors on renders hardly reach 0.05 outside of edges.
CONTRAST: Final = 0.06
MIN_AREA: Final = 14  # pixels of an artefact; less than the 20 that must be found, because edges hide a part


def compute_residue(reading: Reading) -> Tensor:
    """Computes what the best fit does not explain, [3, T, H, W] in [-1, 1] RGB, with sign.

    A pixel is explained if each channel is between the lowest and the highest value that the best fit in the
    video's own colours has within one pixel. So edges may be displaced by a pixel, or blurred.
    """
    fit = reading.adjusted_fit
    highest = F.max_pool2d(fit, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-fit, 3, stride=1, padding=1)
    return reading.video - torch.minimum(torch.maximum(reading.video, lowest), highest)


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of a video.

    Attributes:
        distance: Mean absolute difference to the best fit in the world's colours, over the full range.
        share: Share of pixels that are part of an artefact.
        area: Pixels of the largest connected artefact in one frame.
        surplus: Number of objects more than the video should show; a strong ghost is read as an object.
    """

    distance: float
    share: float
    area: int
    surplus: int

    @property
    def found(self) -> bool:
        """Returns whether the video has a visible artefact."""
        return self.area >= MIN_AREA or self.surplus > 0


def measure_artefacts(reading: Reading, count: int = MAX_OBJECTS) -> Artefacts:
    """Measures the distance to the best fit, and artefacts: connected regions that it does not explain.

    Args:
        reading: What the video shows.
        count: Number of objects that the video should show at most.
    """
    contrast = compute_residue(reading).abs().amax(0) / 2
    mask = contrast > CONTRAST
    # Regions of one frame: no connection between frames.
    structure = np.zeros((3, 3, 3))
    structure[1] = 1
    labels, number = ndimage.label(mask.numpy(), structure=structure)
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    areas[0] = 0
    large = areas >= MIN_AREA
    distance = float((reading.video - reading.best_fit).abs().mean()) / 2
    surplus = max(0, len(reading.objects) - count)
    return Artefacts(distance, float(large[labels].mean()), int(areas.max()), surplus)


def donor_share(residue: Tensor, donor: Tensor, best_fit: Tensor) -> float:
    """Computes the share of a residue's energy that a faint copy of the donor explains, 0..1.

    The residue is projected on what the donor's video would add to the best fit. 1 means that the residue is
    nothing but a ghost of the donor, of whatever opacity; 0 that it has nothing in common with the donor. A
    negative copy of the donor counts as 0.

    Args:
        residue: Result of `compute_residue`, [3, T, H, W].
        donor: Donor's video, [3, T, H, W].
        best_fit: Best fit of the video with the residue, [3, T, H, W].
    """
    ghost = donor - best_fit
    energy = float(residue.square().sum())
    product = max(0.0, float((residue * ghost).sum()))
    return min(1.0, product**2 / max(energy * float(ghost.square().sum()), 1e-12)) if energy else 0.0
