"""Verifies that interrupted runs are kept within a number of bytes."""

from __future__ import annotations

from typing import Any, cast

from chorus.denoiser.v1 import denoiser_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.unfinished_runs import UnfinishedRun, UnfinishedRuns

MIB = 1 << 20


def make_run(size: int) -> UnfinishedRun:
    request = denoiser_pb2.DenoiseRequest(resume_point=bytes(size))
    return UnfinishedRun(cast(Any, None), request, 1, 0.5, 0.0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 120))), max_size=30))
def test_newest_runs_are_kept_within_the_bound(changes: list[tuple[str, int | None]]) -> None:
    runs = UnfinishedRuns(max_bytes=200, max_message_bytes=MIB)
    expected: dict[str, UnfinishedRun] = {}
    for job_id, size in changes:
        expected.pop(job_id, None)
        if size is None:
            runs.discard(job_id)
        else:
            expected[job_id] = make_run(size)
            runs.keep(job_id, expected[job_id])
            while sum(run.size_bytes for run in expected.values()) > 200:
                del expected[next(iter(expected))]
        assert {each: runs.find(each) for each in "abcd"} == {each: expected.get(each) for each in "abcd"}


def test_run_above_the_bound_replaces_none() -> None:
    runs = UnfinishedRuns(max_bytes=100, max_message_bytes=MIB)
    runs.keep("a", make_run(10))
    runs.keep("b", make_run(200))
    assert runs.find("a") is not None
    assert runs.find("b") is None


def test_points_fit_into_memory_and_messages() -> None:
    assert UnfinishedRuns(0, MIB).max_point_bytes == 0
    assert UnfinishedRuns(100, MIB).max_point_bytes == 100
    assert 0 < UnfinishedRuns(10 * MIB, MIB).max_point_bytes < MIB
