"""A trace on a real scheduler, against the simulation of its order: `python -m bench.queue_replay`.

Replays traces of `bench.queue_order`, shortened in time, on a scheduler process with one denoiser whose steps
take a fixed time, and compares the time that each generation took with simulations of the same arrivals and
of the measured runs: in the order of the scheduler, and first come, first served. Writes
bench/results/queue_replay.json.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from bench import results
from bench.queue_order import SEEDS, Arrival, make_trace, simulate
from bench.results import Figure
from services.scheduler.jobs.ordering import Ordering, Priority
from tests.integration.scheduler.world import World

# A second of a trace is this many steps, of this many seconds each.
_STEPS: Final = 10
_STEP_SECONDS: Final = 0.05
_WATCH_SECONDS: Final = 600.0


async def replay(world: World, trace: Sequence[Arrival]) -> list[pb.Generation]:
    """Submits the jobs of a trace at their times. Returns the generations once all have ended."""
    world.denoiser.step_seconds = _STEP_SECONDS
    begin = time.monotonic()

    async def run(number: int, arrival: Arrival) -> pb.Generation:
        await asyncio.sleep(begin + arrival.time * _STEPS * _STEP_SECONDS - time.monotonic())
        job = await world.submit(
            f"trace, number {number}",
            steps=max(1, round(arrival.work * _STEPS)),
            reuse=plan_pb2.REUSE_POLICY_OFF,
            no_store=True,
        )
        await world.events(job, seconds=_WATCH_SECONDS)
        ended = await world.get(job)
        if ended.state != pb.GENERATION_STATE_SUCCEEDED:
            raise RuntimeError(f"a generation ended as {pb.GenerationState.Name(ended.state)}: {ended.error}")
        return ended

    return await asyncio.gather(*(run(number, arrival) for number, arrival in enumerate(trace)))


def compare(ended: Sequence[pb.Generation]) -> dict[str, float]:
    """Compares mean times from acceptance to completion, and the worst one first come, first served."""
    ended = sorted(ended, key=lambda each: each.create_time.ToNanoseconds())
    first = ended[0].create_time.ToNanoseconds()
    trace = [
        Arrival((each.create_time.ToNanoseconds() - first) / 1e9, each.timings.running_seconds)
        for each in ended
    ]
    taken = [(each.end_time.ToNanoseconds() - each.create_time.ToNanoseconds()) / 1e9 for each in ended]
    ordering = Ordering()
    ours = simulate(trace, lambda job, backlog: job.time + ordering.delay(Priority.NORMAL, job.work, backlog))
    fifo = simulate(trace, lambda job, _: job.time)
    longest = max(job.work for job in trace)
    return {
        "mean_completion_ratio_to_simulation": sum(taken) / sum(ours),
        "mean_completion_ratio_to_fifo": sum(taken) / sum(fifo),
        "simulated_mean_completion_ratio_to_fifo": sum(ours) / sum(fifo),
        "worst_completion_ratio_to_fifo": max(
            (mine - longest) / theirs for mine, theirs in zip(taken, fifo, strict=True)
        ),
    }


async def measure(traces: int, jobs: int) -> dict[str, Figure]:
    found = []
    for seed in SEEDS[:traces]:
        with tempfile.TemporaryDirectory(prefix="chorus-replay-") as folder:
            async with World(Path(folder), {"CHORUS_SCHEDULER_CONCURRENCY": "1"}) as world:
                found.append(compare(await replay(world, make_trace(seed, jobs))))
    return {name: results.mean([each[name] for each in found], "x") for name in found[0]}


def main(
    traces: Annotated[int, typer.Option(min=2, max=len(SEEDS), help="Number of traces.")] = len(SEEDS),
    jobs: Annotated[int, typer.Option(min=10, max=1000, help="Number of jobs of each trace.")] = 120,
) -> None:
    """Replays the traces and writes the result file."""
    figures = asyncio.run(measure(traces, jobs))
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.3f} {figure.unit} {figure.ci95 or ''}")
    command = f"python -m bench.queue_replay {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "queue_replay.json", command, figures)


if __name__ == "__main__":
    typer.run(main)
