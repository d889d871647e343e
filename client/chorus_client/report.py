"""Steps of a generation and what they reused, from its events."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent, StepCompletedEvent

# "reused": taken from the donor; "draft": replaced by a draft, computed from the donor's latents; "region":
# some tokens computed; "full": every token computed.
StepKind: TypeAlias = Literal["reused", "draft", "region", "full", "not run"]


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        number: position in the schedule, from 1.
        kind: source of its latents.
        computed: share of the tokens that went through the model, 0 to 1.
        own: share of the tokens whose latents are the target's own after the step, 0 to 1.
        seconds: duration, in seconds.
        active: computed tokens, as `StepCompletedEvent` packs them; empty if all are, or none.
        grid: number of tokens along time, rows and columns.
        preview_event: sequence number of the event that carries a picture of the step; 0 without one.
    """

    number: int
    kind: StepKind
    computed: float = 0.0
    own: float = 0.0
    seconds: float = 0.0
    active: bytes = b""
    grid: tuple[int, ...] = ()
    preview_event: int = 0


@dataclass(frozen=True)
class GenerationReport:
    """A generation, its steps and what reuse saved.

    Attributes:
        generation: the generation, as the scheduler returns it.
        steps: every step of its plan.
        seconds_saved: measured saving in seconds; 0 if the generation did not succeed.
        host_adapter: id of the adapter that computed the steps; empty if the plain model did.
    """

    generation: Generation
    steps: tuple[Step, ...]
    seconds_saved: float
    host_adapter: str = ""


def build_report(generation: Generation, events: Iterable[GenerationEvent]) -> GenerationReport:
    """Builds the report from all events of a generation.

    Only the last of several attempts counts, with the steps of earlier ones that it continues from.
    """
    reused, saved, done, host_adapter = 0, 0.0, dict[int, Step](), ""
    for event in events:
        if event.HasField("started"):
            reused, host_adapter = event.started.reuse_steps, event.started.host_adapter
            done = {n: step for n, step in done.items() if n <= event.started.resumed_step}
        elif event.HasField("step_completed"):
            step = _build_step(event.step_completed, event.sequence)
            done[step.number] = step
        elif event.HasField("succeeded"):
            saved = event.succeeded.seconds_saved
    numbers = range(1, generation.plan.total_steps + 1)
    steps = [done.get(n) or Step(n, "reused" if n <= reused else "not run") for n in numbers]
    return GenerationReport(generation, tuple(steps), saved, host_adapter)


def _build_step(event: StepCompletedEvent, sequence: int) -> Step:
    grid, active = tuple(event.token_grid), event.active_tokens
    # A share of 0 without a region comes from a server that does not report it: the step is full.
    computed = event.computed_share if event.computed_share or active else 1.0
    own = int.from_bytes(active, "little").bit_count() / max(1, math.prod(grid)) if active else 1.0
    kind: StepKind = "draft" if event.draft else "region" if active or computed < 1 else "full"
    preview_event = sequence if event.preview else 0
    return Step(event.step.index, kind, computed, own, event.seconds, active, grid, preview_event)
