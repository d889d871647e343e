"""What a user found wrong with a video: from plain arguments to the contract's request, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, Self, TypeAlias, cast

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.errors import Violations

from chorus_client.search import check_text

ReportedProblem: TypeAlias = Literal[
    "donor_visible", "prompt_not_followed", "broken_picture", "broken_motion", "other", "unknown"
]
REPORTED_PROBLEMS: Final[Mapping[ReportedProblem, scheduler_pb2.ReportedProblem.ValueType]] = {
    "donor_visible": scheduler_pb2.REPORTED_PROBLEM_DONOR_VISIBLE,
    "prompt_not_followed": scheduler_pb2.REPORTED_PROBLEM_PROMPT_NOT_FOLLOWED,
    "broken_picture": scheduler_pb2.REPORTED_PROBLEM_BROKEN_PICTURE,
    "broken_motion": scheduler_pb2.REPORTED_PROBLEM_BROKEN_MOTION,
    "other": scheduler_pb2.REPORTED_PROBLEM_OTHER,
}
_NAMES: Final = {number: name for name, number in REPORTED_PROBLEMS.items()}


@dataclass(frozen=True)
class ProblemReport:
    """What a user found wrong with a video.

    Attributes:
        problem: "donor_visible", "prompt_not_followed", "broken_picture", "broken_motion" or "other";
            "unknown" for one newer than this client.
        comment: at most 1,000 bytes of printable text; may be empty.
        time: when it was stored, in UTC.
    """

    problem: ReportedProblem
    comment: str
    time: datetime

    @classmethod
    def from_proto(cls, message: scheduler_pb2.ProblemReport) -> Self:
        problem = _NAMES.get(message.problem, "unknown")
        return cls(problem, message.comment, message.report_time.ToDatetime(tzinfo=UTC))


def build_report_request(
    generation_id: str, problem: str, comment: str
) -> scheduler_pb2.ReportGenerationRequest:
    """Builds the request of a report. Raises ChorusError (INVALID_FIELD); the server checks the bounds."""
    violations = Violations()
    known = isinstance(problem, str) and problem in REPORTED_PROBLEMS
    violations.require(known, "problem", f"must be one of {', '.join(REPORTED_PROBLEMS)}, not {problem!r}")
    text = check_text(violations, "comment", comment)
    violations.raise_if_any()
    return scheduler_pb2.ReportGenerationRequest(
        generation_id=generation_id,
        problem=REPORTED_PROBLEMS[cast(ReportedProblem, problem)],
        comment=text,
    )
