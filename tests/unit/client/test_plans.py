"""Explicit plans: from words to the message, and every bound named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from chorus.common.v1 import plan_pb2
from chorus_client import ChorusError, explicit_reuse, parse_plan
from chorus_client.plans import (
    CONTEXTS,
    FORMS,
    SOURCES,
    describe_amplification,
    describe_region,
    plan_of_options,
)
from chorus_rpc.plan_bounds import DEFAULT_REGION
from hypothesis import given
from hypothesis import strategies as st

shares = st.integers(0, 100).map(lambda percent: percent / 100)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `explicit_reuse` that are in bounds."""
    k1 = draw(st.integers(1, 199))
    found: dict[str, Any] = {"k1": k1, "min_score": draw(shares)}
    if k1 < 199 and draw(st.booleans()):
        found |= {
            "k2": draw(st.integers(k1 + 1, 200)),
            "region": draw(st.sampled_from(list(SOURCES))),
            "threshold": draw(shares),
            "dilation": draw(st.integers(0, 8)),
            "budget": draw(shares),
            "context": draw(st.sampled_from(list(CONTEXTS))),
        }
    elif draw(st.booleans()):
        found["renoised"] = True
    if draw(st.booleans()):
        first = draw(st.integers(0, 199))
        found |= {
            "amplify": f"{draw(st.sampled_from(list(FORMS)))}:{draw(shares)}",
            "first_step": first,
            "end_step": draw(st.integers(first + 1, 200)),
            "first_layer": draw(st.integers(0, 256)),
        }
    return found


@given(arguments())
def test_the_text_and_the_arguments_make_the_same_plan(given_: dict[str, Any]) -> None:
    text = ",".join(
        name if value is True else f"{name.replace('_', '-')}:{value}" for name, value in given_.items()
    )
    plan = explicit_reuse(**given_)
    assert parse_plan(text) == plan
    assert (plan.reuse_steps, plan.region_end) == (given_["k1"], given_.get("k2", 0))
    assert plan.renoised == ("renoised" in given_)
    assert plan.HasField("region") == ("region" in given_)
    assert plan.HasField("amplification") == ("amplify" in given_)
    if "region" in given_:
        assert plan.region.source == SOURCES[given_["region"]]
        assert (plan.region.threshold, plan.region.budget) == (given_["threshold"], given_["budget"])


def test_what_is_left_out_is_the_servers() -> None:
    plan = explicit_reuse(1, k2=3)
    assert not plan.HasField("region")
    assert not plan.HasField("amplification")
    probe = explicit_reuse(1, k2=3, region="probe").region
    assert probe == DEFAULT_REGION
    wider = explicit_reuse(1, k2=3, dilation=0, context="strided").region
    assert (wider.source, wider.dilation, wider.threshold) == (probe.source, 0, probe.threshold)
    assert wider.context == plan_pb2.REGION_CONTEXT_STRIDED
    # A share of the largest attention is on another scale than a difference of predictions.
    assert explicit_reuse(1, k2=3, region="attention").region.threshold != probe.threshold


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("k1:0", "k1", "1 to 199"),
        ("k1:200", "k1", "1 to 199"),
        ("k1:two", "k1", "must be a number, not 'two'"),
        ("k2:3", "k1", "must be given"),
        ("", "plan", "'' is unknown; it is made of k1, k2"),
        ("k1:1,deep:2", "plan", "'deep' is unknown"),
        ("k1:1,k1:2", "k1", "comes twice"),
        ("k1:3,k2:2", "k2", "at least k1 = 3, not 2"),
        ("k1:3,k2:3,region:probe", "k2", "above k1 = 3"),
        ("k1:3,budget:0.5", "k2", "above k1 = 3"),
        ("k1:1,k2:201", "k2", "0 to 200"),
        ("k1:1,k2:2,region:oracle", "region", "one of probe, full-step, attention, not 'oracle'"),
        ("k1:1,k2:2,context:some", "context", "one of none, strided"),
        ("k1:1,k2:2,budget:1.5", "region.budget", "0 to 1, not 1.5"),
        ("k1:1,k2:2,threshold:nan", "region.threshold", "0 to 1, not nan"),
        ("k1:1,k2:2,dilation:9", "dilation", "0 to 8, not 9"),
        ("k1:1,k2:2,dilation:-1", "dilation", "0 to 8, not -1"),
        ("k1:1,amplify:contrast", "amplify", "0 to 4, such as contrast:0.5, not 'contrast'"),
        ("k1:1,amplify:loud:1", "amplify", "one of contrast, bias, value-gain, not 'loud'"),
        ("k1:1,amplify:bias:4.1", "amplify.strength", "0 to 4, not 4.1"),
        ("k1:1,first-layer:2", "amplify", "must be given with"),
        ("k1:1,amplify:bias:1,first-step:3,end-step:2", "amplify.end_step", "above first_step = 3"),
        ("k1:1,k2:2,renoised", "renoised", "must not be given with k2 = 2"),
        ("k1:1,renoised:yes", "renoised", "takes no value, not 'yes'"),
        ("k1:1,renoised,renoised", "renoised", "comes twice"),
        ("k1:1,min-score:1.1", "min_score", "−1 to 1, not 1.1"),
        ("k1:1,min-score:nan", "min_score", "−1 to 1"),
    ],
)
def test_a_fault_names_its_part_and_its_bound(text: str, field: str, words: str) -> None:
    with pytest.raises(ChorusError) as caught:
        parse_plan(text)
    [violation] = [one for one in caught.value.violations if one.field == field]
    assert words in violation.description


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ChorusError) as caught:
        explicit_reuse(0, region="x", amplify="y:1", min_score=math.inf)
    assert {v.field for v in caught.value.violations} == {"k1", "k2", "region", "amplify", "min_score"}


def test_options_make_a_plan_only_with_k1() -> None:
    assert plan_of_options(None, k2=None, region=None) is None
    assert plan_of_options(2, k2=None, region=None) == explicit_reuse(2)
    with pytest.raises(ChorusError, match="k1: must be given with region, amplify"):
        plan_of_options(None, k2=None, region="probe", amplify="bias:1")


def test_plans_are_told_in_the_words_that_make_them() -> None:
    plan = parse_plan(
        "k1:1,k2:3,region:full-step,threshold:0.25,dilation:2,budget:0.4,context:strided,"
        "amplify:value-gain:1.5,first-step:1,end-step:3,first-layer:2"
    )
    assert describe_region(plan.region) == (
        "full-step, threshold 0.25, dilation 2, budget 40 %, strided context"
    )
    assert describe_amplification(plan.amplification) == "value-gain 1.5, steps 2–3, from layer 2"
    assert describe_region(plan_pb2.RegionPlan(source=9)).startswith("unknown (9)")  # type: ignore[arg-type]
