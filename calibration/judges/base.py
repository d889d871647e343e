"""Port of judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.rows import Score
from evaluation.pixels import Video
from evaluation.prompts import PromptCase


@dataclass(frozen=True)
class Shown:
    """A video as an mp4, and as frames at the model's own size, float32 [T, H, W, 3] in 0..255."""

    mp4: bytes
    frames: Video


@dataclass(frozen=True)
class Case:
    """A video to judge: the target in full, or at one depth.

    Attributes:
        target, donor: The two prompts; with scenes only if they are of the shipped model's world.
        shown: The video to judge.
        shown_donor: The donor's video.
        shown_full: The target's full computation, from the donor's seed.
    """

    target: PromptCase
    donor: PromptCase
    shown: Shown
    shown_donor: Shown
    shown_full: Shown


class Judge(ABC):
    """Scores videos. Deterministic: equal cases get equal scores.

    Attributes:
        name: Name of the judge, and everything that determines its scores.
    """

    name: str

    @abstractmethod
    def judge(self, case: Case) -> Score | None:
        """Returns what a video shows; None if this judge cannot tell. Raises ChorusError if it fails."""


def combine(scores: Sequence[Score]) -> Score:
    """Returns the worst that several judges found; of the layout, the least that any judge measured."""
    if not scores:
        raise ValueError("scores: must hold at least one")
    return Score(
        alignment=min(score.alignment for score in scores),
        donor=max(score.donor for score in scores),
        artefacts=max(score.artefacts for score in scores),
        layout=min((score.layout for score in scores if score.layout), default=0.0),
    )
