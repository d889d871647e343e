"""Verifies the bounds of labels, of filters and of outputs, at both edges."""

from __future__ import annotations

import itertools

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.api.outputs import check_outputs, choose_seeds
from services.scheduler.api.search import check_labels, parse_filter
from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.states import State

pytestmark = pytest.mark.fault("number-promises")


@pytest.mark.parametrize("key", ["a", "9", "A.b_c-d", "x" * 63, "project.id"])
def test_label_keys_in_bounds_are_accepted(key: str) -> None:
    assert check_labels({key: "v"}, "spec.labels") == []


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("", 'spec.labels[""]'),
        ("x" * 64, f'spec.labels["{"x" * 64}"]'),
        ("-a", 'spec.labels["-a"]'),
        ("a.", 'spec.labels["a."]'),
        ("a b", 'spec.labels["a b"]'),
        ("a\n", 'spec.labels["a\\n"]'),
        ("é", 'spec.labels["\\u00e9"]'),
        ("k8s.io/name", 'spec.labels["k8s.io/name"]'),
    ],
)
def test_label_key_out_of_bounds_is_named(key: str, field: str) -> None:
    [violation] = check_labels({"fine": "v", key: "v"}, "spec.labels")
    assert violation.field == field
    assert "1 to 63 characters" in violation.description


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", ""),
        ("x" * 256, ""),
        ("é" * 128, ""),
        ("two words", ""),
        ("x" * 257, "at most 256 bytes of UTF-8, not 257"),
        ("é" * 129, "not 258"),
        ("a\nb", "remove U+000A at position 2"),
        ("\0", "remove U+0000 at position 1"),
        ("a\u2028", "remove U+2028"),
    ],
)
def test_label_value_holds_at_both_edges(value: str, words: str) -> None:
    found = check_labels({"key": value}, "labels")
    assert [violation.field for violation in found] == (['labels["key"]'] if words else [])
    assert all(words in violation.description for violation in found)


def test_number_of_labels_holds_at_both_edges() -> None:
    assert check_labels({f"k{n}": "" for n in range(16)}, "spec.labels") == []
    [violation] = check_labels({f"k{n}": "" for n in range(17)}, "spec.labels")
    assert (violation.field, violation.description) == ("spec.labels", "must have at most 16 labels, not 17")


def test_filters_become_the_conditions_of_a_search() -> None:
    assert parse_filter(pb.ListGenerationsRequest()) == JobFilter()
    request = pb.ListGenerationsRequest(
        state=pb.GENERATION_STATE_FAILED,
        labels={"a": ""},
        prompt_contains="Red",
        created_after=Timestamp(seconds=5),
        created_before=Timestamp(seconds=5, nanos=500_000_000),
    )
    assert parse_filter(request) == JobFilter(State.FAILED, {"a": ""}, "Red", 5.0, 5.5)


def test_every_invalid_filter_is_reported() -> None:
    request = pb.ListGenerationsRequest(
        state=9,  # type: ignore[arg-type]
        labels={"-": "\n"},
        prompt_contains="\0" + "x" * 256,
        created_after=Timestamp(nanos=-1),
        created_before=Timestamp(seconds=2**40),
    )
    with pytest.raises(ChorusError) as caught:
        parse_filter(request)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == [
        'labels["-"]',
        'labels["-"]',
        "state",
        "prompt_contains",
        "prompt_contains",
        "created_after",
        "created_before",
    ]
    assert parse_filter(pb.ListGenerationsRequest(prompt_contains="x" * 256)).prompt == "x" * 256


@pytest.mark.parametrize("before", [4, 5])
def test_empty_range_of_times_is_rejected(before: int) -> None:
    request = pb.ListGenerationsRequest(
        created_after=Timestamp(seconds=5), created_before=Timestamp(seconds=before)
    )
    with pytest.raises(ChorusError, match="later than created_after"):
        parse_filter(request)


@given(st.integers(0, 2**64 - 1), st.integers(1, 16))
def test_seeds_of_outputs_follow_a_stated_one(seed: int, count: int) -> None:
    seeds = choose_seeds(pb.GenerationSpec(seed=seed), count)
    assert seeds[0] == seed
    assert len(set(seeds)) == count
    assert all(each in (last + 1, 0) for last, each in itertools.pairwise(seeds))
    assert max(seeds) < 2**64


@given(st.integers(1, 16))
def test_drawn_seeds_of_outputs_differ(count: int) -> None:
    assert len(set(choose_seeds(pb.GenerationSpec(), count))) == count


def outputs(count: int, **spec: object) -> list[str]:
    request = pb.SubmitGenerationRequest(outputs=count, spec=pb.GenerationSpec(**spec))  # type: ignore[arg-type]
    return [f"{violation.field}: {violation.description}" for violation in check_outputs(request)]


def test_number_of_outputs_holds_at_both_edges() -> None:
    for count in (0, 1, 16):
        assert outputs(count) == []
    for count in (17, 2**32 - 1):
        assert outputs(count) == [f"outputs: must be at most 16, not {count}; 0 means 1"]


def test_outputs_that_would_be_one_video_are_rejected() -> None:
    assert outputs(1, donor_generation_id="d") == []
    assert "donor_generation_id" in outputs(2, donor_generation_id="d")[0]
    assert outputs(1, explicit_reuse=pb.ExplicitReuse(reuse_steps=1)) == []
    assert "explicit" in outputs(2, explicit_reuse=pb.ExplicitReuse(reuse_steps=1))[0]
    for differs in ({"renoised": True}, {"draft_step": 2}):
        assert outputs(2, explicit_reuse=pb.ExplicitReuse(reuse_steps=1, **differs)) == []
    assert outputs(2, reuse=plan_pb2.REUSE_POLICY_FAST) == []
