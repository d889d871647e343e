"""States of a generation by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, cast

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.errors import invalid

State: TypeAlias = Literal["queued", "waiting", "running", "succeeded", "failed", "cancelled", "unknown"]
STATES: Final[Mapping[State, scheduler_pb2.GenerationState.ValueType]] = {
    "queued": scheduler_pb2.GENERATION_STATE_QUEUED,
    "waiting": scheduler_pb2.GENERATION_STATE_WAITING,
    "running": scheduler_pb2.GENERATION_STATE_RUNNING,
    "succeeded": scheduler_pb2.GENERATION_STATE_SUCCEEDED,
    "failed": scheduler_pb2.GENERATION_STATE_FAILED,
    "cancelled": scheduler_pb2.GENERATION_STATE_CANCELLED,
}
_STATE_NAMES: Final = {number: name for name, number in STATES.items()}
FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})


def format_state(state: scheduler_pb2.GenerationState.ValueType) -> State:
    """Returns "queued", "running", …; "unknown" for a state newer than this client."""
    return _STATE_NAMES.get(state, "unknown")


def parse_state(name: str | None) -> scheduler_pb2.GenerationState.ValueType:
    """Returns the state called `name`; None and "" mean every state. Raises ChorusError."""
    if name is None or name == "":
        return scheduler_pb2.GENERATION_STATE_UNSPECIFIED
    if not isinstance(name, str) or name not in STATES:
        raise invalid("state", f"must be one of {', '.join(STATES)}, not {name!r}")
    return STATES[cast(State, name)]
