"""StepKind a generation did, step by step: from its events to words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from chorus.common.v1.plan_pb2 import WeightedToken
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent, StepCompletedEvent
from chorus_cli.output import as_dict, one_line
from chorus_cli.rendering import describe_donor, summary
from chorus_client.plans import describe_amplification, describe_region
from chorus_client.results import format_state
from rich.console import Group
from rich.table import Table

# Taken from the donor; computed in a region; computed whole; or never reached.
StepKind: TypeAlias = Literal["reused", "region", "whole", "not run"]
_PARTS: Final = ("queued", "embed", "lookup", "fetch", "denoise", "decode", "total")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        number: from 1.
        computed: share of the tokens that went through the model; `own`: that are the target's own after it.
        active: which those are, as `StepCompletedEvent` packs it; empty: all, or the step was not run.
        grid: tokens along time, rows and columns.
    """

    number: int
    what: StepKind
    computed: float = 0.0
    own: float = 0.0
    seconds: float = 0.0
    active: bytes = b""
    grid: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerationReport:
    """A generation and its steps. `seconds_saved`: as it turned out; 0 where it did not succeed."""

    generation: Generation
    steps: tuple[Step, ...]
    seconds_saved: float


def account_of(generation: Generation, events: Iterable[GenerationEvent]) -> GenerationReport:
    """The account of all events of a generation; of several attempts the last one counts."""
    first, saved, done = 0, 0.0, dict[int, Step]()
    for event in events:
        if event.HasField("started"):
            first, done = event.started.reuse_steps, {}
        elif event.HasField("step_completed"):
            step = _computed(event.step_completed)
            done[step.number] = step
        elif event.HasField("succeeded"):
            saved = event.succeeded.seconds_saved
    numbers = range(1, generation.plan.total_steps + 1)
    steps = [done.get(n) or Step(n, "reused" if n <= first else "not run") for n in numbers]
    return GenerationReport(generation, tuple(steps), saved)


def _computed(event: StepCompletedEvent) -> Step:
    grid, active = tuple(event.token_grid), event.active_tokens
    # Nothing computed and no region told: a server that does not say.
    computed = event.computed_share if event.computed_share or active else 1.0
    own = int.from_bytes(active, "little").bit_count() / max(1, math.prod(grid)) if active else 1.0
    what: StepKind = "region" if active or computed < 1 else "whole"
    return Step(event.step.index, what, computed, own, event.seconds, active, grid)


def words(account: GenerationReport) -> Group:
    """For people."""
    generation = account.generation
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(account):
        facts.add_row(name, text)
    parts = [facts]
    if account.steps:
        parts.append(_steps_table(account.steps))
    if generation.HasField("timings"):
        parts.append(_timings_table(_timings(generation)))
    return Group(*parts)


def plain(account: GenerationReport) -> dict[str, Any]:
    """For machines; all of the generation is in it."""
    return {
        "generation": as_dict(account.generation),
        "steps": [
            {
                "number": step.number,
                "what": step.what,
                "computed_share": step.computed,
                "own_share": step.own,
                "seconds": step.seconds,
            }
            for step in account.steps
        ],
        "timings": _timings(account.generation),
        "predicted_seconds_saved": account.generation.plan.predicted_seconds_saved,
        "seconds_saved": account.seconds_saved,
    }


def _facts(account: GenerationReport) -> Iterable[tuple[str, str]]:
    generation, plan = account.generation, account.generation.plan
    succeeded = generation.HasField("video")
    how = summary(generation, account.seconds_saved) if succeeded else format_state(generation.state)
    yield generation.generation_id, how
    yield "prompt", one_line(generation.spec.prompt)
    if generation.HasField("error"):
        yield "error", one_line(generation.error.message)
    if not generation.HasField("plan"):
        return
    reused, end, total = plan.reuse_steps, plan.region_end, plan.total_steps
    if reused:
        yield "donor", f"{describe_donor(plan.donor)}, generation {plan.donor.generation_id or 'unknown'}"
    if plan.edit:
        yield "edit", one_line(plan.edit)
    for name, tokens in (("gained", plan.gained), ("lost", plan.lost)):
        if tokens:
            yield name, f"tokens {_tokens(tokens)}"
    how = ", the donor's clean latents noised again" if plan.renoised else ""
    yield "plan", f"{reused} of {total} steps reused{how}" if reused else f"all {total} steps computed"
    if end > reused:
        yield "region", f"steps {reused + 1}–{end}: {describe_region(plan.region)}"
    if plan.HasField("amplification"):
        yield "amplified", describe_amplification(plan.amplification)
    for reason in plan.reasons:
        yield "because", one_line(reason.text)
    if reused:
        yield "drift", f"{plan.predicted_drift_points:+.1f} points predicted"
        yield (
            "saved",
            f"{plan.predicted_seconds_saved:.2f} s predicted, {account.seconds_saved:.2f} s in fact",
        )
    for warning in generation.warnings:
        yield "warning", one_line(warning.message)


def _tokens(tokens: Sequence[WeightedToken]) -> str:
    return ", ".join(f"{token.index} ({token.weight:.2f})" for token in tokens)


def _steps_table(steps: Sequence[Step]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step")
    table.add_column("what")
    for heading in ("computed", "its own", "seconds"):
        table.add_column(heading, justify="right")
    for step in steps:
        ran = step.what in ("region", "whole")
        shown = (f"{step.computed:.0%}", f"{step.own:.0%}", f"{step.seconds:.3f}") if ran else ("", "", "")
        table.add_row(str(step.number), step.what, *shown)
    return table


def _timings(generation: Generation) -> dict[str, float]:
    return {part: getattr(generation.timings, f"{part}_seconds") for part in _PARTS}


def _timings_table(timings: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for part in timings:
        table.add_column(part, justify="right")
    table.add_row(*(f"{seconds:.3f}" for seconds in timings.values()))
    return table
