"""Verifies the prediction of starts: pure, and with what a store returns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.start_times import StartTimes, predict_starts
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, Outlook, QueuedJob

SERVING: Any = SimpleNamespace(serving=True)
ABSENT: Any = SimpleNamespace(serving=False)


def test_each_job_starts_when_a_run_before_it_ends() -> None:
    waiting = [("a", 5.0), ("b", 1.0), ("c", 1.0)]
    assert predict_starts(1, [4.0], waiting) == {"a": 4.0, "b": 9.0, "c": 10.0}
    assert predict_starts(2, [4.0], waiting) == {"a": 0.0, "b": 4.0, "c": 5.0}
    assert predict_starts(1, [4.0, 2.0], waiting) == {"a": 2.0, "b": 4.0, "c": 5.0}, "of other schedulers"


def test_nothing_is_predicted_from_what_is_not_known() -> None:
    assert predict_starts(2, [4.0, None], [("a", 1.0)]) == {}
    assert predict_starts(1, [4.0], [("a", 1.0), ("b", None), ("c", 1.0)]) == {"a": 4.0, "b": 5.0}


durations = st.floats(0, 1e4)


@given(st.integers(1, 4), st.lists(durations, max_size=4), st.lists(durations, max_size=20))
def test_starts_follow_the_order_and_no_slot_is_idle(
    slots: int, left: list[float], works: list[float]
) -> None:
    starts = list(predict_starts(slots, left, [(str(n), work) for n, work in enumerate(works)]).values())
    assert len(starts) == len(works)
    assert starts == sorted(starts)
    ends = left + [start + work for start, work in zip(starts, works, strict=True)]
    for place, start in enumerate(starts):
        # At its start at most all slots but one have something to do.
        busy = sum(end > start for end in ends[: len(left) + place])
        assert busy < max(slots, len(left))
        assert start == 0.0 or start in ends


class Store:
    """Queue of three jobs behind a run that has computed one of its four steps; counts the questions."""

    def __init__(self) -> None:
        self.asked = 0

    async def outlook(self, _: int) -> Outlook:
        self.asked += 1
        generation = pb.Generation(
            spec=pb.GenerationSpec(model_id="shapes"), plan=plan_pb2.Plan(total_steps=4), steps_completed=1
        )
        run = Job("run", 1, "t", "", State.RUNNING, "", 0, generation)
        queued = [
            (QueuedJob("a", State.QUEUED, 0.0, 1), 10.0),
            (QueuedJob("waits", State.WAITING, 0.0, 1), 10.0),
            (QueuedJob("b", State.QUEUED, 0.0, 1), 10.0),
        ]
        return Outlook(queued, [(run, 99.0)])


def make(store: Store, peer: Any = SERVING, limit: int = 0) -> StartTimes:
    denoisers = SimpleNamespace(slots=1, models={"shapes": SimpleNamespace(seconds_per_step=2.0)})
    return StartTimes(cast(Any, store), Throughput(), cast(Any, denoisers), [peer], limit)


async def test_run_under_way_counts_with_the_steps_that_are_left() -> None:
    starts = await make(Store()).find()
    assert set(starts) == {"a", "b"}, "nothing predicts when a service returns"
    assert starts["b"] - starts["a"] == 20.0


async def test_wait_for_a_free_denoiser_is_that_for_the_run_unless_it_gives_way() -> None:
    times = make(Store())
    assert 0.0 < await times.until_free(Priority.NORMAL) <= 6.0, "three steps of two seconds"
    assert 0.0 < await times.until_free(Priority.LOW) <= 6.0
    assert await times.until_free(Priority.HIGH) == 0.0
    assert await make(Store(), ABSENT).until_free(Priority.NORMAL) == 0.0, "nothing is known"


async def test_queue_is_read_once_for_many_questions() -> None:
    store = Store()
    times = make(store)
    for _ in range(100):
        await times.find()
    assert store.asked <= 2, "at most once a second"
    asked = store.asked
    times.forget()
    await times.find()
    assert store.asked == asked + 1


async def test_no_start_is_predicted_without_services_or_with_limits_of_tenants() -> None:
    store = Store()
    assert await make(store, ABSENT).find() == {}
    assert await make(store, limit=2).find() == {}
    assert not store.asked
