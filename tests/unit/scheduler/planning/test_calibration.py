"""Verifies calibrations: their JSON form, the shipped file, and the plans that follow from their rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.plan_bounds import DEFAULT_REGION
from hypothesis import given
from hypothesis import strategies as st

from services.contract.edits import EditKind
from services.contract.identity import served_digest
from services.contract.schedule import shifted_schedule
from services.scheduler.planning.calibration import (
    LIMITS,
    Calibration,
    Depth,
    Policy,
    Row,
)
from services.scheduler.planning.calibration_files import (
    load_calibrations,
    load_shipped,
    parse_calibration,
    read_calibration,
    to_plain,
)
from services.scheduler.planning.edits import Edit
from services.scheduler.planning.explicit import plan_explicit
from services.scheduler.planning.plan_message import choose_seed, to_message
from services.scheduler.planning.planner import plan
from services.scheduler.planning.plans import Donor, Plan

CONTRAST = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=0.5)
SIGMAS = shifted_schedule(4, 5.0)
ALL = frozenset(range(1, 5))


def make_row(
    edit: EditKind, depth: Depth, computed: float, drift: float, loss: float, error: float, n: int
) -> Row:
    """Returns a row without artefacts."""
    return Row(edit, depth, computed, drift, loss, error, 0.0, 0.1, 0.9, 0.0, n)


SHALLOW = make_row("colour", Depth(0.9375), 1.0, 0.0, 0.0, 0.0, 100)
REGION = make_row("colour", Depth(0.9375, DEFAULT_REGION), 0.3, 5.5, 0.5, 0.5, 100)
DEEP = make_row("colour", Depth(0.625, DEFAULT_REGION, CONTRAST), 0.4, 8.0, 2.0, 1.0, 100)
DIGEST = "ab" * 32
HEAD = {"model_id": "model", "served_digest": DIGEST}
COLOURS = Calibration("model", (SHALLOW, REGION, DEEP))
VARIED = replace(make_row("colour", Depth(0.8333, draft_sigma=0.625), 1.0, 0.0, 0.0, 0.0, 9), diversity=0.7)
DRAFT = make_row("colour", Depth(0.8333, draft_sigma=0.625), 1.0, 1.0, 1.0, 1.0, 100)
BLUE = Edit("colour", ((3, 1.0),), ((2, 1.0),), 'gains "blue", loses "red"')


def donor(name: str = "a", score: float = 0.9, edit: Edit | None = BLUE, **others: object) -> Donor:
    return replace(Donor(name, score, ALL, "a red ball", side_data=True, edit=edit), **others)  # type: ignore[arg-type]


def codes(chosen: Plan) -> list[str]:
    return [plan_pb2.PlanReasonCode.Name(r.code).removeprefix("PLAN_REASON_CODE_") for r in chosen.reasons]


@pytest.mark.parametrize(
    ("policy", "row", "reuse_steps"), [("safe", SHALLOW, 1), ("balanced", REGION, 1), ("fast", DEEP, 3)]
)
def test_each_policy_chooses_the_deepest_row_within_its_limit(
    policy: Policy, row: Row, reuse_steps: int
) -> None:
    chosen = plan(policy, SIGMAS, [donor()], 2.0, COLOURS)
    assert (chosen.reuse_steps, chosen.region, chosen.amplification) == (
        reuse_steps, row.depth.region, row.depth.amplification,
    )  # fmt: skip
    assert chosen.region_end == (4 if row.depth.region else 0)
    assert chosen.predicted_seconds_saved == pytest.approx(2.0 * (4 - row.computed_share * (4 - reuse_steps)))
    assert chosen.predicted_drift_points == row.drift_points
    assert codes(chosen) == ["EDIT", "CALIBRATION"]
    assert 'gains "blue", loses "red"' in chosen.reasons[0].text


def test_draft_counts_as_a_computed_step_and_needs_the_latents_of_its_step_alone() -> None:
    rows = Calibration("model", (SHALLOW, DRAFT))
    sparse = donor(steps=frozenset({3}))
    chosen = plan("safe", SIGMAS, [sparse], 1.0, rows)
    assert (chosen.donor, chosen.reuse_steps, chosen.draft_step) == (sparse, 2, 3)
    assert chosen.predicted_seconds_saved == 1.0  # 3 of 4 steps are computed
    assert "computing a draft" in chosen.reasons[1].text
    assert to_message(chosen).draft_step == 3
    assert plan("safe", SIGMAS, [donor(steps=frozenset({1, 2, 4}))], 1.0, rows).draft_step == 0


def test_amplified_row_is_chosen_only_if_it_saves_steps() -> None:
    contrast = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=0.5)
    plain = make_row("colour", Depth(0.8333), 1.0, 1.0, 1.0, 0.0, 9)
    amplified = replace(plain, depth=Depth(0.8333, amplification=contrast), drift_points=0.0)
    deeper = replace(amplified, depth=Depth(0.625, amplification=contrast))
    found = [
        plan("balanced", SIGMAS, [donor()], 1.0, Calibration("model", rows))
        for rows in ((amplified, plain), (plain, deeper))
    ]
    assert [(each.reuse_steps, each.amplification is not None) for each in found] == [(2, False), (3, True)]


def test_stated_seed_is_followed_by_rows_of_enough_diversity_only() -> None:
    rows = Calibration("model", (make_row("colour", Depth(0.625), 1.0, 0.0, 0.0, 0.0, 9), VARIED))
    theirs = donor(seed=1)
    assert plan("safe", SIGMAS, [theirs], 1.0, rows, seed=1).draft_step == 0
    assert plan("safe", SIGMAS, [theirs], 1.0, rows).draft_step == 0
    assert plan("safe", SIGMAS, [theirs], 1.0, rows, seed=2).draft_step == 3
    declined = plan("safe", SIGMAS, [theirs], 1.0, Calibration("model", rows.rows[:1]), seed=2)
    assert (declined.donor, codes(declined)) == (None, ["OTHER_SEED"])


def test_same_prompt_without_a_seed_is_computed_from_another_one() -> None:
    rows = Calibration("model", (replace(SHALLOW, edit="same"), replace(VARIED, edit="same")))
    same = donor(edit=Edit("same"), seed=1)
    chosen = plan("safe", SIGMAS, [same], 1.0, rows, prompt="a red ball")
    assert chosen.draft_step == 3
    assert choose_seed(to_message(chosen), 5, True, "a red ball") == 5
    edited = plan("safe", SIGMAS, [donor(seed=1)], 1.0, COLOURS, prompt="a blue ball")
    assert choose_seed(to_message(edited), 5, True, "a blue ball") == 1
    assert choose_seed(to_message(edited), 5, False, "a blue ball") == 5


def test_explicit_plan_reports_the_seed_whose_noise_it_carries() -> None:
    theirs, prompt = donor(edit=None, seed=1), "a red ball"  # the donor's own prompt
    plain, drafted = (pb.ExplicitReuse(reuse_steps=2, draft_step=d) for d in (0, 3))
    assert choose_seed(to_message(plan_explicit(plain, 4, [theirs], 1.0)), 5, True, prompt) == 1
    assert choose_seed(to_message(plan_explicit(drafted, 4, [theirs], 1.0)), 5, True, prompt) == 5


def test_request_limits_the_reused_steps() -> None:
    chosen = plan("fast", SIGMAS, [donor()], 1.0, COLOURS, max_reuse_steps=1)
    assert (chosen.reuse_steps, chosen.region) == (1, REGION.depth.region)
    declined = plan("fast", SIGMAS, [donor()], 1.0, Calibration("model", (DEEP,)), max_reuse_steps=2)
    assert codes(declined) == ["EDIT", "DRIFT_TOO_HIGH"]
    assert "the request at most 2 reused steps" in declined.reasons[1].text


def test_donor_that_lacks_data_of_a_row_is_reused_by_another_row() -> None:
    without_side = donor(side_data=False)
    assert plan("fast", SIGMAS, [without_side], 1.0, COLOURS).region == REGION.depth.region
    without_last = donor(steps=frozenset({1, 2, 3}))
    assert plan("fast", SIGMAS, [without_last], 1.0, COLOURS).region is None
    bare = donor(steps=frozenset({4}))
    chosen = plan("fast", SIGMAS, [bare], 1.0, COLOURS)
    assert (chosen.reuse_steps, codes(chosen)) == (0, ["EDIT", "STEP_NOT_CACHED"])


def test_edits_that_drift_too_far_or_were_not_measured_are_declined() -> None:
    chosen = plan("balanced", SIGMAS, [donor()], 1.0, Calibration("model", (DEEP,)))
    assert (chosen.donor, codes(chosen)) == (None, ["EDIT", "DRIFT_TOO_HIGH"])
    unknown = plan("fast", SIGMAS, [donor(edit=Edit("unrelated"))], 1.0, COLOURS)
    assert (unknown.donor, codes(unknown)) == (None, ["EDIT", "DRIFT_TOO_HIGH"])
    assert "no measurement exists" in unknown.reasons[1].text


def test_donor_that_saves_most_wins_over_more_similar_ones() -> None:
    rows = (*COLOURS.rows, make_row("paraphrase", Depth(0.625), 1.0, 0.0, 0.0, 0.0, 100))
    same = donor("same", 0.7, Edit("paraphrase"))
    chosen = plan("safe", SIGMAS, [donor("near", 0.99), same], 1.0, Calibration("model", rows))
    assert (chosen.donor, chosen.reuse_steps) == (same, 3)


def test_without_edits_similarity_decides() -> None:
    chosen = plan("balanced", SIGMAS, [donor(edit=None)], 1.0, COLOURS)
    assert codes(chosen) == ["SCORE_TABLE"]


@given(st.integers(2, 60), st.sampled_from(list(LIMITS)), st.floats(0.01, 1))
def test_depths_are_noise_levels_for_any_number_of_steps(steps: int, policy: Policy, sigma: float) -> None:
    sigmas = shifted_schedule(steps, 5.0)
    reuse_steps = Depth(sigma).reuse_steps(sigmas)
    assert 0 <= reuse_steps < steps
    assert reuse_steps == 0 or sigmas[reuse_steps] >= sigma - 1e-9
    assert reuse_steps == steps - 1 or sigmas[reuse_steps + 1] < sigma
    row = make_row("colour", Depth(sigma, DEFAULT_REGION), 0.5, 0.0, 0.0, 0.0, 9)
    chosen = plan(
        policy, sigmas, [donor(steps=frozenset(range(1, steps + 1)))], 1.0, Calibration("m", (row,))
    )
    assert chosen.reuse_steps == reuse_steps
    assert chosen.region_end == (steps if reuse_steps else 0)


@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0.01, 1))
def test_draft_is_planned_only_where_it_saves_a_step(steps: int, sigma: float, share: float) -> None:
    depth, sigmas = Depth(sigma, draft_sigma=share * sigma), shifted_schedule(steps, 5.0)
    first, draft = depth.reuse_steps(sigmas), depth.draft_step(sigmas)
    assert first <= draft < steps
    row = make_row("colour", depth, 1.0, 0.0, 0.0, 0.0, 9)
    candidates = [donor(steps=frozenset(range(1, steps + 1)))]
    chosen = plan("safe", sigmas, candidates, 1.0, Calibration("m", (row,)))
    assert chosen.predicted_seconds_saved == max(0, first - 1)
    assert (chosen.reuse_steps, chosen.draft_step) == ((first, draft) if first > 1 else (0, 0))


@given(st.floats(-5, 30), st.floats(-5, 30), st.floats(0, 5), st.floats(-1, 5))
def test_stricter_policy_allows_only_what_a_laxer_one_allows(
    drift: float, loss: float, error: float, artefacts: float
) -> None:
    row = replace(
        REGION,
        drift_points=drift,
        alignment_loss_points=loss,
        error_points=error,
        artefact_points=artefacts,
    )
    allowed = [row.within(policy) for policy in ("off", "safe", "balanced", "fast")]
    assert allowed == sorted(allowed)
    assert not allowed[0]


@pytest.mark.parametrize("cost", ["drift_points", "alignment_loss_points", "artefact_points"])
def test_each_cost_alone_excludes_a_row(cost: str) -> None:
    assert SHALLOW.within("safe")
    assert not replace(SHALLOW, **{cost: 20.0}).within("fast")  # type: ignore[arg-type]
    declined = plan("fast", SIGMAS, [donor()], 1.0, Calibration("m", (replace(SHALLOW, **{cost: 20.0}),)))  # type: ignore[arg-type]
    assert codes(declined) == ["EDIT", "DRIFT_TOO_HIGH"]
    assert (
        "12 points of drift and of lost alignment, 3 of the pixels in artefacts" in declined.reasons[1].text
    )


def test_rows_round_trip_through_json() -> None:
    calibration = Calibration("model", (*COLOURS.rows, DRAFT), DIGEST)
    assert parse_calibration({**HEAD, "rows": [to_plain(row) for row in calibration.rows]}) == calibration


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"edit": "taste"}, r"rows\[0\]: edit: 'taste' is not a kind of edit"),
        ({"sigma": 0}, r"rows\[0\]: sigma: must be above 0"),
        ({"region": {"source": "GUESS"}}, r"rows\[0\]"),
        ({"n": None}, r"rows\[0\]"),
        ({"draft_sigma": 0.95}, r"rows\[0\]: draft_sigma: must be above 0 and at most sigma = 0.9375"),
    ],
)
def test_broken_calibration_is_rejected_with_its_row_and_field(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_calibration({**HEAD, "rows": [{**to_plain(SHALLOW), **change}]})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rows": None}, "rows: must be a list"),
        ({"model_id": ""}, "model_id: must have 1 to"),
        ({"served_digest": "ab"}, "served_digest: must be 64"),
    ],
)
def test_broken_head_of_a_calibration_is_rejected(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_calibration({**HEAD, "rows": [], **change})


def test_broken_calibration_file_is_rejected_by_name(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    for text in ("{", "[]", '{"model_id": "m"}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"broken\.json: "):
            read_calibration(file)
    with pytest.raises(ValueError, match=r"absent\.json: cannot be read"):
        read_calibration(tmp_path / "absent.json")


def test_calibration_is_used_only_for_the_model_on_which_it_was_measured(tmp_path: Path) -> None:
    model = denoiser_pb2.ModelInfo(model_id="mine", weights_digest="ab" * 32, seconds_per_step=1)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model_id": "mine", "served_digest": served_digest(model), "rows": []}))
    calibrations = load_calibrations([file])
    model.seconds_per_step = 2  # changes nothing that was measured
    assert (calibrations.find(model), calibrations.find_fault(model)) == (read_calibration(file), None)
    model.host_adapter.adapter_id = "host"
    assert calibrations.find(model) is None
    assert "measured on other weights" in (calibrations.find_fault(model) or "")
    model.model_id = "other"
    assert (calibrations.find(model), calibrations.find_fault(model)) == (None, None)


def test_shipped_calibration_covers_the_shipped_model() -> None:
    calibration = load_shipped("shapes")
    assert calibration is not None, "planning/calibrations/shapes.json was not found"
    measured: tuple[EditKind, ...] = (
        "same",
        "paraphrase",
        "colour",
        "motion",
        "background",
        "texture",
        "added",
    )
    assert all(calibration.covers(kind) for kind in measured)
    assert not calibration.covers("unrelated")
    safe, fast = (calibration.allowed("colour", policy) for policy in ("safe", "fast"))
    assert len(safe) < len(fast)
    chosen = plan("fast", SIGMAS, [donor()], 1.0, calibration)
    assert (chosen.reuse_steps > 0, codes(chosen)) == (True, ["EDIT", "CALIBRATION"])


def test_models_without_a_calibration_file_have_none() -> None:
    assert load_shipped("some-other-model") is None


def test_explicit_plan_takes_the_most_similar_donor_that_fits_it() -> None:
    wanted = pb.ExplicitReuse(reuse_steps=2, region_end=3, amplification=CONTRAST, min_score=0.5)
    near = donor("near", 0.95, steps=frozenset({1, 2}))
    fits, low = donor("fits", 0.8), donor("low", 0.4)
    chosen = plan_explicit(wanted, 4, [near, fits, low], 1.0)
    assert chosen.donor == fits
    assert (chosen.reuse_steps, chosen.region_end) == (2, 3)
    assert chosen.region == DEFAULT_REGION
    assert chosen.amplification == CONTRAST
    assert codes(chosen) == ["EXPLICIT"]
    none = plan_explicit(wanted, 4, [near, low], 1.0)
    assert (none.donor, codes(none)) == (None, ["NO_DONOR"])
    assert "side data" in none.reasons[0].text


def test_renoised_plan_needs_the_clean_latents_and_no_others() -> None:
    wanted = pb.ExplicitReuse(reuse_steps=2, renoised=True)
    early, clean = donor("early", 0.95, steps=frozenset({1, 2, 3})), donor("clean", 0.8, steps=frozenset({4}))
    chosen = plan_explicit(wanted, 4, [early, clean], 1.0)
    assert (chosen.donor, chosen.reuse_steps, chosen.renoised) == (clean, 2, True)
    assert to_message(chosen).renoised
    assert "clean latents, noised again" in chosen.reasons[0].text
    assert chosen.predicted_seconds_saved == 2.0
    none = plan_explicit(wanted, 4, [early], 1.0)
    assert (none.donor, none.renoised, codes(none)) == (None, False, ["NO_DONOR"])
    assert "the clean latents, those after step 4" in none.reasons[0].text


def test_explicit_plan_with_a_draft_needs_the_latents_of_its_step() -> None:
    wanted = pb.ExplicitReuse(reuse_steps=2, draft_step=3)
    chosen = plan_explicit(wanted, 4, [donor(steps=frozenset({1, 2, 4})), donor("b", 0.5)], 1.0)
    assert (chosen.donor, chosen.draft_step) == (donor("b", 0.5), 3)
    assert chosen.predicted_seconds_saved == 1.0
    assert "from a draft by step 4, noised again" in chosen.reasons[0].text


def test_message_carries_everything_that_stage_2_needs() -> None:
    message = to_message(plan("fast", SIGMAS, [donor()], 1.0, COLOURS))
    assert (message.reuse_steps, message.region_end, message.edit) == (3, 4, "colour")
    assert message.region == DEFAULT_REGION
    assert message.amplification == CONTRAST
    assert [(t.index, t.weight) for t in message.gained] == [(3, 1.0)]
    assert [(t.index, t.weight) for t in message.lost] == [(2, 1.0)]
    assert message.predicted_drift_points == 8.0
