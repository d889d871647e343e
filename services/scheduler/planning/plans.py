"""Plans, and what they are made from: a request and its donors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chorus.common.v1 import latents_pb2, plan_pb2

from services.scheduler.planning.calibration import Policy
from services.scheduler.planning.edits import Edit

# Why a donor is not reused by a request that asks for another video than its own.
OWN_VIDEO: Final = "it leads to its own video, and the request asks for another one"


@dataclass(frozen=True)
class Donor:
    """Entry found in the cache.

    Attributes:
        score: cosine of the two retrieval vectors.
        steps: indices of the step boundaries whose latents are cached.
        side_data: whether the entry holds attention maps and token states.
        edit: difference between the target and the entry; None if unknown.
        seed: seed of the request that produced the entry; None if unknown.
        approximation: request that the entry answers, if its result reused a donor itself; such an entry is
            no donor for other requests.
    """

    entry_id: str
    score: float
    steps: frozenset[int]
    prompt: str = ""
    traceparent: str = ""
    generation_id: str = ""
    side_data: bool = False
    edit: Edit | None = None
    seed: int | None = None
    approximation: latents_pb2.Approximation | None = None

    def holds(self, boundaries: range, side_data: bool) -> bool:
        """Returns whether the entry has the latents of `boundaries`, and side data if `side_data` is true."""
        return self.steps.issuperset(boundaries) and (self.side_data or not side_data)


@dataclass(frozen=True)
class Request:
    """What the planner knows of a request.

    Attributes:
        sigmas: the schedule, N + 1 values.
        seconds_per_step: seconds of a full step of the model at this shape; 0 if unknown.
        seed: seed that the request states; None if it states none.
        max_reuse_steps: upper bound on K1; 0 for none.
    """

    policy: Policy
    sigmas: Sequence[float]
    seconds_per_step: float
    seed: int | None = None
    prompt: str = ""
    max_reuse_steps: int = 0

    @property
    def total_steps(self) -> int:
        """N, the number of steps."""
        return len(self.sigmas) - 1

    @property
    def deepest(self) -> int:
        """Upper bound on K1: at least one step is computed."""
        limit = self.total_steps - 1
        return min(limit, self.max_reuse_steps) if self.max_reuse_steps else limit

    def has_seed_of(self, donor: Donor) -> bool:
        """Returns whether the request states the donor's seed."""
        return self.seed is not None and donor.seed == self.seed

    def asks_for_own_video(self, donor: Donor) -> bool:
        """Returns whether the request asks for another video than the one that a donor's noise leads to."""
        if self.seed is not None:
            return donor.seed != self.seed
        same = donor.edit is not None and donor.edit.kind == "same"
        return same or donor.prompt == self.prompt != ""


@dataclass(frozen=True)
class Reason:
    code: plan_pb2.PlanReasonCode.ValueType
    text: str


@dataclass(frozen=True)
class PassedOver:
    """A donor that is not reused, and why."""

    donor: Donor
    reason: str


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        reuse_steps: K1; 0 if and only if `donor` is None, `total_steps` for an exact repeat.
        region_end: K2; 0 without a stage 2.
        renoised: whether the run starts from the donor's clean latents, noised again to the level of step K1.
        draft_step: step that is computed first, as a draft that is noised again to the level of step K1; 0
            without a draft.
        predicted_seconds_saved: predicted saving, in seconds; 0 while the seconds of a step are unknown.
        predicted_drift_points: predicted drift, in percentage points; None without a calibration.
        computed_steps: predicted computation, in full steps; 0 if it is not predicted.
        passed_over: the other donors, the most similar first.
    """

    total_steps: int
    reuse_steps: int
    donor: Donor | None
    reasons: tuple[Reason, ...]
    predicted_seconds_saved: float
    region_end: int = 0
    region: plan_pb2.RegionPlan | None = None
    amplification: plan_pb2.Amplification | None = None
    predicted_drift_points: float | None = None
    renoised: bool = False
    draft_step: int = 0
    computed_steps: float = 0.0
    passed_over: tuple[PassedOver, ...] = ()


def compute_in_full(total_steps: int, code: plan_pb2.PlanReasonCode.ValueType, text: str) -> Plan:
    """Returns the plan that computes every step, with its reason."""
    return Plan(total_steps, 0, None, (Reason(code, text),), 0.0)


def decline_seed(request: Request, nearest: Donor) -> Plan:
    """Returns the plan without reuse for a request that asks for a video of its own."""
    theirs = "of unknown seed" if nearest.seed is None else f"of seed {nearest.seed}"
    if request.seed is None:
        text = (
            f"the same prompt was computed before, {theirs}; without a seed it asks for another video, and"
            " no depth that the policy allows gives one"
        )
    else:
        text = (
            f"the most similar donor is {theirs}, and every depth that the policy allows gives its video for"
            f" seed {request.seed} as well; state its seed, or none, to reuse it"
        )
    return compute_in_full(request.total_steps, plan_pb2.PLAN_REASON_CODE_OTHER_SEED, text)


def explain_edit(edit: Edit) -> Reason:
    """Returns the reason that names the kind of edit, and the words gained and lost."""
    return Reason(
        plan_pb2.PLAN_REASON_CODE_EDIT,
        f"compared with the donor's prompt, the target {edit.words}: {edit.kind}",
    )


def by_similarity(donor: Donor) -> tuple[float, str]:
    """Returns a sort key; the id breaks ties, so that a plan does not depend on the order of the donors."""
    return donor.score, donor.entry_id
