"""The scheduler under load: `python -m bench.scheduler_load` writes bench/results/scheduler.json.

A real scheduler process, with services behind it that answer at once, gets a burst of generations from
several submitters while many clients watch. The cost of each operation of the job store is measured in this
process, with more and more jobs that wait or have ended. PostgreSQL runs on this machine.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import numpy as np
import typer
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import insert, text

from bench import results
from bench.results import Figure
from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.states import IN_QUEUE, State
from services.scheduler.jobs.store import NewJob
from services.scheduler.jobs.tables import events, jobs
from tests.integration.scheduler.world import World
from tests.postgresql import create_database, running_server

OUT: Final = results.RESULTS / "scheduler.json"
_QUEUE_LIMIT: Final = 4_000
_WATCH_SECONDS: Final = 600.0
_SIZES: Final = (100, 1_000, 10_000, 100_000)
_REPEATS: Final = 60
_FILL: Final = 5_000  # rows of one statement
_PLANNED: Final = pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4)))
_STEP: Final = pb.GenerationEvent(step_completed=pb.StepCompletedEvent(total_steps=4))
_SUCCEEDED: Final = pb.GenerationEvent(succeeded=pb.SucceededEvent(steps_run=4))


async def submit(world: World, number: int, **spec: Any) -> tuple[pb.Generation, float]:
    """Submits a generation; returns it and the seconds of the call."""
    start = time.perf_counter()
    generation = await world.submit(f"a red car, number {number}", **spec)
    return generation, time.perf_counter() - start


async def measure_burst(folder: Path, count: int, submitters: int, watchers: int) -> dict[str, Figure]:
    """Measures a burst of generations from closed-loop submitters, while watchers follow some of them."""
    settings = {"CHORUS_SCHEDULER_QUEUE_LIMIT": str(_QUEUE_LIMIT), "CHORUS_SCHEDULER_CONCURRENCY": "4"}
    async with World(folder, settings) as world:
        accepted: list[pb.Generation] = []
        seconds: list[float] = []
        watching: list[asyncio.Task[list[pb.GenerationEvent]]] = []
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                generation, taken = await submit(world, number)
                accepted.append(generation)
                seconds.append(taken)
                if len(watching) < watchers:
                    watching.append(asyncio.create_task(world.events(generation, seconds=_WATCH_SECONDS)))

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(submitters)))
        submitted = time.perf_counter() - begin
        lost, gaps = await count_lost(world, accepted), 0
        for watched in watching:
            found = [event.sequence for event in await watched]
            gaps += found != list(range(1, len(found) + 1))
        peak = read_peak_memory(world.process.pid)
        runs = [request.generation_id for request in world.denoiser.requests]
        return {
            "burst_accepted": results.single(len(accepted), "generations"),
            "burst_lost": results.single(lost, "generations"),
            "burst_run_twice": results.single(len(runs) - len(set(runs)), "generations"),
            "burst_event_gaps": results.single(gaps, "watchers"),
            "submit_p50_ms": results.median([1000 * each for each in seconds], "ms"),
            "submit_p99_ms": results.quantile([1000 * each for each in seconds], 0.99, "ms"),
            "submissions_per_second": results.single(len(accepted) / submitted, "1/s"),
            "generations_per_second": results.single(len(accepted) / (time.perf_counter() - begin), "1/s"),
            "peak_rss_mb": results.single(peak, "MB"),
        }


def read_peak_memory(pid: int) -> float:
    """Returns the largest resident memory of a process so far, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return peak * 1024 / 1e6


async def count_lost(world: World, accepted: Sequence[pb.Generation]) -> int:
    """Waits for the end of every generation. Returns how many did not succeed, or not once."""
    lost = 0
    for generation in accepted:
        found = await world.events(generation, seconds=_WATCH_SECONDS)
        ends = [event for event in found if event.WhichOneof("event") in ("succeeded", "failed", "cancelled")]
        lost += len(ends) != 1 or not ends[0].HasField("succeeded")
    return lost


async def measure_limit(folder: Path, submitters: int) -> dict[str, Figure]:
    """Counts the generations that a queue accepts before it refuses, while the first one runs."""
    settings = {"CHORUS_SCHEDULER_QUEUE_LIMIT": str(_QUEUE_LIMIT)}
    async with World(folder, settings) as world:
        world.denoiser.pause_before = 0
        accepted, refused = 0, 0
        seconds: list[float] = []
        numbers = iter(range(_QUEUE_LIMIT + 200))

        async def work() -> None:
            nonlocal accepted, refused
            for number in numbers:
                try:
                    _, taken = await submit(world, number)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    refused += 1
                else:
                    accepted += 1
                    seconds.append(taken)

        await asyncio.gather(*(work() for _ in range(submitters)))
        return {
            "full_queue_accepted": results.single(accepted, "generations"),
            "full_queue_refused": results.single(refused, "generations"),
            "full_queue_submit_p99_ms": results.quantile([1000 * each for each in seconds], 0.99, "ms"),
        }


async def fill(store: SqlStore, count: int, *, waiting: bool, first: int) -> None:
    """Adds jobs that wait or have ended, by statements of many rows."""
    now = time.time()
    state = State.QUEUED if waiting else State.SUCCEEDED
    for start in range(first, first + count, _FILL):
        numbers = range(start, min(start + _FILL, first + count))
        rows = [
            {
                "number": number,
                "id": f"filled-{number}",
                "tenant": "bench",
                "request_id": f"filled-{number}",
                "body_digest": "",
                "state": state.value,
                "deadline": now + 86_400,
                "traceparent": "",
                "announced": 1,
                "generation": pb.Generation(
                    generation_id=f"filled-{number}", state=state.value, last_sequence=1
                ).SerializeToString(),
                "created": now,
                "ended": None if waiting else now,
                "order_key": now,
                "queue_key": now if waiting else None,
                "estimated": 1,
            }
            for number in numbers
        ]
        marks = [{"number": number, "sequence": 1, "event": b""} for number in numbers]

        def write(rows: list[dict[str, Any]] = rows, marks: list[dict[str, Any]] = marks) -> None:
            with store._database.engine.connect() as plain:
                connection = plain.execution_options(write=True)
                with connection.begin():
                    connection.execute(insert(jobs), rows)
                    connection.execute(insert(events), marks)

        await store._run(write)

    def analyze() -> None:
        with store._database.engine.connect() as plain:
            plain.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))

    if not store._database.exclusive:
        await store._run(analyze)  # as autovacuum does within a minute


async def time_operations(store: SqlStore, label: str) -> dict[str, list[float]]:
    """Measures each operation in the life of a job. Returns the seconds of each call, by operation."""
    taken: dict[str, list[float]] = {}

    async def measure(name: str, call: Awaitable[object]) -> None:
        start = time.perf_counter()
        await call
        taken.setdefault(name, []).append(time.perf_counter() - start)

    for number in range(_REPEATS):
        job_id = f"{label}-{number}"
        new = NewJob(job_id, "bench", job_id, "", pb.GenerationSpec(prompt="a red car"), 4e9, "", "")
        await measure("submit", store.submit(new, 10**9))
        await measure("position", store.positions([job_id]))
        await measure("look", store.look(time.time(), 11, 100))
        await measure("claim", store.claim(job_id))
        for event, expect in ((_PLANNED, IN_QUEUE), (_STEP, {State.RUNNING}), (_SUCCEEDED, {State.RUNNING})):
            await measure("event", store.advance(job_id, expect, [event], owner=store.scheduler_id))
        await measure("page", store.page("bench", JobFilter(), None, 50))
        await measure("watch", store.events(job_id, 0, 64))
    return taken


def fit_exponent(medians: Mapping[int, float]) -> float:
    """Returns the exponent b of the power law a·nᵇ that fits the costs at the numbers of jobs."""
    sizes, costs = zip(*sorted(medians.items()), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


async def measure_costs(locate: Callable[[str], str], name: str, sizes: Sequence[int]) -> dict[str, Figure]:
    """Measures the cost of each operation with jobs that have ended, and with as many that wait.

    Args:
        locate: returns the location of a new database of this name.
    """
    figures: dict[str, Figure] = {}
    for kind in ("history", "queue"):
        medians: dict[str, dict[int, float]] = {}
        store = await open_store(locate(kind), lambda _: None)
        try:
            filled = 0
            for place, size in enumerate(sizes, 1):
                # The store numbers its own jobs from the last number on.
                await fill(store, size - filled, waiting=kind == "queue", first=place * 10**6)
                filled = size
                for operation, taken in (await time_operations(store, f"{kind}-{size}")).items():
                    medians.setdefault(operation, {})[size] = 1000 * float(np.median(taken))
        finally:
            await store.close()
        for operation, by_size in medians.items():
            key = f"{name}_{operation}_{kind}"
            figures[f"{key}_ms_{sizes[0]}"] = results.single(by_size[sizes[0]], "ms")
            figures[f"{key}_ms_{sizes[-1]}"] = results.single(by_size[sizes[-1]], "ms")
            figures[f"{key}_exponent"] = results.single(fit_exponent(by_size), "of the number of jobs")
        whole = {
            size: sum(by_size[size] for by_size in medians.values()) + 2 * medians["event"][size]
            for size in sizes
        }
        figures[f"{name}_job_{kind}_exponent"] = results.single(fit_exponent(whole), "of the number of jobs")
    return figures


async def measure(folder: Path, count: int, submitters: int, watchers: int, sizes: Sequence[int]) -> None:
    figures = await measure_burst(folder / "burst", count, submitters, watchers)
    figures |= await measure_limit(folder / "limit", submitters)
    figures |= await measure_costs(lambda kind: str(folder / f"{kind}.db"), "sqlite", sizes)
    with running_server(folder / "server") as server:
        figures |= await measure_costs(lambda _: create_database(server), "postgresql", sizes)
    worst = max(figure.value for name, figure in figures.items() if name.endswith("_history_exponent"))
    figures["event_cost_exponent"] = results.single(worst, "of the number of jobs that have ended")
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit}", flush=True)
    results.write(OUT, f"python -m bench.scheduler_load {shlex.join(sys.argv[1:])}".strip(), figures)


def main(
    generations: Annotated[int, typer.Option(min=1, help="Number of generations of the burst.")] = 2_000,
    submitters: Annotated[int, typer.Option(min=1, help="Number of clients that submit in turn.")] = 16,
    watchers: Annotated[int, typer.Option(min=0, help="Number of generations that are watched.")] = 200,
    largest: Annotated[
        int, typer.Option(min=1_000, help="Largest number of jobs in the store; up to 100,000.")
    ] = 100_000,
) -> None:
    """Measures the scheduler under load and writes the result file."""
    sizes = [size for size in _SIZES if size <= largest]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("burst", "limit", "server"):
            (folder / part).mkdir()
        asyncio.run(measure(folder, generations, submitters, watchers, sizes))


if __name__ == "__main__":
    typer.run(main)
