"""Conditions of a search for jobs, and what a job's generation contributes to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.states import State


class Decision(IntEnum):
    """How a job uses the cache, with its number in the public API."""

    NONE = pb.CACHE_DECISION_UNSPECIFIED
    HIT = pb.CACHE_DECISION_HIT
    MISS = pb.CACHE_DECISION_MISS
    EXACT = pb.CACHE_DECISION_EXACT


@dataclass(frozen=True)
class JobFilter:
    """Conditions of a search, all of which a job must meet.

    Attributes:
        state: its state; None for every state.
        labels: labels that it must have, with these values.
        prompt: text that its prompt must contain, compared without regard to case; empty for every prompt.
        created_after: earliest time of its acceptance, in Unix seconds; None for no bound.
        created_before: time before which it was accepted, in Unix seconds; None for no bound.
        oldest_first: whether the list begins with the job that was accepted first.
        model_id: its model; empty for every model.
        decision: its use of the cache; NONE for every one.
        edit: kind of the edit of its plan; empty for every one.
        reported: whether it must have a report.
        donor: id of the generation whose steps it takes; empty for every job.
    """

    state: State | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    created_after: float | None = None
    created_before: float | None = None
    oldest_first: bool = False
    model_id: str = ""
    decision: Decision = Decision.NONE
    edit: str = ""
    reported: bool = False
    donor: str = ""


def find_decision(generation: pb.Generation) -> Decision:
    """Returns how a generation uses the cache: as planned, or as it did once it has succeeded; NONE without
    a plan.
    """
    if not generation.HasField("plan"):
        return Decision.NONE
    plan = generation.plan
    # A donor that was planned but could not be fetched is a miss.
    donor = generation if generation.state == pb.GENERATION_STATE_SUCCEEDED else plan
    if not donor.HasField("donor") or not plan.reuse_steps:
        return Decision.MISS
    return Decision.EXACT if plan.reuse_steps == plan.total_steps else Decision.HIT


def find_donor(generation: pb.Generation) -> str:
    """Returns the id of the generation whose steps a generation takes, as `find_decision` counts it; empty
    for none. NUL, which PostgreSQL cannot store, is left out.
    """
    if find_decision(generation) in (Decision.NONE, Decision.MISS):
        return ""
    succeeded = generation.state == pb.GENERATION_STATE_SUCCEEDED
    return (generation if succeeded else generation.plan).donor.generation_id.replace("\0", "")
