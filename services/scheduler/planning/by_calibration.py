"""Plans by a calibration: the deepest reuse whose measured cost the policy allows for the kind of edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.calibration import LIMITS, MIN_DIVERSITY, Calibration, Row
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


def plan_by_calibration(request: Request, donors: Sequence[Donor], calibration: Calibration) -> Plan:
    """Returns the plan that saves most among the measured rows within the policy's limit."""
    sigmas, total_steps = request.sigmas, request.total_steps
    options = [(donor, row) for donor in donors for row in _allowed(request, donor, calibration)]
    followed = [(donor, row) for donor, row in options if _follows_seed(request, donor, row)]
    if options and not followed:
        return decline_seed(request, max((donor for donor, _ in options), key=by_similarity))
    usable = [(donor, row) for donor, row in followed if _holds(request, donor, row)]
    if not usable:
        return _decline(request, donors, calibration, bool(options))

    def rank(option: tuple[Donor, Row]) -> tuple[float, bool, float, bool, float, str]:
        donor, row = option
        computed = row.computed_steps(sigmas)
        # Amplification is worth its time, a twentieth of a step, only where it saves steps.
        plain = row.depth.amplification is None
        return -computed, plain, -row.drift_points, request.has_seed_of(donor), *by_similarity(donor)

    donor, row = max(usable, key=rank)
    assert donor.edit is not None
    reuse_steps = row.depth.reuse_steps(sigmas)
    computed = row.computed_steps(sigmas)
    return Plan(
        total_steps=total_steps,
        reuse_steps=reuse_steps,
        donor=donor,
        reasons=(explain_edit(donor.edit), _explain_row(request, row, reuse_steps, computed)),
        predicted_seconds_saved=(total_steps - computed) * request.seconds_per_step,
        region_end=total_steps if row.depth.region else 0,
        region=row.depth.region,
        amplification=row.depth.amplification,
        predicted_drift_points=row.drift_points,
        draft_step=row.depth.draft_step(sigmas),
        computed_steps=computed,
    )


def why_not_by_calibration(request: Request, donor: Donor, calibration: Calibration, chosen: Plan) -> str:
    """Returns why a donor was not chosen, in words."""
    if donor.edit is None:
        return "its prompt was not compared"
    rows = _allowed(request, donor, calibration)
    if not rows:
        return f"{request.policy!r} allows no depth for edits of the kind {donor.edit.kind!r}"
    rows = [row for row in rows if _follows_seed(request, donor, row)]
    if not rows:
        return OWN_VIDEO
    rows = [row for row in rows if _holds(request, donor, row)]
    if not rows:
        return "it does not hold the latents or the side data that the allowed depths require"
    computed = min(row.computed_steps(request.sigmas) for row in rows)
    least = chosen.computed_steps
    if computed > least:
        return f"{computed:.2f} steps' worth would be computed, with the chosen donor {least:.2f}"
    return "it allows as much, but the chosen donor drifts less, has the request's seed or is more similar"


def _allowed(request: Request, donor: Donor, calibration: Calibration) -> list[Row]:
    """Returns the rows that the policy and the request allow for a donor."""
    if donor.edit is None:
        return []
    return [
        row
        for row in calibration.allowed(donor.edit.kind, request.policy)
        # On a short schedule a draft may cost as much as it saves.
        if 0 < row.depth.reuse_steps(request.sigmas) <= request.deepest
        and row.computed_steps(request.sigmas) < request.total_steps
    ]


def _follows_seed(request: Request, donor: Donor, row: Row) -> bool:
    """Returns whether a depth gives the video that the request's seed asks for."""
    return row.diversity >= MIN_DIVERSITY or not request.asks_for_own_video(donor)


def _holds(request: Request, donor: Donor, row: Row) -> bool:
    return donor.holds(row.depth.donor_boundaries(request.sigmas), row.depth.needs_side_data)


def _decline(request: Request, donors: Sequence[Donor], calibration: Calibration, allowed: bool) -> Plan:
    """Returns the plan without reuse, with the reason that concerns the most similar donor.

    Args:
        allowed: whether the policy allows any depth for the edits at all.
    """
    nearest = max((donor for donor in donors if donor.edit), key=by_similarity)
    assert nearest.edit is not None
    kind = nearest.edit.kind
    if allowed:
        code = plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED
        text = "no donor holds the latents or the side data that the allowed depths require"
    elif not calibration.covers(kind):
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = f"no measurement exists for edits of the kind {kind!r}, so they are not reused"
    else:
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = (
            f"no depth measured for edits of the kind {kind!r} stays within what {request.policy!r} allows:"
            f" {_describe_limit(request)}"
        )
    declined = compute_in_full(request.total_steps, code, text)
    return replace(declined, reasons=(explain_edit(nearest.edit), *declined.reasons))


def _explain_row(request: Request, row: Row, reuse_steps: int, computed: float) -> Reason:
    then = "computing the region that differs" if row.depth.region else "computing in full"
    if row.depth.draft_sigma is not None:
        then = f"computing a draft, noising it again and {then}"
    if row.depth.amplification is not None:
        then += ", amplified"
    return Reason(
        plan_pb2.PLAN_REASON_CODE_CALIBRATION,
        f"reusing {reuse_steps} of {request.total_steps} steps, then {then}: {computed:.2f} steps' worth;"
        f" measured for this kind of edit: drift {row.drift_points:+.1f} points,"
        f" alignment {-row.alignment_loss_points:+.1f}, artefacts {row.artefact_points:+.1f} of the pixels,"
        f" layout kept in {row.layout_kept:.0%} (n = {row.n});"
        f" {request.policy!r} allows {_describe_limit(request)}",
    )


def _describe_limit(request: Request) -> str:
    limit = LIMITS[request.policy]
    cap = f", and the request at most {request.deepest} reused steps" if request.max_reuse_steps else ""
    return (
        f"{limit.points:g} points of drift and of lost alignment, {limit.artefact_points:g} of the pixels in"
        f" artefacts{cap}"
    )
