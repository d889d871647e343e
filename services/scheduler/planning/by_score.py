"""Plans by a table of similarities, for models without a calibration and prompts that were not compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.calibration import Policy
from services.scheduler.planning.edits import NEVER_REUSED, OPENING
from services.scheduler.planning.plans import (
    OWN_VIDEO,
    Donor,
    Plan,
    Reason,
    Request,
    by_similarity,
    compute_in_full,
    decline_seed,
    explain_edit,
)

# Score at and above which this share of the steps is reused, best first. Text similarity alone is a coarse
# guide: with MiniLM a changed word of motion or size scores up to 0.993, a changed colour about 0.83, a true
# paraphrase down to 0.65. So only near-identical prompts are reused deeply; all others stay shallow.
TABLE: Mapping[Policy, tuple[tuple[float, float], ...]] = {
    "off": (),
    "safe": ((0.999, 0.5), (0.80, 0.25)),
    "balanced": ((0.999, 0.75), (0.75, 0.25)),
    "fast": ((0.999, 0.75), (0.75, 0.5), (0.60, 0.25)),
}
# Upper bound on that share for edits that open something: beyond it nothing is left to decide where it is.
_MAX_OPENING_SHARE = 0.5


def plan_by_score(request: Request, donors: Sequence[Donor]) -> Plan:
    """Returns the plan with the deepest reuse by the table, among equals with the most similar donor."""
    # Without a calibration it is not known how far the seed matters at any depth.
    continued = [donor for donor in donors if not request.asks_for_own_video(donor)]
    if not continued:
        return decline_seed(request, max(donors, key=by_similarity))
    policy = request.policy
    comparable = [donor for donor in continued if donor.edit is None or donor.edit.kind not in NEVER_REUSED]
    if not comparable:
        return _decline_edit(request, max(continued, key=by_similarity))
    most_similar = max(comparable, key=by_similarity)
    lowest = TABLE[policy][-1][0]
    if most_similar.score < lowest:
        return compute_in_full(
            request.total_steps,
            plan_pb2.PLAN_REASON_CODE_SCORE_TOO_LOW,
            f"the best donor's similarity {most_similar.score:.3f} is below {lowest:.2f},"
            f" the minimum of {policy!r}",
        )
    best = max(comparable, key=lambda donor: (_reusable_steps(request, donor), *by_similarity(donor)))
    reuse_steps, allowed = _reusable_steps(request, best), _allowed_steps(request, best)
    reasons = [_explain_table(request, best, allowed)]
    if best.edit is not None and best.edit.kind in OPENING:
        reasons.insert(0, explain_edit(best.edit))
    if reuse_steps < allowed:
        reasons.append(
            Reason(
                plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED,
                f"the donor holds no latents after step {allowed};"
                + (
                    f" those after step {reuse_steps} are reused"
                    if reuse_steps
                    else " nor after an earlier one"
                ),
            )
        )
    return Plan(
        total_steps=request.total_steps,
        reuse_steps=reuse_steps,
        donor=best if reuse_steps else None,
        reasons=tuple(reasons),
        predicted_seconds_saved=reuse_steps * request.seconds_per_step,
    )


def _decline_edit(request: Request, nearest: Donor) -> Plan:
    """Returns the plan without reuse for a request that no donor resembles, whatever its similarity."""
    assert nearest.edit is not None
    declined = compute_in_full(
        request.total_steps,
        plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH,
        f"edits of the kind {nearest.edit.kind!r} are not reused, whatever the similarity, here"
        f" {nearest.score:.3f}",
    )
    return replace(declined, reasons=(explain_edit(nearest.edit), *declined.reasons))


def why_not_by_score(request: Request, donor: Donor, chosen: Plan) -> str:
    """Returns why a donor was not chosen, in words."""
    if request.asks_for_own_video(donor):
        return OWN_VIDEO
    if donor.edit is not None and donor.edit.kind in NEVER_REUSED:
        return f"edits of the kind {donor.edit.kind!r} are not reused"
    steps = _reusable_steps(request, donor)
    if steps < _allowed_steps(request, donor):
        return f"it holds latents for {steps} reused steps only"
    if chosen.donor is None or steps < chosen.reuse_steps:
        return f"its similarity allows {steps} reused steps"
    return "it allows as much, but is less similar"


def _allowed_share(policy: Policy, donor: Donor) -> float:
    """Returns the share of the steps that the table allows to reuse, 0 to 1."""
    share = next((share for threshold, share in TABLE[policy] if donor.score >= threshold), 0.0)
    opens = donor.edit is not None and donor.edit.kind in OPENING
    return min(share, _MAX_OPENING_SHARE) if opens else share


def _allowed_steps(request: Request, donor: Donor) -> int:
    """Returns the largest K1 that the table and the request allow."""
    return min(math.floor(_allowed_share(request.policy, donor) * request.total_steps), request.deepest)


def _reusable_steps(request: Request, donor: Donor) -> int:
    """Returns the deepest cached step boundary that the table allows; 0 if the donor has none."""
    allowed = _allowed_steps(request, donor)
    return max((step for step in donor.steps if 1 <= step <= allowed), default=0)


def _explain_table(request: Request, donor: Donor, allowed: int) -> Reason:
    share = _allowed_share(request.policy, donor)
    cap = f"; the request allows {request.deepest}" if request.max_reuse_steps else ""
    return Reason(
        plan_pb2.PLAN_REASON_CODE_SCORE_TABLE,
        f"similarity {donor.score:.3f} allows {request.policy!r} to reuse {share:.0%} of the steps{cap}:"
        f" {allowed} of {request.total_steps}",
    )
