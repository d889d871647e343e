"""Labels of a request, and the filters of a list. All functions are pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import Violation
from chorus_rpc.limits import (
    LABEL_KEY_PATTERN,
    MAX_ID_CHARACTERS,
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_PROMPT_FILTER_BYTES,
)
from google.protobuf.timestamp_pb2 import Timestamp

from services.contract.edits import EDIT_KINDS
from services.scheduler.jobs.deadline import is_valid_timestamp, to_unix_seconds
from services.scheduler.jobs.job_filter import Decision, JobFilter
from services.scheduler.jobs.states import State

_SHOWN_CHARACTERS = 64


def check_labels(labels: Mapping[str, str], field: str) -> list[Violation]:
    """Returns the violations of labels; the field of each names the key, such as spec.labels["key"]."""
    if len(labels) > MAX_LABELS:
        return [Violation(field, f"must have at most {MAX_LABELS} labels, not {len(labels)}")]
    violations = []
    for key, value in sorted(labels.items()):
        named = f"{field}[{json.dumps(key[:_SHOWN_CHARACTERS])}]"
        if re.fullmatch(LABEL_KEY_PATTERN, key) is None:
            violations.append(
                Violation(
                    named,
                    "its key must have 1 to 63 characters of A–Z, a–z, 0–9, '.', '_' and '-', and begin and"
                    f" end with a letter or digit; this one has {len(key)} characters",
                )
            )
        violations += check_text(value, named, MAX_LABEL_BYTES)
    return violations


def check_text(value: str, field: str, max_bytes: int) -> list[Violation]:
    """Returns the violation of a text that is too long, or has characters that cannot be printed."""
    if (size := len(value.encode())) > max_bytes:
        return [Violation(field, f"must have at most {max_bytes:,} bytes of UTF-8, not {size:,}")]
    position = next((place for place, each in enumerate(value) if not each.isprintable()), None)
    if position is None:
        return []
    return [
        Violation(
            field,
            f"must consist of printable characters; remove U+{ord(value[position]):04X} at position"
            f" {position + 1}",
        )
    ]


def parse_filter(request: pb.ListGenerationsRequest) -> JobFilter:
    """Returns the conditions of a list. Raises INVALID_FIELD with every invalid filter."""
    violations = check_labels(request.labels, "labels")
    if request.state not in pb.GenerationState.values():
        violations.append(
            Violation("state", f"must be one of {', '.join(pb.GenerationState.keys())}, not {request.state}")
        )
    if (size := len(request.prompt_contains.encode())) > MAX_PROMPT_FILTER_BYTES:
        violations.append(
            Violation(
                "prompt_contains", f"must have at most {MAX_PROMPT_FILTER_BYTES} bytes of UTF-8, not {size}"
            )
        )
    if "\0" in request.prompt_contains:
        violations.append(Violation("prompt_contains", "must not contain U+0000"))
    for name, identifier in (
        ("model_id", request.model_id),
        ("donor_generation_id", request.donor_generation_id),
    ):
        if (size := len(identifier)) > MAX_ID_CHARACTERS:
            bound = f"must have at most {MAX_ID_CHARACTERS} characters, not {size}"
            violations.append(Violation(name, bound))
        elif not identifier.isprintable():
            violations.append(Violation(name, "must consist of printable characters"))
    if request.decision not in pb.CacheDecision.values():
        names = ", ".join(pb.CacheDecision.keys())
        violations.append(Violation("decision", f"must be one of {names}, not {request.decision}"))
    if request.edit_kind and request.edit_kind not in EDIT_KINDS:
        found = request.edit_kind[:_SHOWN_CHARACTERS]
        violations.append(Violation("edit_kind", f"must be one of {', '.join(EDIT_KINDS)}, not {found!r}"))
    after = _parse_time(request, "created_after", violations)
    before = _parse_time(request, "created_before", violations)
    if after is not None and before is not None and before <= after:
        violations.append(Violation("created_before", "must be later than created_after"))
    if request.after_generation_id and request.page_token:
        violations.append(
            Violation("after_generation_id", "must be empty with page_token, which continues a list")
        )
    if violations:
        raise errors.invalid_fields(violations)
    return JobFilter(
        state=State(request.state) if request.state else None,
        labels=dict(request.labels),
        prompt=request.prompt_contains,
        created_after=after,
        created_before=before,
        oldest_first=request.oldest_first,
        model_id=request.model_id,
        decision=Decision(request.decision),
        edit=request.edit_kind,
        reported=request.reported,
        donor=request.donor_generation_id,
    )


def _parse_time(request: pb.ListGenerationsRequest, field: str, violations: list[Violation]) -> float | None:
    """Returns a bound in Unix seconds; None if it is unset or invalid."""
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    timestamp: Timestamp = getattr(request, field)
    if not is_valid_timestamp(timestamp):
        violations.append(Violation(field, "must be a time between the years 1 and 9999"))
        return None
    return to_unix_seconds(timestamp)
