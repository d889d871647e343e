"""Behaviour under faults: `python -m bench.faults` writes bench/results/faults.json.

Runs the tests that are marked with a kind of fault, measures the error of merged adapters, and breaks one
resource after another of a running deployment under load. One scenario needs an S3 server and one needs root:

    infra/testservers/run .venv/bin/python -m bench.faults
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from bench import results
from bench.faults.load import Job, Outcome, compare_tails
from bench.faults.marks import run_marked_tests
from bench.faults.scenarios import SCENARIOS, Result, missing_requirement
from bench.lora_error import measure_lora_error
from bench.results import Figure, single
from evaluation.scenes import make_groups

OUT: Final = results.RESULTS / "faults.json"
PROMPTS: Final = 12
# Time after which a breaker has opened, in seconds: one time limit and what the first jobs take.
SETTLED_SECONDS: Final = 5.0
# End of the name of each scenario's time of recovery.
RECOVERY: Final = ".recovery_seconds"
# Scenarios in which jobs go on while the resource is away, so that the delay of each job is measured.
PASSABLE: Final = ("cache_silent", "s3_silent", "log_sink_closed")


def build_figures(name: str, result: Result) -> dict[str, Figure]:
    """Computes the figures of one scenario."""
    jobs = result.jobs
    counts = {outcome: sum(job.outcome is outcome for job in jobs) for outcome in Outcome}
    accepted = len(jobs) - counts[Outcome.REFUSED]
    figures = {
        f"{name}.accepted": Figure(accepted, "jobs", accepted),
        f"{name}.succeeded": Figure(counts[Outcome.SUCCEEDED], "jobs", accepted),
        f"{name}.not_succeeded": Figure(accepted - counts[Outcome.SUCCEEDED], "jobs", accepted),
        f"{name}.refused": Figure(counts[Outcome.REFUSED], "jobs", len(jobs)),
    }
    if name in PASSABLE:
        settled = [job for job in jobs if job.start >= SETTLED_SECONDS]
        for label, part in (("overhead_ms_p95", jobs), ("overhead_settled_ms_p95", settled)):
            if (figure := compare_tails(part)) is not None:
                figures[f"{name}.{label}"] = figure
        figures[f"{name}.slowest_seconds"] = single(max(job.seconds for job in jobs), "s")
    if result.recovery_seconds is not None:
        figures[name + RECOVERY] = single(result.recovery_seconds, "s")
    return figures


def print_outcomes(name: str, jobs: Sequence[Job]) -> None:
    """Prints the distinct faults of a scenario and how often each occurred."""
    errors: dict[str, int] = {}
    for job in jobs:
        if job.error:
            errors[f"{job.outcome}: {job.error}"] = errors.get(f"{job.outcome}: {job.error}", 0) + 1
    warned = sum(job.warned for job in jobs)
    print(f"{name}: {len(jobs)} jobs, {warned} with a warning, {sum(job.hit for job in jobs)} hits")
    for error, count in errors.items():
        print(f"  {count} × {error}")


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = OUT,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each fault.")] = 60.0,
    scenario: Annotated[list[str], typer.Option(help="Scenarios to run; default: all.")] = [],  # noqa: B006
    tests: Annotated[bool, typer.Option(help="Run the marked tests and measure adapters.")] = True,
    chaos: Annotated[bool, typer.Option(help="Run the scenarios.")] = True,
    keep: Annotated[
        bool, typer.Option(help="Keep the figures of the result file that this run does not measure.")
    ] = False,
) -> None:
    names = (scenario or list(SCENARIOS)) if chaos else []
    if unknown := set(names) - set(SCENARIOS):
        raise typer.BadParameter(f"unknown scenario {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    for name in names:
        if requirement := missing_requirement(name):
            raise typer.BadParameter(f"{name} needs {requirement}")
    figures: dict[str, Figure] = {}
    if tests:
        kinds = run_marked_tests()
        figures["kinds_fixed"] = Figure(sum(kind.fixed for kind in kinds.values()), "kinds", len(kinds))
        count = sum(kind.passed + len(kind.failed) for kind in kinds.values())
        figures["tests_added"] = Figure(count, "tests", count)
        errors = measure_lora_error()
        figures["lora_max_rel_error"] = Figure(max(errors.values()), "relative", len(errors))
        for name, kind in kinds.items():
            print(f"{name}: {kind.passed} passed, {len(kind.failed)} failed, {kind.skipped} skipped")
    prompts = [group.donor.prompt for group in make_groups("calibration", PROMPTS, 0, "seen")]
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            result = SCENARIOS[name](Path(directory), prompts, seconds)
        print_outcomes(name, result.jobs)
        figures |= build_figures(name, result)
    if "cache_silent.overhead_ms_p95" in figures:
        figures["silent_cache_overhead_ms"] = figures["cache_silent.overhead_ms_p95"]
    kept = results.read(out)["figures"] if keep else {}
    recoveries = {name: figure["value"] for name, figure in kept.items() if name.endswith(RECOVERY)}
    recoveries |= {name: figure.value for name, figure in figures.items() if name.endswith(RECOVERY)}
    if recoveries:
        figures["recovery_seconds"] = Figure(max(recoveries.values()), "s", len(recoveries))
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit} {figure.ci95 or ''}, n = {figure.n}")
    # The command redraws every figure of the file, those that are kept as well.
    arguments = "" if keep else shlex.join(sys.argv[1:])
    command = f"infra/testservers/run .venv/bin/python -m bench.faults {arguments}".strip()
    results.write(out, command, {**kept, **figures})


if __name__ == "__main__":
    typer.run(main)
