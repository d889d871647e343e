"""Requests whose result another one would repeat, so that identical requests are computed once."""

from __future__ import annotations

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

# Fields that do not change the video.
_IRRELEVANT = ("deadline", "timeout", "priority", "retention", "labels", "webhook", "step_previews")


def make_repetition_key(generation: pb.Generation) -> bytes | None:
    """Returns what two requests have in common if the second is answered by the first one's kept result.

    None for a request that is no repetition and has none: it states no seed, it chooses its plan or its
    donor, it reuses nothing, or its result is not kept.
    """
    spec = generation.spec
    if (
        generation.seed_chosen
        or spec.no_store
        or spec.reuse == plan_pb2.REUSE_POLICY_OFF
        or spec.HasField("explicit_reuse")
        or spec.donor_generation_id
    ):
        return None
    relevant = pb.GenerationSpec()
    relevant.CopyFrom(spec)
    for field in _IRRELEVANT:
        relevant.ClearField(field)  # type: ignore[arg-type]
    return relevant.SerializeToString(deterministic=True)
