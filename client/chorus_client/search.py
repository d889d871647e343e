"""Labels, and the conditions of a list: from plain arguments to the contract's request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.errors import Violations

from chorus_client.states import parse_decision, parse_state


def check_text(violations: Violations, field: str, value: str) -> str:
    """Returns `value`; empty, with a violation, if protobuf cannot carry it."""
    if not violations.require(isinstance(value, str), field, f"must be text, not {value!r}"):
        return ""
    # Half of a surrogate pair, as in an argument of the command line that is not UTF-8.
    legal = not any("\ud800" <= character <= "\udfff" for character in value)
    return value if violations.require(legal, field, "must be UTF-8") else ""


def check_labels(violations: Violations, labels: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the labels that protobuf can carry; the server checks their bounds."""
    if labels is None or not violations.require(
        isinstance(labels, Mapping), "labels", f"must be a mapping of text to text, not {labels!r}"
    ):
        return {}
    return {
        check_text(violations, "labels", key): check_text(violations, f"labels[{key!r}]", value)
        for key, value in labels.items()
    }


def build_list_request(
    state: str | None,
    labels: Mapping[str, str] | None,
    prompt_contains: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    *,
    model: str | None = None,
    decision: str | None = None,
    edit: str | None = None,
    reported: bool = False,
    donor: str | None = None,
) -> scheduler_pb2.ListGenerationsRequest:
    """Builds the request of a list. Raises ChorusError (INVALID_FIELD); the server checks the bounds."""
    violations = Violations()
    request = scheduler_pb2.ListGenerationsRequest(
        state=parse_state(state),
        labels=check_labels(violations, labels),
        decision=parse_decision(decision),
        model_id="" if model is None else check_text(violations, "model", model),
        edit_kind="" if edit is None else check_text(violations, "edit", edit),
        donor_generation_id="" if donor is None else check_text(violations, "donor", donor),
    )
    if violations.require(isinstance(reported, bool), "reported", f"must be True or False, not {reported!r}"):
        request.reported = reported
    if prompt_contains is not None:
        request.prompt_contains = check_text(violations, "prompt_contains", prompt_contains)
    for field, moment, timestamp in (
        ("created_after", created_after, request.created_after),
        ("created_before", created_before, request.created_before),
    ):
        if moment is not None and violations.require(
            isinstance(moment, datetime) and moment.tzinfo is not None,
            field,
            f"must be a datetime with a time zone, such as datetime.now(UTC), not {moment!r}",
        ):
            timestamp.FromDatetime(moment)
    violations.raise_if_any()
    return request


def check_order(after: str | None, oldest_first: bool) -> bool:
    """Returns `oldest_first`. Raises ChorusError (INVALID_FIELD) for arguments of another type."""
    violations = Violations()
    if after is not None:
        check_text(violations, "after", after)
    violations.require(
        isinstance(oldest_first, bool), "oldest_first", f"must be True or False, not {oldest_first!r}"
    )
    violations.raise_if_any()
    return oldest_first
