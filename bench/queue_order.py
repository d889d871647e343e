"""The queue's order against first come, first served: `python -m bench.queue_order` simulates five traces.

A trace has exact repeats, hits and misses of several lengths at a load of .9 of one denoiser. The order is
that of the scheduler (services/scheduler/jobs/ordering.py). The work of every job is known
when it is accepted.
Writes bench/results/queue_order.json.
"""

from __future__ import annotations

import heapq
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from bench import results
from services.scheduler.jobs.ordering import Ordering, Priority

SEEDS: Final = (101, 102, 103, 104, 105)
_LOAD: Final = 0.9
_LENGTHS: Final = (1.0, 4.0)  # seconds of a full computation
# Share of the jobs up to which each kind comes, and its work as a share of the full computation.
_KINDS: Final = ((0.20, 0.10), (0.65, 0.45), (1.0, 1.0))


@dataclass(frozen=True)
class Arrival:
    """A job of a trace: when it is accepted, and the seconds of its run."""

    time: float
    work: float


@dataclass(frozen=True)
class Comparison:
    """The queue's order against first come, first served on one trace.

    Attributes:
        mean_ratio: mean time from acceptance to completion, as a ratio to that first come, first served.
        worst_ratio: largest such ratio of one job, without the longest run of the trace.
        worst_excess: seconds by which the worst job exceeds three times its time first come, first served
            plus one longest run; negative if none does.
    """

    mean_ratio: float
    worst_ratio: float
    worst_excess: float


def make_trace(seed: int, jobs: int) -> list[Arrival]:
    """Draws a trace of jobs with exponential pauses in between."""
    rng = random.Random(seed)
    works = []
    for _ in range(jobs):
        full, kind = rng.uniform(*_LENGTHS), rng.random()
        works.append(full * next(share for limit, share in _KINDS if kind < limit))
    mean, now, trace = sum(works) / jobs, 0.0, []
    for work in works:
        now += rng.expovariate(_LOAD / mean)
        trace.append(Arrival(now, work))
    return trace


def simulate(trace: Sequence[Arrival], key: Callable[[Arrival, float], float]) -> list[float]:
    """Returns the seconds from acceptance to completion of each job, on one denoiser.

    Args:
        key: returns the order key of a job, from the seconds of work that wait when it is accepted.
    """
    queue: list[tuple[float, int]] = []
    taken = [0.0] * len(trace)
    now, accepted, waiting = 0.0, 0, 0.0
    while accepted < len(trace) or queue:
        if not queue:
            now = max(now, trace[accepted].time)
        while accepted < len(trace) and trace[accepted].time <= now:
            heapq.heappush(queue, (key(trace[accepted], waiting), accepted))
            waiting += trace[accepted].work
            accepted += 1
        _, started = heapq.heappop(queue)
        waiting -= trace[started].work
        now += trace[started].work
        taken[started] = now - trace[started].time
    return taken


def compare(trace: Sequence[Arrival], ordering: Ordering = Ordering()) -> Comparison:  # noqa: B008
    """Compares the order of the scheduler with first come, first served."""
    fifo = simulate(trace, lambda job, _: job.time)
    ours = simulate(trace, lambda job, backlog: job.time + ordering.delay(Priority.NORMAL, job.work, backlog))
    longest = max(job.work for job in trace)
    return Comparison(
        mean_ratio=sum(ours) / sum(fifo),
        worst_ratio=max((mine - longest) / theirs for mine, theirs in zip(ours, fifo, strict=True)),
        worst_excess=max(mine - 3 * theirs - longest for mine, theirs in zip(ours, fifo, strict=True)),
    )


def main(
    jobs: Annotated[int, typer.Option(min=10, help="Number of jobs of each trace.")] = 1000,
) -> None:
    """Compares the orders on five traces and writes the result file."""
    found = [compare(make_trace(seed, jobs)) for seed in SEEDS]
    figures = {
        "mean_completion_ratio_to_fifo": results.mean([each.mean_ratio for each in found], "x"),
        "mean_completion_ratio_to_fifo_worst_seed": results.single(
            max(each.mean_ratio for each in found), "x"
        ),
        "worst_completion_ratio_to_fifo": results.single(max(each.worst_ratio for each in found), "x"),
        "worst_excess_seconds": results.single(max(each.worst_excess for each in found), "s"),
    }
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.3f} {figure.unit} {figure.ci95 or ''}")
    command = f"python -m bench.queue_order {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "queue_order.json", command, figures)


if __name__ == "__main__":
    typer.run(main)
