"""Judge of the shipped model's world: reads the scene that a video shows."""

from __future__ import annotations

from calibration.judges.base import Case, Judge, Shown
from calibration.rows import Score
from evaluation.quality import inspect, read_video
from evaluation.scenes import judge
from models.shapes.yardstick.reader import Reading


class WorldJudge(Judge):
    name = "world: the scene that the shipped model's analyzer reads"

    def __init__(self) -> None:
        self._donor: tuple[bytes, Reading | None] = b"", None  # of the latest case: each has several videos

    def judge(self, case: Case) -> Score | None:
        """Returns None for prompts without scenes, and for videos of another shape than the world's."""
        target, donor = case.target.scene, case.donor.scene
        if target is None or donor is None:
            return None
        reading, shown_donor = read_video(case.shown.frames), self._read_donor(case.shown_donor)
        if reading is None or shown_donor is None:
            return None
        verdict = judge(reading.scene, target, donor)
        quality = inspect(reading, target, shown_donor, donor)
        return Score(
            alignment=float(verdict.right["all"]),
            donor=float(any(verdict.followed.values())),
            artefacts=quality.artefact_share,
            layout=float(quality.layout["all"]),
        )

    def _read_donor(self, shown: Shown) -> Reading | None:
        if self._donor[0] != shown.mp4:
            self._donor = shown.mp4, read_video(shown.frames)
        return self._donor[1]
