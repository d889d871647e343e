"""States, uses of the cache and classes of a generation by their names."""

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
Decision: TypeAlias = Literal["hit", "miss", "exact"]
DECISIONS: Final[Mapping[Decision, scheduler_pb2.CacheDecision.ValueType]] = {
    "hit": scheduler_pb2.CACHE_DECISION_HIT,
    "miss": scheduler_pb2.CACHE_DECISION_MISS,
    "exact": scheduler_pb2.CACHE_DECISION_EXACT,
}
PriorityName: TypeAlias = Literal["low", "normal", "high"]
PRIORITIES: Final[Mapping[PriorityName, scheduler_pb2.Priority.ValueType]] = {
    "low": scheduler_pb2.PRIORITY_LOW,
    "normal": scheduler_pb2.PRIORITY_NORMAL,
    "high": scheduler_pb2.PRIORITY_HIGH,
}
_PRIORITY_NAMES: Final = {number: name for name, number in PRIORITIES.items()}
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


def parse_decision(name: str | None) -> scheduler_pb2.CacheDecision.ValueType:
    """Returns the use of the cache called `name`; None and "" mean every one. Raises ChorusError."""
    if name is None or name == "":
        return scheduler_pb2.CACHE_DECISION_UNSPECIFIED
    if not isinstance(name, str) or name not in DECISIONS:
        raise invalid("decision", f"must be one of {', '.join(DECISIONS)}, not {name!r}")
    return DECISIONS[cast(Decision, name)]


def format_priority(priority: scheduler_pb2.Priority.ValueType) -> PriorityName:
    """Returns "low", "normal" or "high"; "normal" for a class that is unset, or newer than this client."""
    return _PRIORITY_NAMES.get(priority, "normal")


def parse_priority(name: str) -> scheduler_pb2.Priority.ValueType:
    """Returns the class called `name`. Raises ChorusError."""
    if not isinstance(name, str) or name not in PRIORITIES:
        raise invalid("priority", f"must be one of {', '.join(PRIORITIES)}, not {name!r}")
    return PRIORITIES[cast(PriorityName, name)]
