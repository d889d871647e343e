"""Verifies plans by similarity: donor, reused steps and reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chorus.common.v1 import plan_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.contract.edits import EditKind
from services.contract.schedule import shifted_schedule
from services.scheduler.planning.by_score import TABLE
from services.scheduler.planning.calibration import Policy
from services.scheduler.planning.calibration_files import load_shipped
from services.scheduler.planning.edits import Edit
from services.scheduler.planning.plan_message import to_message
from services.scheduler.planning.planner import plan
from services.scheduler.planning.plans import Donor, Plan

POLICIES: tuple[Policy, ...] = ("off", "safe", "balanced", "fast")
EVERY_STEP = frozenset(range(1, 4))

scores = st.floats(-1, 1, allow_nan=False)
donors = st.builds(
    Donor,
    entry_id=st.text("abcdef", min_size=1, max_size=4),
    score=scores,
    steps=st.frozensets(st.integers(0, 60), max_size=8),
)
policies = st.sampled_from(POLICIES)
totals = st.integers(1, 50)


def sigmas(total: int) -> list[float]:
    return shifted_schedule(total, 5.0)


def codes(chosen: Plan) -> list[str]:
    return [plan_pb2.PlanReasonCode.Name(r.code).removeprefix("PLAN_REASON_CODE_") for r in chosen.reasons]


@given(policies, totals, st.lists(donors, max_size=6), st.booleans())
def test_every_other_donor_is_passed_over_for_a_reason(
    policy: Policy, total: int, candidates: list[Donor], edited: bool
) -> None:
    if edited:
        kinds: tuple[EditKind, ...] = ("colour", "texture", "unrelated")
        candidates = [replace(d, edit=Edit(kinds[i % 3])) for i, d in enumerate(candidates)]
    chosen = plan(policy, sigmas(total), candidates, 1.0, load_shipped("shapes"))
    passed = [each.donor for each in chosen.passed_over]
    assert all(each.reason for each in chosen.passed_over)
    assert [donor.score for donor in passed] == sorted((donor.score for donor in passed), reverse=True)
    if policy != "off":
        assert all(donor in passed or donor == chosen.donor for donor in candidates)


def test_reason_for_passing_a_donor_over_is_its_own() -> None:
    calibration = load_shipped("shapes")
    full, first = frozenset({1, 2, 3, 4}), frozenset({1})
    candidates = {
        "chosen": Donor("a", 0.9, full, edit=Edit("colour"), seed=1),
        "with the chosen donor": Donor("b", 0.98, first, edit=Edit("colour"), seed=1),
        "is more similar": Donor("c", 0.8, full, edit=Edit("colour"), seed=1),
        "edits of the kind 'unrelated'": Donor("d", 0.99, full, edit=Edit("unrelated"), seed=1),
        "does not hold the latents": Donor("e", 0.97, frozenset(), edit=Edit("colour"), seed=1),
        "was not compared": Donor("f", 0.96, full, seed=1),
        "its own video": Donor("g", 0.95, full, edit=Edit("texture"), seed=2),
    }
    chosen = plan("safe", sigmas(4), list(candidates.values()), 1.0, calibration, seed=1)
    assert chosen.donor == candidates["chosen"]
    reasons = {each.donor.entry_id: each.reason for each in chosen.passed_over}
    for words, donor in candidates.items():
        assert words == "chosen" or words in reasons[donor.entry_id], reasons
    message = to_message(chosen)
    assert [each.score for each in message.passed_over] == [0.99, 0.98, 0.97, 0.96, 0.95, 0.8]


@given(policies, totals, st.lists(donors, max_size=6), st.floats(0, 100))
def test_plan_is_valid(policy: Policy, total: int, candidates: list[Donor], step_seconds: float) -> None:
    chosen = plan(policy, sigmas(total), candidates, step_seconds)
    assert 0 <= chosen.reuse_steps <= total - 1
    assert (chosen.donor is not None) == (chosen.reuse_steps > 0)
    assert chosen.reasons
    assert all(reason.text for reason in chosen.reasons)
    assert chosen.predicted_seconds_saved == chosen.reuse_steps * step_seconds
    if chosen.donor is not None:
        assert chosen.donor in candidates
        assert chosen.reuse_steps in chosen.donor.steps
        assert chosen.donor.score >= TABLE[policy][-1][0]


@given(policies, totals, scores, scores, st.frozensets(st.integers(1, 50)))
def test_more_similar_donor_is_never_reused_less(
    policy: Policy, total: int, one: float, other: float, steps: frozenset[int]
) -> None:
    low, high = sorted((one, other))
    shallow = plan(policy, sigmas(total), [Donor("a", low, steps)], 1.0).reuse_steps
    assert shallow <= plan(policy, sigmas(total), [Donor("a", high, steps)], 1.0).reuse_steps


@given(totals, scores, st.frozensets(st.integers(1, 50)))
def test_policies_are_ordered_by_the_steps_they_reuse(
    total: int, score: float, steps: frozenset[int]
) -> None:
    candidates = [Donor("a", score, steps)]
    off, safe, balanced, fast = (
        plan(policy, sigmas(total), candidates, 1.0).reuse_steps for policy in POLICIES
    )
    assert off == 0
    assert safe <= fast
    assert balanced <= fast


def test_stated_seed_is_never_answered_with_the_video_of_another() -> None:
    near, same = Donor("a", 0.9999, EVERY_STEP, seed=1), Donor("b", 0.9991, frozenset({1}), seed=2)

    def chosen(seed: int | None) -> Plan:
        return plan("balanced", sigmas(4), [near, same], 1.0, seed=seed)

    assert chosen(2).donor is same
    assert chosen(None).donor is near
    declined = chosen(3)
    assert (declined.donor, codes(declined)) == (None, ["OTHER_SEED"])
    assert "of seed 1" in declined.reasons[0].text
    assert "state its seed, or none" in declined.reasons[0].text
    unknown = plan("fast", sigmas(4), [Donor("a", 0.9999, EVERY_STEP)], 1.0, seed=3)
    assert "of unknown seed" in unknown.reasons[0].text


def test_same_prompt_without_a_seed_asks_for_another_video() -> None:
    theirs = Donor("a", 1.0, EVERY_STEP, prompt="a red circle", seed=1)
    declined = plan("fast", sigmas(4), [theirs], 1.0, prompt="a red circle")
    assert codes(declined) == ["OTHER_SEED"]
    respelt = replace(theirs, edit=Edit("same"))
    assert codes(plan("fast", sigmas(4), [respelt], 1.0, prompt="A red circle!")) == ["OTHER_SEED"]
    assert plan("fast", sigmas(4), [theirs], 1.0, prompt="a red square").donor is theirs


REPEATED = Donor("a", 1.0, frozenset({1, 2, 3, 4}), prompt="a red circle", seed=7)


def test_full_computation_of_the_same_prompt_and_seed_is_repeated_without_a_step() -> None:
    near = replace(REPEATED, entry_id="b", seed=8)
    chosen = plan("safe", sigmas(4), [near, REPEATED], 0.5, seed=7, prompt="a red circle")
    assert (chosen.donor, chosen.reuse_steps, chosen.region_end) == (REPEATED, 4, 0)
    assert codes(chosen) == ["EXACT"]
    assert chosen.predicted_seconds_saved == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("policy", "seed", "prompt", "donor"),
    [
        ("off", 7, "a red circle", REPEATED),
        ("fast", 8, "a red circle", REPEATED),
        ("fast", None, "a red circle", REPEATED),
        ("fast", 7, "a red  circle", REPEATED),
        ("fast", 7, "", replace(REPEATED, prompt="")),  # the cache keeps no prompts of this tenant
        ("fast", 7, "a red circle", replace(REPEATED, steps=frozenset({2, 3, 4}))),  # itself a hit
        ("fast", 7, "a red circle", replace(REPEATED, steps=frozenset({1, 2, 3}))),  # without its result
    ],
)
def test_anything_else_is_not_an_exact_repeat(
    policy: Policy, seed: int | None, prompt: str, donor: Donor
) -> None:
    chosen = plan(policy, sigmas(4), [donor], 0.5, seed=seed, prompt=prompt)
    assert chosen.reuse_steps < 4
    assert "EXACT" not in codes(chosen)


@given(policies, totals, st.lists(donors, max_size=6), donors)
def test_another_donor_never_makes_the_plan_shallower(
    policy: Policy, total: int, candidates: list[Donor], more: Donor
) -> None:
    before = plan(policy, sigmas(total), candidates, 1.0).reuse_steps
    assert plan(policy, sigmas(total), [*candidates, more], 1.0).reuse_steps >= before


@pytest.mark.parametrize(
    ("policy", "score", "steps"),
    [
        ("safe", 0.9995, 2),
        ("safe", 0.9, 1),
        ("safe", 0.79, 0),
        ("balanced", 1.0, 3),
        ("balanced", 0.993, 1),
        ("balanced", 0.835, 1),
        ("balanced", 0.74, 0),
        ("fast", 0.9995, 3),
        ("fast", 0.76, 2),
        ("fast", 0.655, 1),
        ("fast", 0.59, 0),
        ("off", 1.0, 0),
    ],
)
def test_table_gives_the_expected_steps_at_four_steps(policy: Policy, score: float, steps: int) -> None:
    assert plan(policy, sigmas(4), [Donor("a", score, EVERY_STEP)], 1.0).reuse_steps == steps


@pytest.mark.parametrize(
    ("kind", "steps"), [("place", 2), ("added", 2), ("texture_removed", 3), ("other", 3)]
)
def test_edit_that_opens_something_reuses_at_most_half_of_the_steps(kind: EditKind, steps: int) -> None:
    chosen = plan("fast", sigmas(4), [Donor("a", 0.9995, EVERY_STEP, edit=Edit(kind))], 1.0)
    assert chosen.reuse_steps == steps
    assert codes(chosen) == (["EDIT", "SCORE_TABLE"] if steps == 2 else ["SCORE_TABLE"])
    assert ("50%" in chosen.reasons[-1].text) == (steps == 2)


@pytest.mark.parametrize("kind", ["unrelated", "unreadable"])
def test_unrelated_donor_is_not_reused_however_similar_its_vector_is(kind: EditKind) -> None:
    foreign = Donor("a", 1.0, EVERY_STEP, edit=Edit(kind))
    chosen = plan("fast", sigmas(4), [foreign], 1.0)
    assert chosen.reuse_steps == 0
    assert codes(chosen) == ["EDIT", "DRIFT_TOO_HIGH"]
    assert kind in chosen.reasons[-1].text
    other = Donor("b", 0.9, EVERY_STEP, edit=Edit("colour"))
    assert plan("fast", sigmas(4), [foreign, other], 1.0).donor == other


def test_request_limits_the_reused_steps_but_not_exact_repeats() -> None:
    near = Donor("a", 0.9995, EVERY_STEP)
    chosen = plan("balanced", sigmas(4), [near], 1.0, max_reuse_steps=2)
    assert chosen.reuse_steps == 2
    assert "the request allows 2: 2 of 4" in chosen.reasons[0].text
    chosen = plan("safe", sigmas(4), [REPEATED], 1.0, seed=7, prompt="a red circle", max_reuse_steps=1)
    assert codes(chosen) == ["EXACT"]


def test_deepest_reuse_wins_then_the_score() -> None:
    shallow = Donor("near", 1.0, frozenset({1}))
    deep = Donor("deep", 0.9992, EVERY_STEP)
    deeper = Donor("deep-and-near", 0.9995, EVERY_STEP)
    assert plan("balanced", sigmas(4), [shallow, deep, deeper], 1.0).donor == deeper
    assert plan("balanced", sigmas(4), [shallow, deep], 1.0).donor == deep


def test_reasons_name_the_deciding_rule() -> None:
    assert codes(plan("off", sigmas(4), [Donor("a", 1.0, EVERY_STEP)], 1.0)) == ["REUSE_OFF"]
    assert codes(plan("safe", sigmas(4), [], 1.0)) == ["NO_DONOR"]
    low = plan("safe", sigmas(4), [Donor("a", 0.5, EVERY_STEP), Donor("b", 0.61, EVERY_STEP)], 1.0)
    assert codes(low) == ["SCORE_TOO_LOW"]
    assert "0.610" in low.reasons[0].text
    assert "0.80" in low.reasons[0].text
    hit = plan("balanced", sigmas(4), [Donor("a", 0.9995, EVERY_STEP)], 1.0)
    assert codes(hit) == ["SCORE_TABLE"]
    assert "3 of 4" in hit.reasons[0].text
    part = plan("balanced", sigmas(4), [Donor("a", 0.9995, frozenset({1}))], 1.0)
    assert (part.reuse_steps, codes(part)) == (1, ["SCORE_TABLE", "STEP_NOT_CACHED"])
    none = plan("balanced", sigmas(4), [Donor("a", 0.9995, frozenset())], 1.0)
    assert (none.donor, codes(none)) == (None, ["SCORE_TABLE", "STEP_NOT_CACHED"])


def test_message_carries_the_donor() -> None:
    donor = Donor("e1", 0.9992, EVERY_STEP, "a red car", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "g1")
    message = to_message(plan("balanced", sigmas(4), [donor], 0.5))
    assert (message.total_steps, message.reuse_steps) == (4, 3)
    assert message.donor.entry_id == "e1"
    assert message.donor.generation_id == "g1"
    assert message.donor.prompt == "a red car"
    assert message.predicted_seconds_saved == 1.5
    assert not to_message(plan("off", sigmas(4), [donor], 0.5)).HasField("donor")
