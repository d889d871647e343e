"""Judges by the text of an option."""

from __future__ import annotations

from pathlib import Path

from chorus_rpc.errors import invalid

from calibration import JUDGES
from calibration.judges.base import Judge
from calibration.judges.clip import ClipJudge
from calibration.judges.external import CommandJudge
from calibration.judges.reference import ReferenceJudge
from calibration.judges.world import WorldJudge


def parse_judge(text: str) -> Judge:
    """Returns the judge that a text names. Raises ChorusError (INVALID_FIELD)."""
    kind, colon, argument = text.partition(":")
    match kind, bool(colon and argument.strip()):
        case "reference", False:
            return ReferenceJudge()
        case "world", False:
            return WorldJudge()
        case "clip", True:
            return ClipJudge(Path(argument))
        case "command", True:
            return CommandJudge(argument)
    raise invalid("judge", f"must be one of {JUDGES}, not {text!r}")
