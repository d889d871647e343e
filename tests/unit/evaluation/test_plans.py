"""Tests of the evaluation's methods: named plans and the plans of other systems."""

from __future__ import annotations

import pytest
from chorus_client import ChorusError, explicit_reuse
from hypothesis import given
from hypothesis import strategies as st

from evaluation.baselines import BASELINES, baseline_plan
from evaluation.methods import build_methods
from evaluation.plans import parse_named_plans

scores = st.floats(-1, 1)
names = st.sampled_from(list(BASELINES))


@pytest.mark.parametrize(
    ("score", "skipped"),
    [(1.0, 25), (0.96, 25), (0.95, 20), (0.91, 20), (0.90, 15), (0.86, 15), (0.8, 10), (0.7, 5), (0.66, 5)],
)
def test_nirvana_follows_its_published_table_at_50_steps(score: float, skipped: int) -> None:
    plan = baseline_plan(BASELINES["nirvana"], score, 50)
    assert plan is not None
    assert (plan.reuse_steps, plan.region_end) == (skipped, 0)
    assert plan.min_score <= score


@pytest.mark.parametrize(("score", "skipped"), [(0.96, 2), (0.95, 1), (0.86, 1)])
def test_nirvana_at_four_steps_rounds_down(score: float, skipped: int) -> None:
    plan = baseline_plan(BASELINES["nirvana"], score, 4)
    assert plan is not None
    assert plan.reuse_steps == skipped


def test_threshold_skips_half_of_the_steps_or_none() -> None:
    threshold = BASELINES["threshold"]
    assert baseline_plan(threshold, 0.75, 5) == explicit_reuse(2, min_score=0.75)
    assert baseline_plan(threshold, 0.99, 4) == explicit_reuse(2, min_score=0.75)
    too_low = baseline_plan(threshold, 0.74, 4)
    assert too_low is not None
    assert too_low.min_score > 0.74
    assert baseline_plan(threshold, 0.99, 1) is None


def test_modm_equals_threshold_with_renoised_clean_latents() -> None:
    assert BASELINES["modm"].rows == BASELINES["threshold"].rows
    assert baseline_plan(BASELINES["modm"], 0.99, 4) == explicit_reuse(2, min_score=0.75, renoised=True)


@given(names, scores, st.integers(1, 200))
def test_plan_accepts_its_donor_exactly_if_a_row_skips_a_whole_step(
    name: str, score: float, steps: int
) -> None:
    baseline = BASELINES[name]
    share = next((share for min_score, share in baseline.rows if score >= min_score), 0)
    plan = baseline_plan(baseline, score, steps)
    if plan is None:
        assert all(int(row * steps) == 0 for _, row in baseline.rows)
        return
    assert 1 <= plan.reuse_steps < steps
    assert (score >= plan.min_score) == (int(share * steps) > 0)
    if score >= plan.min_score:
        assert plan.reuse_steps == int(share * steps)


@given(names, scores, scores, st.integers(2, 200))
def test_better_donor_never_skips_fewer_steps(name: str, one: float, other: float, steps: int) -> None:
    def reused(score: float) -> int:
        plan = baseline_plan(BASELINES[name], score, steps)
        return plan.reuse_steps if plan is not None and score >= plan.min_score else 0

    assert reused(min(one, other)) <= reused(max(one, other))


def test_named_plans_keep_their_order_and_reject_duplicates() -> None:
    plans = parse_named_plans(["b=reuse_steps:2", "a=reuse_steps:1,region_end:3,region:probe"], reserved=())
    assert list(plans.items()) == [
        ("b", explicit_reuse(2)),
        ("a", explicit_reuse(1, region_end=3, region="probe")),
    ]
    with pytest.raises(ChorusError, match="plan: the name 'b' is already in use"):
        parse_named_plans(["b=reuse_steps:2", "b=reuse_steps:1"], reserved=())


def test_methods_carry_their_options_and_baselines_depend_on_the_score() -> None:
    methods = build_methods(["safe"], {"deep": explicit_reuse(2)}, ["threshold"], [3])
    assert [method.name for method in methods] == ["safe", "deep", "threshold", "steps_3"]
    assert [method.reuses for method in methods] == [True, True, True, False]
    assert methods[1].options == {"explicit_reuse": explicit_reuse(2)}
    assert methods[2].by_score is not None
    assert methods[2].by_score(0.9, 4) == {"explicit_reuse": explicit_reuse(2, min_score=0.75)}
    assert methods[2].by_score(0.9, 1) == {"reuse": "off"}
