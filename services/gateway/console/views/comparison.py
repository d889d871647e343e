"""The full computation of a request, with which the page of a video that reused something compares it."""

from __future__ import annotations

from collections.abc import Iterable

from chorus_client import Generation
from chorus_rpc.limits import MAX_PROMPT_FILTER_BYTES


def make_prompt_filter(prompt: str) -> str:
    """Returns the beginning of a prompt, at most as long as a list of generations can be filtered by."""
    return prompt.encode()[:MAX_PROMPT_FILTER_BYTES].decode(errors="ignore")


def find_full_computation(chosen: Generation, known: Iterable[Generation]) -> Generation | None:
    """Returns the first of `known` that computed the request of `chosen` in full and has a video, if any.

    Prompt, seed, model, schedule and shape must be equal. The donor of `chosen` is no candidate: the page
    shows it anyway.
    """
    donor = chosen.donor.generation_id if chosen.donor is not None else ""
    wanted = _describe_request(chosen)
    return next(
        (
            each
            for each in known
            if each.state == "succeeded"
            and each.video is not None
            and not each.hit
            and each.id not in (chosen.id, donor)
            and _describe_request(each) == wanted
        ),
        None,
    )


def _describe_request(generation: Generation) -> tuple[object, ...]:
    spec = generation.proto.spec
    shape = (spec.shape.frames, spec.shape.height, spec.shape.width)
    return (generation.prompt, generation.seed, generation.model, tuple(spec.schedule.sigmas), shape)
