"""Report on a generation as text and JSON: steps, the plan's reasons, and the time of each part."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from chorus.common.v1.plan_pb2 import PassedOver, Plan, WeightedToken
from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client.plans import describe_amplification, describe_region
from chorus_client.report import GenerationReport, Step
from chorus_client.states import format_state
from chorus_client.words import compare_words

from chorus_cli.output import as_dict, one_line
from chorus_cli.rendering import describe_donor, summarize
from chorus_cli.tables import align_columns

_MAX_PROMPT: Final = 60  # columns of a prompt that was not reused
_PARTS: Final = ("queued", "waiting", "running", "embed", "lookup", "fetch", "denoise", "decode", "total")


def render_report(report: GenerationReport, width: int | None = None) -> str:
    """Renders a report as text for people.

    Args:
        width: columns to which the text is wrapped; None disables wrapping.
    """
    generation, succeeded = report.generation, report.generation.HasField("video")
    facts = list(_facts(report))
    indent = max(len(name) for name, _ in facts) + 2
    parts = ["\n".join(_wrap(f"{name:<{indent}}{text}", indent, width) for name, text in facts)]
    if report.steps:
        parts.append(_steps_table(report.steps))
    if generation.HasField("timings"):
        timings = _timings(generation)
        if not succeeded:  # the other times are measured by the run that succeeds
            timings = {part: timings[part] for part in ("waiting", "running")}
        parts.append(_timings_table(timings))
    return "\n\n".join(parts)


def report_fields(report: GenerationReport) -> dict[str, Any]:
    """Returns a report as JSON fields, with all of the generation."""
    gained, lost = _compare_prompts(report.generation)
    return {
        "generation": as_dict(report.generation),
        "words_gained": list(gained),
        "words_lost": list(lost),
        "steps": [
            {
                "number": step.number,
                "kind": step.kind,
                "computed_share": step.computed,
                "own_share": step.own,
                "seconds": step.seconds,
            }
            for step in report.steps
        ],
        "timings": _timings(report.generation),
        "predicted_seconds_saved": report.generation.plan.predicted_seconds_saved,
        "seconds_saved": report.seconds_saved,
        "host_adapter": report.host_adapter,
    }


def _wrap(line: str, indent: int, width: int | None) -> str:
    if width is None:
        return line.rstrip()
    return textwrap.fill(line, max(width, 2 * indent), subsequent_indent=" " * indent, drop_whitespace=True)


def _facts(report: GenerationReport) -> Iterable[tuple[str, str]]:
    """Yields the lines of the report: name and text."""
    generation, plan = report.generation, report.generation.plan
    yield "id", generation.generation_id
    succeeded = generation.HasField("video")
    yield (
        "result",
        summarize(generation, report.seconds_saved) if succeeded else format_state(generation.state),
    )
    yield "prompt", one_line(generation.spec.prompt)
    if generation.spec.labels:
        pairs = sorted(generation.spec.labels.items())
        yield "labels", one_line(", ".join(f"{key}={value}" for key, value in pairs))
    if generation.output_count > 1:
        yield "output", f"{generation.output_index} of {generation.output_count}"
    if generation.HasField("error"):
        yield "error", one_line(generation.error.message)
    if not generation.HasField("plan"):
        return
    reused, end, total = plan.reuse_steps, plan.region_end, plan.total_steps
    if reused:
        yield "donor", f"{describe_donor(plan.donor)}, generation {plan.donor.generation_id or 'unknown'}"
    if plan.edit:
        yield "edit", one_line(plan.edit)
    yield from _words(generation, plan)
    how = ", the donor's clean latents noised again" if plan.renoised else ""
    how = f", from a draft by step {plan.draft_step + 1}, noised again" if plan.draft_step else how
    yield "plan", f"{reused} of {total} steps reused{how}" if reused else f"all {total} steps computed"
    if end > reused:
        steps = f"step {end}" if end == reused + 1 else f"steps {reused + 1}–{end}"
        yield "region", f"{steps}: {describe_region(plan.region)}"
    if generation.denoiser:
        yield "ran on", f"denoiser {one_line(generation.denoiser)}"
    if report.host_adapter:
        yield "host", f"adapter {one_line(report.host_adapter)} computed the first step after the donor's"
    if plan.HasField("amplification"):
        yield "amplified", describe_amplification(plan.amplification)
    for reason in plan.reasons:
        yield "because", one_line(reason.text)
    for passed in plan.passed_over:
        yield "passed over", _describe_passed(passed)
    if reused:
        yield "drift", f"{plan.predicted_drift_points:+.1f} points predicted"
        yield (
            "saved",
            f"{plan.predicted_seconds_saved:.2f} s predicted, {report.seconds_saved:.2f} s measured",
        )
    for warning in generation.warnings:
        yield "warning", one_line(warning.message)


def _describe_passed(passed: PassedOver) -> str:
    """Returns a donor that was not reused, and why."""
    prompt = f'"{one_line(passed.prompt, _MAX_PROMPT)}"' if passed.prompt else "a prompt that is not kept"
    facts = ", ".join(filter(None, (f"score {passed.score:.3f}", passed.edit)))
    return f"{prompt} ({facts}): {one_line(passed.reason)}"


def _words(generation: Generation, plan: Plan) -> Iterable[tuple[str, str]]:
    """Yields the words that the prompt gained and lost against the donor's."""
    if not plan.reuse_steps:
        return
    gained, lost = _compare_prompts(generation)
    for name, words, tokens in (("gained", gained, plan.gained), ("lost", lost, plan.lost)):
        if words:
            yield name, one_line(" ".join(words))
        elif tokens and not plan.donor.prompt:
            yield name, f"{_count_tokens(tokens)}; the donor's entry does not keep its prompt"


def _compare_prompts(generation: Generation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    donor = generation.plan.donor.prompt
    if not donor:
        return (), ()
    difference = compare_words(generation.spec.prompt, donor)
    return difference.gained, difference.lost


def _count_tokens(tokens: Sequence[WeightedToken]) -> str:
    return "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"


def _steps_table(steps: Sequence[Step]) -> str:
    rows = [("step", "kind", "computed", "own", "seconds")]
    for step in steps:
        ran = step.kind in ("draft", "region", "full")
        shown = (f"{step.computed:.0%}", f"{step.own:.0%}", f"{step.seconds:.3f}") if ran else ("", "", "")
        rows.append((str(step.number), step.kind, *shown))
    return align_columns(rows, right=(2, 3, 4))


def _timings(generation: Generation) -> dict[str, float]:
    return {part: getattr(generation.timings, f"{part}_seconds") for part in _PARTS}


def _timings_table(timings: Mapping[str, float]) -> str:
    heading = tuple(f"{part} s" for part in timings)
    return align_columns([heading, tuple(f"{s:.3f}" for s in timings.values())], right=range(len(heading)))
