"""Jobs under faults: `python -m bench.scheduler_chaos` writes bench/results/scheduler_chaos.json.

Two scheduler processes share a PostgreSQL database and three denoisers, which answer by script, as embedder
and cache do. One fault after the other kills, drains, stops or stalls one of them, or cuts the connections to
the database, while the jobs run. Takes about five minutes.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from bench import results
from tests.integration.scheduler.chaos import run_chaos

OUT: Final = results.RESULTS / "scheduler_chaos.json"


def main(
    jobs: Annotated[int, typer.Option(min=1, max=10_000, help="Number of jobs.")] = 300,
    faults: Annotated[int, typer.Option(min=1, max=10_000, help="Number of faults.")] = 90,
    seed: Annotated[int, typer.Option(help="Seed of the order of the faults.")] = 14,
) -> None:
    """Runs the jobs and writes the result file."""
    with tempfile.TemporaryDirectory(prefix="chorus-chaos-") as name:
        outcome = asyncio.run(run_chaos(Path(name), jobs, faults, seed))
    figures = {
        "chaos_jobs": results.single(outcome.accepted, "jobs"),
        "chaos_faults": results.single(outcome.faults.total(), "faults"),
        "chaos_lost": results.single(len(outcome.lost), "jobs"),
        "chaos_duplicated": results.single(len(outcome.repeated), "jobs"),
        "chaos_event_gaps": results.single(len(outcome.gaps), "jobs"),
        "chaos_orphan_leases": results.single(outcome.leases, "leases"),
        "chaos_attempts": results.single(outcome.attempts, "attempts"),
    }
    for figure_name, figure in figures.items():
        print(f"{figure_name}: {figure.value:g} {figure.unit}")
    command = f"python -m bench.scheduler_chaos {shlex.join(sys.argv[1:])}".strip()
    results.write(OUT, command, figures)


if __name__ == "__main__":
    typer.run(main)
