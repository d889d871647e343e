"""Contract of the search for jobs: the pages of any filter, in any sizes, are the jobs that match it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar
from unittest.mock import patch

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select

from services.scheduler.database_location import parse_location
from services.scheduler.jobs import search, statements
from services.scheduler.jobs.amendment_statements import set_report
from services.scheduler.jobs.database import Database, open_database
from services.scheduler.jobs.deadline import to_unix_seconds
from services.scheduler.jobs.job_filter import Decision, JobFilter
from services.scheduler.jobs.ordering import Ordering
from services.scheduler.jobs.rows import Transaction
from services.scheduler.jobs.sql_store import open_store
from services.scheduler.jobs.states import UNFINISHED, State
from services.scheduler.jobs.store import NewJob
from services.scheduler.jobs.tables import labels
from tests.postgresql import create_database

P = ParamSpec("P")
R = TypeVar("R")

CANCELLED = pb.GenerationEvent(cancelled=pb.CancelledEvent())
# A donor that was planned but could not be fetched: a miss.
PLANNED = pb.GenerationEvent(
    planned=pb.PlannedEvent(
        plan=plan_pb2.Plan(total_steps=4, reuse_steps=2, edit="colour", donor=plan_pb2.DonorRef(score=0.9))
    )
)
REPORT = pb.ProblemReport(problem=pb.REPORTED_PROBLEM_OTHER)
SUCCEEDED = pb.GenerationEvent(succeeded=pb.SucceededEvent())
# Takes two of four steps from the donor "j0".
STARTED = pb.GenerationEvent(started=pb.StartedEvent(donor=plan_pb2.DonorRef(generation_id="j0")))
PROMPTS = ("A red CIRCLE", "a blue square", "100% red_ish", "Grüße aus der Straße", "")
COUNT = 60


@dataclass(frozen=True)
class Filled:
    """A database with jobs, and the jobs themselves, newest first."""

    database: Database
    jobs: list[tuple[NewJob, State, float]]
    reported: frozenset[str]
    hits: frozenset[str]


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    location = (
        str(tmp_path_factory.mktemp("search") / "jobs.db")
        if request.param == "sqlite"
        else create_database(request.getfixturevalue("postgresql"))
    )
    database = open_database(parse_location(location, ""))
    rng = random.Random(5)
    jobs: list[tuple[NewJob, State, float]] = []
    reported: set[str] = set()
    hits: set[str] = set()
    for number in range(COUNT):
        spec = pb.GenerationSpec(
            prompt=rng.choice(PROMPTS),
            model_id=rng.choice(("wan", "shapes")),
            labels={key: rng.choice("xy") for key in ("a", "b", "c") if rng.random() < 0.6},
        )
        tenant = rng.choice(("default", "default", "other"))
        new = NewJob(f"j{number}", tenant, f"r{number}", "d", spec, 2e9, "", "")
        # Clocks of several schedulers differ: the order of acceptance is not that of the times.
        created = 1000.0 + number + rng.choice((-3, 0, 3))
        run(database.engine, statements.submit, [new], 1000, 0, None, created, Ordering())
        state = rng.choice((State.QUEUED, State.CANCELLED, State.SUCCEEDED))
        if state is State.SUCCEEDED:
            hit = rng.random() < 0.5
            if hit:
                hits.add(new.job_id)
            run(
                database.engine,
                statements.advance,
                new.job_id,
                UNFINISHED,
                [PLANNED, STARTED, SUCCEEDED] if hit else [PLANNED, SUCCEEDED],
                "*",
                False,
                f"s{number}",
                created,
            )
            if rng.random() < 0.5:
                reported.add(new.job_id)
                run(database.engine, set_report, new.job_id, REPORT, created)
        if state is State.CANCELLED:
            run(
                database.engine,
                statements.advance,
                new.job_id,
                UNFINISHED,
                [CANCELLED],
                "*",
                False,
                f"c{number}",
                created,
            )
        jobs.insert(0, (new, state, created))
    yield Filled(database, jobs, frozenset(reported), frozenset(hits))
    database.close()


def run(
    engine: Engine, work: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    with engine.connect() as plain:
        connection = plain.execution_options(write=True)
        with connection.begin():
            return work(Transaction(connection), *args, **kwargs)


FILTERS = st.builds(
    JobFilter,
    state=st.sampled_from((None, None, State.QUEUED, State.CANCELLED, State.SUCCEEDED, State.FAILED)),
    labels=st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), max_size=3),
    prompt=st.sampled_from(("", "", "", "RED", "red_", "0%", "GRÜSSE", "strasse", "%", "_", "\\", "none")),
    created_after=st.none() | st.integers(995, 1065).map(float),
    created_before=st.none() | st.integers(995, 1065).map(float),
    oldest_first=st.booleans(),
    model_id=st.sampled_from(("", "", "wan", "none")),
    decision=st.sampled_from((Decision.NONE, Decision.NONE, Decision.MISS, Decision.HIT)),
    edit=st.sampled_from(("", "", "", "colour", "size")),
    reported=st.sampled_from((False, False, True)),
    donor=st.sampled_from(("", "", "j0", "none")),
)


def matches(filled: Filled, job: tuple[NewJob, State, float], wanted: JobFilter) -> bool:
    new, state, created = job
    planned = state is State.SUCCEEDED
    decision = Decision.HIT if new.job_id in filled.hits else Decision.MISS if planned else None
    return (
        new.tenant == "default"
        and wanted.state in (None, state)
        and wanted.labels.items() <= dict(new.spec.labels).items()
        and wanted.prompt.casefold() in new.spec.prompt.casefold()
        and (wanted.created_after is None or created >= wanted.created_after)
        and (wanted.created_before is None or created < wanted.created_before)
        and wanted.model_id in ("", new.spec.model_id)
        and wanted.decision in (Decision.NONE, decision)
        and wanted.donor in ("", "j0" if decision is Decision.HIT else None)
        and wanted.edit in ("", "colour" if planned else None)
        and (not wanted.reported or new.job_id in filled.reported)
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=FILTERS, size=st.integers(1, 70), examined=st.integers(1, 70))
def test_pages_of_any_size_are_the_jobs_that_match(
    filled: Filled, wanted: JobFilter, size: int, examined: int
) -> None:
    found: list[str] = []
    beyond: int | None = None
    with patch.object(search, "MAX_EXAMINED", examined):
        for _ in range(COUNT + 2):
            page = run(filled.database.engine, search.list_page, "default", wanted, beyond, size)
            assert len(page.jobs) <= size
            found += [job.job_id for job in page.jobs]
            if page.beyond is not None and beyond is not None:
                assert page.beyond > beyond if wanted.oldest_first else page.beyond < beyond
            beyond = page.beyond
            if beyond is None:
                break
    assert beyond is None
    expected = [job[0].job_id for job in filled.jobs if matches(filled, job, wanted)]
    assert found == (expected[::-1] if wanted.oldest_first else expected)


def test_search_without_a_match_examines_a_bounded_number_of_jobs(filled: Filled) -> None:
    own = [job for job in filled.jobs if job[0].tenant == "default"]
    with patch.object(search, "MAX_EXAMINED", 7):
        page = run(filled.database.engine, search.list_page, "default", JobFilter(prompt="none"), None, 5)
    assert page.jobs == []
    assert page.beyond is not None
    [last] = [new.job_id for new, *_ in own[6:7]]
    examined_last = run(filled.database.engine, statements.find_by_id, last)
    assert examined_last is not None
    assert page.beyond == examined_last.number


def test_labels_are_searched_by_their_index(filled: Filled) -> None:
    wanted = JobFilter(state=State.QUEUED, labels={"a": "x", "b": "y"}, prompt="red")
    executed: list[tuple[str, Any]] = []

    def record(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if statement.startswith("SELECT"):
            executed.append((statement, parameters))

    on_sqlite = filled.database.engine.dialect.name == "sqlite"
    with filled.database.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", record)
        search.list_page(Transaction(connection), "default", wanted, None, 5)
        event.remove(connection, "before_cursor_execute", record)
        if not on_sqlite:  # which reads tables as small as these as a whole
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        assert executed
        for statement, parameters in executed:
            explain = "EXPLAIN QUERY PLAN" if on_sqlite else "EXPLAIN"
            plan = [row[-1] for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
            if on_sqlite:
                assert "USING COVERING INDEX labels_by_value (tenant=? AND key=? AND value=?" in plan[0], plan
                assert not [step for step in plan if "TEMP B-TREE" in step or step.startswith("SCAN")], plan
            else:
                assert any("labels_by_value" in step for step in plan), plan
                assert not any("Seq Scan" in step for step in plan), plan


def test_reports_are_searched_by_their_index(filled: Filled) -> None:
    wanted = JobFilter(reported=True, model_id="wan", decision=Decision.MISS)
    executed: list[tuple[str, Any]] = []

    def record(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if statement.startswith("SELECT"):
            executed.append((statement, parameters))

    on_sqlite = filled.database.engine.dialect.name == "sqlite"
    with filled.database.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", record)
        search.list_page(Transaction(connection), "default", wanted, None, 5)
        event.remove(connection, "before_cursor_execute", record)
        if not on_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        assert executed
        for statement, parameters in executed:
            explain = "EXPLAIN QUERY PLAN" if on_sqlite else "EXPLAIN"
            plan = [row[-1] for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
            assert any("reports_by_tenant" in step for step in plan), plan
            assert not any("TEMP B-TREE" in step or "Seq Scan" in step for step in plan), plan


async def test_labels_are_removed_with_their_job(location: str) -> None:
    store = await open_store(location, lambda _: None)
    try:
        for name in ("kept", "removed"):
            spec = pb.GenerationSpec(prompt=name, labels={"project": "demo", "empty": ""})
            await store.submit(NewJob(name, "default", name, "d", spec, 2e9, "", ""), 10)
            await store.advance(name, UNFINISHED, [CANCELLED])
        await store.forget(["removed"])
        page = await store.page("default", JobFilter(labels={"project": "demo", "empty": ""}), None, 10)
        assert [job.job_id for job in page.jobs] == ["kept"]
    finally:
        await store.close()
    database = await asyncio.to_thread(open_database, parse_location(location, ""))
    with database.engine.connect() as connection:
        assert connection.execute(select(labels.c.number).distinct()).all() == [(page.jobs[0].number,)]
    database.close()


async def test_job_is_found_by_the_time_that_clients_see(location: str) -> None:
    """This time of the clock is below that of its own nanoseconds, rounded."""
    store = await open_store(location, lambda _: None, clock=lambda: 1_790_608_046.603_326)
    try:
        job, _ = await store.submit(
            NewJob("a", "default", "a", "d", pb.GenerationSpec(prompt="a"), 2e9, "", ""), 10
        )
        seen = to_unix_seconds(job.generation.create_time)
        at = await store.page("default", JobFilter(created_after=seen), None, 10)
        ago = await store.page("default", JobFilter(created_before=seen), None, 10)
        assert ([job.job_id for job in at.jobs], ago.jobs) == (["a"], [])
    finally:
        await store.close()
