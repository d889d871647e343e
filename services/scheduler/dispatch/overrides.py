"""Warnings about fields of a request that reuse overrides or cannot honour. All functions are pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors


def warn_field_ignored(field: str, message: str, **metadata: str) -> errors_pb2.JobError:
    """Returns the warning that a field of the request had no effect, in whole or in part."""
    return errors_pb2.JobError(
        reason=errors.FIELD_IGNORED, message=f"{field}: {message}", metadata={"field": field, **metadata}
    )


def find_unused_plan(
    spec: pb.GenerationSpec, plan: plan_pb2.Plan, max_text_tokens: int
) -> list[errors_pb2.JobError]:
    """Returns the warnings about a request's own plan that `plan`, made from it, does not honour.

    Args:
        max_text_tokens: maximum number of tokens of a prompt that condition the model, the donor's included;
            0 if unknown.
    """
    if not spec.HasField("explicit_reuse"):
        return []
    field = "spec.explicit_reuse"
    if not plan.reuse_steps:
        return [warn_field_ignored(field, f"every step is computed: {plan.reasons[-1].text}")]
    warnings = []
    if cause := _explain_unused_amplification(spec, plan, max_text_tokens):
        warnings.append(warn_field_ignored(f"{field}.amplification", cause))
    if plan.region.source == plan_pb2.REGION_SOURCE_ATTENTION and not _has_effective_token(
        plan.lost, max_text_tokens
    ):
        warnings.append(
            warn_field_ignored(
                f"{field}.region",
                f"the region is empty and the donor's latents are taken unchanged up to step"
                f" {plan.region_end}, because no lost token locates it:"
                f" {_explain_missing_token(plan.lost, plan.edit, max_text_tokens)}",
            )
        )
    return warnings


def _explain_unused_amplification(
    spec: pb.GenerationSpec, plan: plan_pb2.Plan, max_text_tokens: int
) -> str | None:
    """Returns the reason why an amplification has no effect, or None.

    A donor whose prompt is not stored has an unknown prompt, which may differ from the target's.
    """
    if plan.amplification.strength == 0:
        return None
    if plan.amplification.form == plan_pb2.AMPLIFICATION_FORM_CONTRAST:
        # Token states depend on the whole prompt, so only equal prompts are certain to have equal states.
        equal = plan.donor.prompt.strip() == spec.prompt.strip()
        return "contrast adds nothing: the donor's prompt is the same" if equal else None
    if _has_effective_token(plan.gained, max_text_tokens):
        return None
    missing = _explain_missing_token(plan.gained, plan.edit, max_text_tokens)
    return f"no gained token is known to amplify: {missing}"


def _has_effective_token(tokens: Iterable[plan_pb2.WeightedToken], max_text_tokens: int) -> bool:
    """Returns whether the model reads any of the tokens: it drops those at `max_text_tokens` and beyond."""
    return any(not max_text_tokens or token.index < max_text_tokens for token in tokens)


def _explain_missing_token(tokens: Sequence[plan_pb2.WeightedToken], edit: str, max_text_tokens: int) -> str:
    """Returns the reason why none of the tokens has an effect."""
    if tokens:
        return f"the tokens that differ are beyond the first {max_text_tokens}, which the model reads"
    return f"the donor's prompt differs in no token ({edit})" if edit else "the prompts were not compared"


def find_unused_retention(generation: pb.Generation, plan: plan_pb2.Plan) -> list[errors_pb2.JobError]:
    """Returns the warning that an exact repeat leaves no latents for which a retention could hold."""
    if not generation.spec.HasField("retention") or plan.reuse_steps < plan.total_steps:
        return []
    return [_warn_unused_retention("an exact repeat has none of its own")]


def find_unkept_latents(
    generation: pb.Generation, admission: denoiser_pb2.Admission
) -> list[pb.GenerationEvent]:
    """Returns the warning, as an event, that a run kept no latents for which a retention could hold."""
    if not generation.spec.HasField("retention") or admission.entry_id or admission.HasField("error"):
        return []
    if generation.plan.reuse_steps == generation.plan.total_steps:
        return []  # the plan's warning says so
    cause = "a run of one step, and some runs of an explicit plan, have none of their own"
    return [pb.GenerationEvent(warning=pb.WarningEvent(warning=_warn_unused_retention(cause)))]


def _warn_unused_retention(cause: str) -> errors_pb2.JobError:
    return warn_field_ignored(
        "spec.retention", f"the run keeps no latents: {cause}; set reuse to OFF to compute and keep them"
    )


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
    if reply.WhichOneof("event") == "admission":
        return find_unkept_latents(generation, reply.admission)
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

    None is due if the server chose the seed, if the donor's seed is the same, and for a plan that adds the
    noise of the requested seed to clean latents: one with a draft, or a renoised one.
    """
    seed, donor, plan = generation.spec.seed, started.donor, generation.plan
    if generation.seed_chosen or (donor.HasField("seed") and donor.seed == seed):
        return []
    if plan.renoised or plan.draft_step:
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
