"""Verifies explicit plans: from text and arguments to the message, and the bound in each error."""

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
    plan_from_options,
)
from chorus_rpc.plan_bounds import DEFAULT_REGION
from hypothesis import given
from hypothesis import strategies as st

shares = st.integers(0, 100).map(lambda percent: percent / 100)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `explicit_reuse` that are in bounds."""
    reuse_steps = draw(st.integers(1, 199))
    found: dict[str, Any] = {"reuse_steps": reuse_steps, "min_score": draw(shares)}
    if reuse_steps < 199 and draw(st.booleans()):
        found |= {
            "region_end": draw(st.integers(reuse_steps + 1, 200)),
            "region": draw(st.sampled_from(list(SOURCES))),
            "threshold": draw(shares),
            "dilation": draw(st.integers(0, 8)),
            "budget": draw(shares),
            "context": draw(st.sampled_from(list(CONTEXTS))),
        }
    elif draw(st.booleans()):
        found["renoised"] = True
    elif draw(st.booleans()):
        found["draft_step"] = draw(st.integers(reuse_steps, 199))
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
def test_parse_plan_equals_explicit_reuse_with_the_same_arguments(given_: dict[str, Any]) -> None:
    text = ",".join(name if value is True else f"{name}:{value}" for name, value in given_.items())
    plan = explicit_reuse(**given_)
    assert parse_plan(text) == plan
    assert (plan.reuse_steps, plan.region_end) == (given_["reuse_steps"], given_.get("region_end", 0))
    assert plan.renoised == ("renoised" in given_)
    assert plan.draft_step == given_.get("draft_step", 0)
    assert plan.HasField("region") == ("region" in given_)
    assert plan.HasField("amplification") == ("amplify" in given_)
    if "region" in given_:
        assert plan.region.source == SOURCES[given_["region"]]
        assert (plan.region.threshold, plan.region.budget) == (given_["threshold"], given_["budget"])


def test_parse_plan_accepts_hyphens_for_underscores() -> None:
    plan = explicit_reuse(2, region_end=3, min_score=-1)
    assert parse_plan("reuse-steps:2,region-end:3,min-score:-1") == plan
    assert parse_plan("reuse_steps:2, region_end:3, min_score:-1") == plan


def test_explicit_reuse_leaves_defaults_to_the_server() -> None:
    plan = explicit_reuse(1, region_end=3)
    assert not plan.HasField("region")
    assert not plan.HasField("amplification")
    probe = explicit_reuse(1, region_end=3, region="probe").region
    assert probe == DEFAULT_REGION
    wider = explicit_reuse(1, region_end=3, dilation=0, context="strided").region
    assert (wider.source, wider.dilation, wider.threshold) == (probe.source, 0, probe.threshold)
    assert wider.context == plan_pb2.REGION_CONTEXT_STRIDED
    # A share of the largest attention is on another scale than a difference of predictions.
    assert explicit_reuse(1, region_end=3, region="attention").region.threshold != probe.threshold


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("reuse_steps:0", "reuse_steps", "1 to 199"),
        ("reuse_steps:200", "reuse_steps", "1 to 199"),
        ("reuse_steps:two", "reuse_steps", "must be a number, not 'two'"),
        ("region_end:3", "reuse_steps", "must be given"),
        ("", "plan", "unknown part ''; must be one of reuse_steps, region_end"),
        ("k1:2", "plan", "unknown part 'k1'; must be one of"),
        ("reuse_stesp:2", "plan", "unknown part 'reuse_stesp'; did you mean reuse_steps?"),
        ("reuse_steps:1,deep:2", "plan", "unknown part 'deep'; must be one of"),
        ("reuse_steps:1,reuse_steps:2", "reuse_steps", "must not be repeated"),
        ("reuse_steps:3,region_end:2", "region_end", "at least reuse_steps = 3, not 2"),
        ("reuse_steps:3,region_end:3,region:probe", "region_end", "above reuse_steps = 3"),
        ("reuse_steps:3,budget:0.5", "region_end", "above reuse_steps = 3"),
        ("reuse_steps:1,region_end:201", "region_end", "0 to 200"),
        (
            "reuse_steps:1,region_end:2,region:oracle",
            "region",
            "one of probe, full-step, attention, not 'oracle'",
        ),
        ("reuse_steps:1,region_end:2,context:some", "context", "one of none, strided"),
        ("reuse_steps:1,region_end:2,budget:1.5", "region.budget", "0 to 1, not 1.5"),
        ("reuse_steps:1,region_end:2,threshold:nan", "region.threshold", "0 to 1, not nan"),
        ("reuse_steps:1,region_end:2,dilation:9", "dilation", "0 to 8, not 9"),
        ("reuse_steps:1,region_end:2,dilation:-1", "dilation", "0 to 8, not -1"),
        ("reuse_steps:1,amplify:contrast", "amplify", "0 to 4, such as contrast:0.5, not 'contrast'"),
        ("reuse_steps:1,amplify:loud:1", "amplify", "one of contrast, bias, value-gain, not 'loud'"),
        ("reuse_steps:1,amplify:bias:4.1", "amplify.strength", "0 to 4, not 4.1"),
        ("reuse_steps:1,first_layer:2", "amplify", "must be given with"),
        ("reuse_steps:1,amplify:bias:1,first_step:3,end_step:2", "amplify.end_step", "above first_step = 3"),
        ("reuse_steps:1,region_end:2,renoised", "renoised", "must not be given with region_end = 2"),
        ("reuse_steps:1,renoised:yes", "renoised", "takes no value, not 'yes'"),
        ("reuse_steps:1,renoised,renoised", "renoised", "must not be repeated"),
        ("reuse_steps:2,draft_step:1", "draft_step", "0, or at least reuse_steps = 2"),
        ("reuse_steps:2,draft_step:2,renoised", "draft_step", "without region_end and renoised, not 2"),
        ("reuse_steps:2,draft_step:200", "draft_step", "0 to 199"),
        ("reuse_steps:1,min_score:1.1", "min_score", "−1 to 1, not 1.1"),
        ("reuse_steps:1,min_score:nan", "min_score", "−1 to 1"),
    ],
)
def test_parse_plan_names_the_invalid_part_and_its_bound(text: str, field: str, words: str) -> None:
    with pytest.raises(ChorusError) as caught:
        parse_plan(text)
    [violation] = [one for one in caught.value.violations if one.field == field]
    assert words in violation.description


def test_explicit_reuse_reports_every_fault_at_once() -> None:
    with pytest.raises(ChorusError) as caught:
        explicit_reuse(0, region="x", amplify="y:1", min_score=math.inf)
    assert {v.field for v in caught.value.violations} == {
        "reuse_steps",
        "region_end",
        "region",
        "amplify",
        "min_score",
    }


def test_plan_from_options_requires_reuse_steps() -> None:
    assert plan_from_options(None, region_end=None, region=None) is None
    assert plan_from_options(2, region_end=None, region=None) == explicit_reuse(2)
    with pytest.raises(ChorusError, match="reuse_steps: must be given with region, amplify"):
        plan_from_options(None, region_end=None, region="probe", amplify="bias:1")


def test_descriptions_use_the_words_of_the_plan_text() -> None:
    plan = parse_plan(
        "reuse_steps:1,region_end:3,region:full-step,threshold:0.25,dilation:2,budget:0.4,context:strided,"
        "amplify:value-gain:1.5,first_step:1,end_step:3,first_layer:2"
    )
    assert describe_region(plan.region) == (
        "full-step, threshold 0.25, dilation 2, budget 40 %, strided context"
    )
    assert describe_amplification(plan.amplification) == "value-gain 1.5, steps 2–3, from layer 2"
    assert describe_region(plan_pb2.RegionPlan(source=9)).startswith("unknown (9)")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reuse_steps": "1"}, "reuse_steps: must be a whole number, not '1'"),
        ({"reuse_steps": 1, "region_end": 2.5}, "region_end: must be a whole number, not 2.5"),
        ({"reuse_steps": 1, "min_score": "high"}, "min_score: must be a number, not 'high'"),
        ({"reuse_steps": 1, "amplify": 5}, "amplify: must be text, not 5"),
    ],
)
def test_argument_of_another_type_is_refused_by_name(arguments: Any, message: str) -> None:
    with pytest.raises(ChorusError, match=message):
        explicit_reuse(**arguments)


@pytest.mark.parametrize("amplify", ["foo", "foo:1", "contrast", "contrast:much", "bias:"])
def test_amplification_that_cannot_be_read_is_one_error(amplify: str) -> None:
    with pytest.raises(ChorusError) as caught:
        explicit_reuse(1, amplify=amplify)
    assert [violation.field for violation in caught.value.violations] == ["amplify"]
