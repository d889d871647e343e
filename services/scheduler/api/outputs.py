"""Several outputs of one request: their number, their seeds and their jobs."""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import Violation
from chorus_rpc.limits import MAX_OUTPUTS

from services.scheduler.jobs.store import NewJob

_random: Final = random.SystemRandom()
# Bound of a drawn seed: a JSON number carries smaller ones exactly.
_DRAWN: Final = 1 << 53
_SEEDS: Final = 1 << 64


def check_outputs(request: pb.SubmitGenerationRequest) -> list[Violation]:
    """Returns the violation of `outputs`, if any: too many, or a specification that gives one video only."""
    count, spec = request.outputs, request.spec
    if count > MAX_OUTPUTS:
        return [Violation("outputs", f"must be at most {MAX_OUTPUTS}, not {count}; 0 means 1")]
    if count <= 1:
        return []
    if spec.donor_generation_id:
        return [
            Violation("outputs", "must be 1 with spec.donor_generation_id: all would take the donor's seed")
        ]
    explicit = spec.explicit_reuse
    if spec.HasField("explicit_reuse") and not explicit.renoised and not explicit.draft_step:
        return [
            Violation(
                "outputs",
                "must be 1 with an explicit plan that continues the donor's noise, whatever the seeds; set"
                " spec.explicit_reuse.renoised or draft_step",
            )
        ]
    return []


def choose_seeds(spec: pb.GenerationSpec, count: int) -> list[int]:
    """Returns distinct seeds for `count` outputs: from the stated one on, modulo 2^64, or drawn."""
    if spec.HasField("seed"):
        return [(spec.seed + offset) % _SEEDS for offset in range(count)]
    return _random.sample(range(_DRAWN), count)


def make_output(first: NewJob, index: int, seed: int) -> NewJob:
    """Returns a further output of the request of `first`, with an id of its own."""
    spec = pb.GenerationSpec()
    spec.CopyFrom(first.spec)
    spec.seed = seed
    return replace(first, job_id=secrets.token_hex(16), spec=spec, output_index=index)
