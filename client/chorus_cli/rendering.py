"""A generation's events, and lists of generations, for people."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from chorus.cache.v1.cache_pb2 import StatsResponse
from chorus.common.v1.plan_pb2 import DonorRef, Plan
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent, StepCompletedEvent
from chorus_client.plans import describe_amplification, describe_region
from chorus_client.results import format_state
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from chorus_cli.output import one_line

_PROMPT_WIDTH = 60


class GenerationView:
    """A live bar of one generation; feed it the events in order."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[eta]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("submitting", total=None, steps="", eta="")

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:  # elsewhere the lines alone
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    def accepted(self, generation: Generation) -> None:
        self._say(f"{generation.generation_id} accepted, seed {generation.spec.seed}")
        self._progress.update(self._task, description="queued")

    def event(self, event: GenerationEvent) -> None:
        line = describe(event)
        if line:
            self._say(line)
        match event.WhichOneof("event"):
            case "queued":
                self._progress.update(
                    self._task, description=f"queued, position {event.queued.queue_position}"
                )
            case "waiting":
                self._progress.update(self._task, description="waiting")
            case "planned":
                self._progress.update(self._task, description="planned")
            case "started":
                first, total = event.started.reuse_steps, event.started.total_steps
                self._steps("denoising", first, total)
            case "step_completed":
                done = event.step_completed
                word = "decoding" if done.step.index >= done.total_steps else "denoising"
                self._steps(word, done.step.index, done.total_steps, done.eta_seconds)
            case _:
                pass

    def _steps(self, word: str, done: int, total: int, eta: float | None = None) -> None:
        self._progress.update(
            self._task,
            description=word,
            completed=done,
            total=total,
            steps=f"step {done}/{total}",
            eta="" if eta is None else f"ETA {eta:.1f} s",
        )

    def _say(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True)


def describe(event: GenerationEvent) -> str:
    """The line that an event is worth; empty for those that the bar shows well enough."""
    match event.WhichOneof("event"):
        case "waiting":
            return f"waiting: {one_line(event.waiting.cause.message)}"
        case "planned":
            return describe_plan(event.planned.plan)
        case "started" if event.started.attempt > 1:
            return f"started again, attempt {event.started.attempt}, from step {event.started.reuse_steps}"
        case "step_completed":
            return describe_step(event.step_completed)
        case "warning":
            return f"warning: {one_line(event.warning.warning.message)}"
        case _:
            return ""


def describe_plan(plan: Plan) -> str:
    """The cache decision: the donor, what is done with it, and why."""
    total, reused, end = plan.total_steps, plan.reuse_steps, plan.region_end
    if not reused:
        parts = [f"cache miss: all {total} steps are computed"]
    else:
        parts = [f"cache hit: {reused} of {total} steps reused from {describe_donor(plan.donor)}"]
    if plan.renoised:
        parts.append("its clean latents noised again")
    if end > reused:
        parts.append(f"steps {reused + 1}–{end} compute a region ({describe_region(plan.region)})")
    if plan.HasField("amplification"):
        parts.append(f"amplified by {describe_amplification(plan.amplification)}")
    if plan.edit:
        parts.append(f"edit {one_line(plan.edit)}")
    if plan.predicted_drift_points:
        parts.append(f"predicted drift {plan.predicted_drift_points:+.1f} points")
    why = "; ".join(one_line(reason.text) for reason in plan.reasons)
    return ", ".join(parts) + (f" ({why})" if why else "")


def describe_step(done: StepCompletedEvent) -> str:
    """What a step computed, where that is not all of it, and what it ran on, where that was not to be."""
    share, parts = done.computed_share, []
    if share < 1 and (share or done.active_tokens):  # 0 and none: a server that does not say
        parts.append(f"{share:.0%} of the tokens computed, {done.seconds:.2f} s")
    if done.fallback:
        parts.append(f"ran on {one_line(done.backend)}: {one_line(done.fallback)}")
    return f"step {done.step.index} of {done.total_steps}: {'; '.join(parts)}" if parts else ""


def describe_donor(donor: DonorRef) -> str:
    prompt = f"“{one_line(donor.prompt, _PROMPT_WIDTH)}”" if donor.prompt else donor.entry_id[:12]
    return f"{prompt}, score {donor.score:.3f}"


def summary(generation: Generation, saved: float) -> str:
    """How a generation that succeeded went.

    Args:
        saved: seconds, of its last event.
    """
    video, plan = generation.video, generation.plan
    kind = "hit" if generation.HasField("donor") else "miss"
    parts = [
        f"{video.frames} frames {video.width}×{video.height}",
        f"{kind}: {generation.steps_run} of {plan.total_steps} steps run",
        f"{generation.timings.total_seconds:.2f} s",
    ]
    if saved > 0:
        parts.append(f"about {saved:.2f} s saved")
    return ", ".join(parts)


def jobs_table(generations: Iterable[Generation]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "state", "age", "steps", "reuse", "seconds", "prompt"):
        table.add_column(heading, no_wrap=True)
    for generation in generations:
        reuse = f"{generation.donor.score:.3f}" if generation.HasField("donor") else "–"
        seconds = generation.timings.total_seconds
        table.add_row(
            generation.generation_id,
            format_state(generation.state),
            _age(time.time() - generation.create_time.ToNanoseconds() / 1e9),
            f"{generation.steps_run}/{generation.plan.total_steps}" if generation.HasField("plan") else "",
            reuse if generation.HasField("plan") else "",
            f"{seconds:.2f}" if seconds else "",
            one_line(generation.spec.prompt, _PROMPT_WIDTH),
        )
    return table


def stats_table(stats: StatsResponse) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "entries": f"{stats.entries:,}",
        "size": _size(stats.bytes),
        "lookups": f"{stats.lookups:,}, {stats.lookups_with_donor:,} with a donor",
        "fetches": f"{stats.fetches:,}",
        "admissions": f"{stats.admissions:,}",
        "corrupt blobs": f"{stats.corrupt_blobs:,}",
        "stores": f"{stats.index_kind}, {stats.blobs_kind}",
        "counting for": _age(time.time() - stats.start_time.ToNanoseconds() / 1e9),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _size(count: int) -> str:
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
