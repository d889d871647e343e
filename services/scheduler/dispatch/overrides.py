"""Warnings about fields of a request that reuse overrides or cannot honour. All functions are pure."""

from __future__ import annotations

from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors


def warn_field_ignored(field: str, message: str, **metadata: str) -> errors_pb2.JobError:
    """Returns the warning that a field of the request had no effect, in whole or in part."""
    return errors_pb2.JobError(
        reason=errors.FIELD_IGNORED, message=f"{field}: {message}", metadata={"field": field, **metadata}
    )


def find_unused_plan(spec: pb.GenerationSpec, plan: plan_pb2.Plan) -> list[errors_pb2.JobError]:
    """Returns the warnings about a request's own plan that `plan`, made from it, does not honour."""
    if not spec.HasField("explicit_reuse"):
        return []
    reuse, field = spec.explicit_reuse, "spec.explicit_reuse"
    if not plan.reuse_steps:
        return [warn_field_ignored(field, f"every step is computed: {plan.reasons[-1].text}")]
    warnings = []
    cause = (
        f"the donor's prompt differs in no token ({plan.edit})"
        if plan.edit
        else "the prompts were not compared"
    )
    by_token = (plan_pb2.AMPLIFICATION_FORM_BIAS, plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN)
    if reuse.amplification.form in by_token and not plan.gained:
        warnings.append(
            warn_field_ignored(f"{field}.amplification", f"no gained token is known to amplify: {cause}")
        )
    if plan.region.source == plan_pb2.REGION_SOURCE_ATTENTION and not plan.lost:
        warnings.append(
            warn_field_ignored(
                f"{field}.region",
                f"the region is empty and the donor's latents are taken unchanged up to step"
                f" {plan.region_end}, because no lost token is known: {cause}",
            )
        )
    return warnings


def find_overrides(
    generation: pb.Generation,
    model: denoiser_pb2.ModelInfo,
    reuse_steps: int,
    reply: denoiser_pb2.DenoiseResponse,
) -> list[pb.GenerationEvent]:
    """Returns the warnings that follow from one reply of the denoiser, as events.

    Args:
        generation: the running generation.
        reuse_steps: K1 as it is run.
    """
    if not reuse_steps:
        return []
    match reply.WhichOneof("event"):
        case "started":
            found = _find_overridden_seed(generation, model, reply.started)
        case "step_completed" if reply.step_completed.step.index == reuse_steps + 1:
            found = _find_declined_region(generation, reply.step_completed)
        case _:
            found = []
    return [pb.GenerationEvent(warning=pb.WarningEvent(warning=warning)) for warning in found]


def _find_overridden_seed(
    generation: pb.Generation, model: denoiser_pb2.ModelInfo, started: denoiser_pb2.Started
) -> list[errors_pb2.JobError]:
    """Returns the warning that the donor's noise is used instead of the noise of the requested seed.

    None is due if the server chose the seed, if the donor's seed is the same, and for a renoised plan, which
    adds the noise of the requested seed to the donor's clean latents.
    """
    seed, donor = generation.spec.seed, started.donor
    if generation.seed_chosen or generation.plan.renoised or (donor.HasField("seed") and donor.seed == seed):
        return []
    donor_seed = str(donor.seed) if donor.HasField("seed") else "unknown"
    extent = f"{started.reuse_steps} of {started.total_steps} steps"
    # The last step adds no noise, so a seed matters if another step is computed.
    renoised = model.sampler == "renoise" and started.reuse_steps < started.total_steps - 1
    effect = (
        f"{seed} affects only the steps after the first {extent}" if renoised else f"{seed} has no effect"
    )
    return [
        warn_field_ignored(
            "spec.seed",
            f"{effect}: the video continues a donor of seed {donor_seed} after {extent};"
            " to compute it from this seed, set reuse to OFF",
            seed=str(seed),
            donor_seed=donor_seed,
            donor_entry_id=donor.entry_id,
            reuse_steps=str(started.reuse_steps),
            total_steps=str(started.total_steps),
        )
    ]


def _find_declined_region(
    generation: pb.Generation, step: denoiser_pb2.StepCompleted
) -> list[errors_pb2.JobError]:
    """Returns the warning that the region of the request's own plan exceeded its budget."""
    spec, plan = generation.spec, generation.plan
    if not spec.HasField("explicit_reuse") or plan.region_end <= plan.reuse_steps or step.active_tokens:
        return []
    return [
        warn_field_ignored(
            "spec.explicit_reuse.region_end",
            f"the region exceeds its budget of {plan.region.budget:g} of the tokens, so every token is"
            f" computed from step {plan.reuse_steps} on",
        )
    ]
