"""Comparison of the target's prompt with the donors' prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import semconv, telemetry

from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.planning.edits import classify_edit
from services.scheduler.planning.plans import Donor


async def compare_prompts(
    embedder: EmbedderClient,
    target: str,
    encoded: embedder_pb2.EmbedResponse,
    donors: Sequence[Donor],
    caller: Caller,
) -> list[Donor]:
    """Returns the donors in the same order, each with the edit from its prompt to the target's.

    A donor without a prompt has no edit: the cache may store only the hashes of a tenant's prompts.

    Args:
        target: prompt of the target.
        encoded: the embedder's answer for it; the edits name token positions of its conditioning encoder.
        caller: the job for which they are compared.

    Raises ChorusError when the embedder fails, DEADLINE_EXCEEDED only for the job's deadline.
    """
    prompts = [donor.prompt for donor in donors if donor.prompt]
    if not prompts:
        return list(donors)
    with telemetry.span(semconv.SPAN_COMPARE, {semconv.DONOR_COUNT: len(prompts)}):
        alignments = await embedder.align(target, encoded, prompts, caller)
    edits = {
        prompt: classify_edit(alignment, len(encoded.tokens))
        for prompt, alignment in zip(prompts, alignments, strict=True)
    }
    return [replace(donor, edit=edits.get(donor.prompt)) for donor in donors]
