"""Text for people: the progress of a generation, lists of generations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from chorus.common.v1.plan_pb2 import DonorRef, Plan
from chorus.scheduler.v1.scheduler_pb2 import (
    Generation,
    GenerationEvent,
    PreviewPlanResponse,
    StartedEvent,
    StepCompletedEvent,
)
from chorus_client.states import format_state
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chorus_cli.output import one_line
from chorus_cli.tables import fit_last_column, format_age

_PROMPT_WIDTH = 60
_DONOR_WIDTH = 24


def make_progress(console: Console) -> Progress:
    """Returns a progress display with a bar for each generation."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[steps]}", markup=False),
        TextColumn("{task.fields[eta]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


class GenerationView:
    """Live progress of one generation on a terminal; elsewhere only its lines. Needs the events in order.

    Args:
        progress: display that several views share; None for one of its own.
        label: begins every line and the bar.
    """

    def __init__(self, console: Console, progress: Progress | None = None, label: str = "") -> None:
        self._progress = progress or make_progress(console)
        self._label = label
        self._task = self._progress.add_task(f"{label}submitting", total=None, steps="", eta="")
        self._seed = 0

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    def accepted(self, generation: Generation) -> None:
        self._seed = generation.spec.seed
        self._line(f"{generation.generation_id} accepted, seed {self._seed}")
        self._describe("queued")

    def event(self, event: GenerationEvent) -> None:
        for line in describe(event):
            self._line(line)
        match event.WhichOneof("event"):
            case "queued":
                self._describe(f"queued, position {event.queued.queue_position}")
            case "waiting":
                self._describe("waiting")
            case "paused":
                self._describe("paused")
            case "planned":
                plan = event.planned.plan
                if plan.HasField("seed") and plan.seed != self._seed:
                    self._seed = plan.seed
                    self._line(f"seed {plan.seed}, the donor's, because the request states none")
                self._describe("planned")
            case "started":
                first, total = event.started.reuse_steps, event.started.total_steps
                first = max(first, event.started.resumed_step)
                self._steps("decoding" if first == total else "denoising", first, total)
            case "step_completed":
                done = event.step_completed
                word = "decoding" if done.step.index >= done.total_steps else "denoising"
                self._steps(word, done.step.index, done.total_steps, done.eta_seconds)
            case "succeeded" | "failed" | "cancelled" as end:
                self._describe(end)
            case _:
                pass

    def _describe(self, words: str) -> None:
        self._progress.update(self._task, description=f"{self._label}{words}")

    def _steps(self, word: str, done: int, total: int, eta: float | None = None) -> None:
        self._progress.update(
            self._task,
            description=f"{self._label}{word}",
            completed=done,
            total=total,
            steps=f"step {done}/{total}",
            eta="" if eta is None else f"ETA {eta:.1f} s",
        )

    def _line(self, line: str) -> None:
        self._progress.console.print(f"{self._label}{line}", soft_wrap=True)


def describe(event: GenerationEvent) -> list[str]:
    """Returns the lines that report an event; none for events that only the progress bar shows."""
    match event.WhichOneof("event"):
        case "waiting":
            return [f"waiting: {one_line(event.waiting.cause.message)}"]
        case "paused":
            return ["paused: a generation of a higher priority runs first"]
        case "planned":
            return [describe_plan(event.planned.plan)]
        case "started":
            return describe_start(event.started)
        case "step_completed":
            return [describe_step(event.step_completed)]
        case "warning":
            return [f"warning: {one_line(event.warning.warning.message)}"]
        case _:
            return []


def describe_plan(plan: Plan) -> str:
    """Describes the cache decision in one line: the donor and the steps, without the reasons."""
    if not plan.reuse_steps:
        return f"cache miss: all {plan.total_steps} steps are computed"
    donor = describe_donor(plan.donor, _DONOR_WIDTH)
    if plan.reuse_steps == plan.total_steps:
        return f"exact repeat, no step is computed: the result of {donor}"
    source = "a draft from " if plan.draft_step else ""
    return f"cache hit: {plan.reuse_steps} of {plan.total_steps} steps reused from {source}{donor}"


def describe_preview(preview: PreviewPlanResponse) -> str:
    """Returns what a request would reuse, and its expected times, a line each."""
    lines = [describe_plan(preview.plan)]
    if preview.run_seconds:
        saved = preview.plan.predicted_seconds_saved
        instead = f" instead of {preview.run_seconds + saved:.1f} s" if saved > 0 else ""
        queue = f", after {preview.queue_seconds:.1f} s in the queue"
        lines.append(f"expected: {preview.run_seconds:.1f} s{instead}{queue}")
    else:
        lines.append("expected time unknown: the model has not run yet")
    lines += [f"warning: {one_line(warning.message)}" for warning in preview.warnings]
    return "\n".join(lines)


def describe_start(started: StartedEvent) -> list[str]:
    """Describes each step that the first attempt takes from the donor, or the step where a retry resumes."""
    if started.resumed_step:
        return [f"continued after step {started.resumed_step}, attempt {started.attempt}"]
    if started.attempt > 1:
        where = f", on {one_line(started.denoiser)}" if started.denoiser else ""
        return [f"started again, attempt {started.attempt}, from step {started.reuse_steps + 1}{where}"]
    return [f"step {number} of {started.total_steps}: reused" for number in range(1, started.reuse_steps + 1)]


def describe_step(done: StepCompletedEvent) -> str:
    """Describes a computed step: draft, region or full, its seconds, and the backend if it is a fallback."""
    # A share of 0 without a region comes from a server that does not report it: the step is full.
    share = done.computed_share if done.computed_share or done.active_tokens else 1.0
    kind = "full" if share >= 1 else f"region, {share:.0%} of the tokens computed"
    kind = "draft" if done.draft else kind
    fallback = f"; ran on {one_line(done.backend)}: {one_line(done.fallback)}" if done.fallback else ""
    return f"step {done.step.index} of {done.total_steps}: {kind}, {done.seconds:.2f} s{fallback}"


def describe_donor(donor: DonorRef, width: int = _PROMPT_WIDTH) -> str:
    """Describes a donor by its prompt, cut to `width` characters, or by its entry id, and its score."""
    prompt = f"“{one_line(donor.prompt, width)}”" if donor.prompt else donor.entry_id[:12]
    return f"{prompt}, score {donor.score:.3f}"


def summarize(generation: Generation, saved: float) -> str:
    """Describes a generation that succeeded in one line.

    Args:
        saved: seconds saved, as its last event reports them.
    """
    total = generation.plan.total_steps
    kind = "miss"
    if generation.HasField("donor"):
        prompt = one_line(generation.donor.prompt, _DONOR_WIDTH)
        kind = f"hit on “{prompt}”" if prompt else "hit"
    timings = generation.timings
    split = f" (waited {timings.waiting_seconds:.2f} s, ran {timings.running_seconds:.2f} s)"
    parts = [
        f"{kind}, {generation.steps_run} of {total} steps computed",
        f"{timings.total_seconds:.2f} s" + (split if timings.running_seconds > 0 else ""),
    ]
    if saved > 0:
        parts.append(f"{saved:.2f} s saved")
    return ", ".join(parts)


def jobs_table(generations: Sequence[Generation], ids: Sequence[str], width: int | None) -> str:
    """Lists generations.

    Args:
        ids: the id to show for each generation.
        width: columns of the terminal. Only the prompt, the last column, is cut to fit. None: nothing is cut,
            and tabs separate the columns.
    """
    rows: list[tuple[str, ...]] = [("id", "state", "age", "steps", "score", "seconds", "prompt")]
    rows += [_job_row(generation, id_) for generation, id_ in zip(generations, ids, strict=True)]
    return fit_last_column(rows, width)


def _job_row(generation: Generation, id_: str) -> tuple[str, ...]:
    planned = generation.HasField("plan")
    score = f"{generation.donor.score:.3f}" if generation.HasField("donor") else "–"
    seconds = generation.timings.total_seconds
    return (
        id_,
        format_state(generation.state),
        format_age(time.time() - generation.create_time.ToNanoseconds() / 1e9),
        f"{generation.steps_run}/{generation.plan.total_steps}" if planned else "",
        score if planned else "",
        f"{seconds:.2f}" if seconds else "",
        one_line(generation.spec.prompt),
    )
