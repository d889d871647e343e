"""Judge by the full computation of the same seed; needs no other model.

An edit changes some pixels from the donor's video to the target's full computation. Where they differ
visibly, a video that reuses the donor is nearer to one or to the other. The share of these pixels in which it
is nearer to the full computation is its alignment, the rest follows the donor. A hit that shows the request
elsewhere than the full computation does counts as wrong, so this judge is stricter than one that reads the
video.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from calibration.judges.base import Case, Judge
from calibration.rows import Score
from evaluation.pixels import Video

# Difference, in levels of 255, from which on two pixels differ visibly; the codec changes fewer.
VISIBLE: Final = 24.0
# Side of the square over which pixels are averaged before they are compared, in pixels.
_WINDOW: Final = 3


class ReferenceJudge(Judge):
    name = f"reference: nearer to the full computation or to the donor, pixels that differ by {VISIBLE:g}"

    def judge(self, case: Case) -> Score:
        """Returns the shares of the changed pixels; alignment 1 if the two references do not differ."""
        shown, donor, full = (_smooth(v.frames) for v in (case.shown, case.shown_donor, case.shown_full))
        changed = _distance(donor, full) > VISIBLE
        to_full, to_donor = _distance(shown, full), _distance(shown, donor)
        kept = ~changed
        layout = float((to_donor[kept] <= VISIBLE).mean()) if kept.any() else 0.0
        if not changed.any():
            aligned = float((to_full <= VISIBLE).mean())
            return Score(aligned, 0.0, layout=layout)
        aligned = float((to_full[changed] < to_donor[changed]).mean())
        return Score(aligned, 1.0 - aligned, layout=layout)


def _smooth(video: Video) -> Video:
    smoothed: Video = uniform_filter(video, size=(1, _WINDOW, _WINDOW, 1))
    return smoothed


def _distance(one: Video, other: Video) -> NDArray[np.float32]:
    """Returns the largest difference over the colours, [T, H, W]."""
    distance: NDArray[np.float32] = np.abs(one - other).max(axis=-1)
    return distance
