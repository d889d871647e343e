"""Verifies that a plan which cannot be made ahead stops neither the forecast nor the other jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.scheduler.dispatch.forecast import Forecast
from services.scheduler.dispatch.preparation import Preparation
from services.scheduler.dispatch.repetition import make_repetition_key
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.jobs.sql_store import open_store
from services.scheduler.jobs.store import Job, NewJob

MODEL: Any = SimpleNamespace(seconds_per_step=1.0)


class _Preparation(Preparation):
    """Plans jobs by their prompt: raises the fault of this name, or plans a hit of three of four steps."""

    faults: dict[str, Exception] = {  # noqa: RUF012
        "unexpected": KeyError("a mistake of this program"),
        "refused": ChorusError(errors.UNKNOWN_MODEL, "not served"),
        "unavailable": RetryableFailure("embedder", errors.unavailable("embedder", "down")),
    }

    def __init__(self) -> None:
        self.prepared: list[str] = []

    async def prepare(self, job: Job) -> Any:
        prompt = job.generation.spec.prompt
        self.prepared.append(prompt)
        if prompt in self.faults:
            raise self.faults[prompt]
        plan = plan_pb2.Plan(total_steps=4, reuse_steps=3, predicted_seconds_saved=3.0)
        return SimpleNamespace(model=MODEL, plan=plan)


@pytest.mark.parametrize("fault", _Preparation.faults)
async def test_job_that_cannot_be_planned_keeps_its_full_work(tmp_path: Path, fault: str) -> None:
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    preparation = _Preparation()
    estimated: asyncio.Queue[None] = asyncio.Queue()
    forecast = Forecast(store, preparation, Throughput(), [cast(Any, SimpleNamespace(serving=True))])
    running = asyncio.create_task(forecast.run(lambda: estimated.put_nowait(None)))
    try:
        for number, prompt in enumerate((fault, "a hit")):
            spec = pb.GenerationSpec(prompt=prompt)
            new = NewJob(f"job-{number}", "default", prompt, "", spec, 4e9, "", "", work=4.0)
            await store.submit(new, 10)
        forecast.wake()
        async with asyncio.timeout(20):
            for _ in range(2):
                await estimated.get()
        assert preparation.prepared == [fault, "a hit"]
        assert (await store.queue_state()).work == 4.0 + 1.0
        assert [job.job_id for job in await store.queue(10)] == ["job-1", "job-0"]
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()


def spec(**fields: Any) -> pb.GenerationSpec:
    return pb.GenerationSpec(
        **{"prompt": "a red car", "seed": 7, "reuse": plan_pb2.REUSE_POLICY_SAFE, **fields}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "a blue car"},
        {"seed": 8},
        {"reuse": plan_pb2.REUSE_POLICY_FAST},
        {"model_id": "other"},
        {"max_reuse_steps": 1},
    ],
)
def test_requests_that_differ_are_no_repetitions(other: dict[str, Any]) -> None:
    key = make_repetition_key(pb.Generation(spec=spec()))
    assert key is not None
    assert make_repetition_key(pb.Generation(spec=spec(**other))) not in (key, None)


def test_what_does_not_change_the_video_does_not_matter() -> None:
    late = spec(priority=pb.PRIORITY_HIGH)
    late.deadline.seconds = 9
    late.retention.pinned = True
    late.labels["project"] = "x"
    assert make_repetition_key(pb.Generation(spec=late)) == make_repetition_key(pb.Generation(spec=spec()))


@pytest.mark.parametrize(
    "generation",
    [
        pb.Generation(spec=spec(), seed_chosen=True),
        pb.Generation(spec=spec(no_store=True)),
        pb.Generation(spec=spec(reuse=plan_pb2.REUSE_POLICY_OFF)),
        pb.Generation(spec=spec(explicit_reuse=pb.ExplicitReuse(reuse_steps=1))),
        pb.Generation(spec=spec(donor_generation_id="d")),
    ],
)
def test_request_whose_result_answers_no_other_has_no_key(generation: pb.Generation) -> None:
    assert make_repetition_key(generation) is None
