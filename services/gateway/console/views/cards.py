"""A generation in short: its badge, and what happened in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from chorus_client import Generation, Plan
from chorus_client.problem_reports import ReportedProblem

from services.gateway.console.views.numbers import format_seconds

Badge: TypeAlias = Literal["exact", "hit", "miss", "failed", "cancelled", "queued", "waiting", "running"]
# Characters of a donor's prompt in a sentence.
_QUOTED: Final = 160
_MEANINGS: Final[dict[Badge, str]] = {
    "exact": "repeated, nothing computed",
    "hit": "reused an earlier video",
    "miss": "computed in full",
    "failed": "failed",
    "cancelled": "cancelled",
    "queued": "in the queue",
    "waiting": "waits for a service",
    "running": "being made",
}


# What can be reported, as the pages call it.
PROBLEMS: Final[Mapping[ReportedProblem, str]] = {
    "donor_visible": "something of the donor is left",
    "prompt_not_followed": "not what the prompt says",
    "broken_picture": "the picture is broken",
    "broken_motion": "the motion is broken",
    "other": "something else",
}


@dataclass(frozen=True)
class Card:
    """A generation in a grid.

    Attributes:
        meaning: the badge in words.
        saved: seconds saved; 0 for none.
        has_thumbnail: whether a picture of it exists.
        reported: what a user found wrong with it; empty without a report.
    """

    id: str
    prompt: str
    badge: Badge
    meaning: str
    saved: float
    has_video: bool
    has_thumbnail: bool
    reported: str
    generation: Generation


def find_badge(generation: Generation) -> Badge:
    """Returns the badge of a generation: how it was made, or its state until it is."""
    if generation.state == "succeeded":
        return "exact" if generation.exact else "hit" if generation.hit else "miss"
    if generation.state == "unknown":
        return "waiting"
    return generation.state


def build_card(generation: Generation) -> Card:
    badge = find_badge(generation)
    video = generation.video
    return Card(
        id=generation.id,
        prompt=generation.prompt,
        badge=badge,
        meaning=_MEANINGS[badge],
        saved=generation.seconds_saved if generation.hit else 0.0,
        has_video=video is not None,
        has_thumbnail=video is not None and generation.proto.video.HasField("thumbnail"),
        reported=describe_report(generation),
        generation=generation,
    )


def describe_report(generation: Generation) -> str:
    """Returns what a user found wrong with a video; empty without a report."""
    report = generation.report
    return "" if report is None else PROBLEMS.get(report.problem, "a problem that this page does not know")


def describe_plan(plan: Plan, *, done: bool) -> str:
    """Returns a plan in one sentence.

    Args:
        done: whether the plan was carried out, not only made.
    """
    total, reused = plan.total_steps, plan.reuse_steps
    if not reused or plan.donor is None:
        return (
            f"Nothing was reused: all {total} steps were computed."
            if done
            else (f"Nothing to reuse: all {total} steps will be computed.")
        )
    donor = f"“{_shorten(plan.donor.prompt)}”" if plan.donor.prompt else "an earlier video"
    if reused == total:
        return f"Exact repeat of {donor}: no step {'was' if done else 'will be'} computed."
    count = f"{reused} of {total} steps"
    facts = f"similarity {plan.donor.score:.2f}" + (f", edit: {plan.edit}" if plan.edit else "")
    text = f"{'Took' if done else 'Takes'} {count} from {donor} ({facts})"
    if plan.draft_step:
        text += ", through a draft with new noise"
    elif plan.renoised:
        text += ", with new noise"
    if plan.region_end > reused:
        last = (
            f"step {plan.region_end}"
            if plan.region_end == reused + 1
            else (f"steps {reused + 1} to {plan.region_end}")
        )
        text += f"; {last} {'computed' if done else 'compute'} only the region that differs"
    return text + "."


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= _QUOTED else prompt[: _QUOTED - 1].rstrip() + "…"


def describe_result(generation: Generation) -> str:
    """Returns what became of a generation, in one sentence."""
    if generation.state == "failed":
        return f"Failed: {generation.error.message if generation.error else 'no cause is recorded'}"
    if generation.state == "cancelled":
        return "Cancelled before it was complete."
    if generation.state == "queued":
        return f"In the queue, position {generation.queue_position or 'unknown'}."
    if generation.state in ("waiting", "unknown"):
        return "Waits for a service that is not available."
    if generation.plan is None:
        return "Being made." if generation.state == "running" else "Made; its plan is not recorded."
    text = describe_plan(generation.plan, done=generation.state == "succeeded")
    if generation.hit and generation.state == "succeeded":
        text += f" It saved {format_seconds(generation.seconds_saved)}."
    return text
