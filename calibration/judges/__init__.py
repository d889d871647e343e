"""Judges of videos: what each shows, against its prompt and its donor's."""

from calibration.judges.base import Case, Judge
from calibration.judges.clip import ClipJudge
from calibration.judges.external import CommandJudge
from calibration.judges.parse import parse_judge
from calibration.judges.reference import ReferenceJudge
from calibration.judges.world import WorldJudge

__all__ = [
    "Case",
    "ClipJudge",
    "CommandJudge",
    "Judge",
    "ReferenceJudge",
    "WorldJudge",
    "parse_judge",
]
