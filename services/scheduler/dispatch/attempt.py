"""One attempt at a job: embed → look up → plan, then the run on the denoiser."""

from __future__ import annotations

import time

from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.channels import calling
from chorus_rpc.errors import ChorusError
from chorus_rpc.telemetry import Span

from services.runtime.logs import get_logger
from services.scheduler.dispatch.denoise_stream import DenoiseStream
from services.scheduler.dispatch.retry import RetryableFailure, classify_failure
from services.scheduler.dispatch.tools import Tools, too_late
from services.scheduler.jobs.states import IN_QUEUE
from services.scheduler.jobs.store import Job
from services.scheduler.peers import messages
from services.scheduler.planning import planner
from services.scheduler.planning.calibration import Policy, calibration_of

log = get_logger("attempt")

POLICIES: dict[plan_pb2.ReusePolicy.ValueType, Policy] = {
    plan_pb2.REUSE_POLICY_OFF: "off",
    plan_pb2.REUSE_POLICY_SAFE: "safe",
    plan_pb2.REUSE_POLICY_BALANCED: "balanced",
    plan_pb2.REUSE_POLICY_FAST: "fast",
}


async def attempt(tools: Tools, job: Job, span: Span) -> None:
    """Takes a queued job to its video, and returns when the denoiser is free of it.

    Returns early when the job left the state it should be in, for instance because it was cancelled.

    Raises RetryableFailure when a service is missing, ChorusError when the job cannot succeed.
    """
    taken = time.monotonic()
    timings = pb.Timings(
        queued_seconds=max(0.0, tools.clock() - job.generation.create_time.ToNanoseconds() / 1e9)
    )
    spec = job.generation.spec
    model = tools.catalogue.model(spec.model_id)
    warnings: list[errors_pb2.JobError] = []

    encoded = await _embed(tools, job, model)
    timings.embed_seconds = time.monotonic() - taken
    if encoded.truncated:
        warnings.append(_truncated())

    looked_up = time.monotonic()
    plan = await _plan(tools, job, model, encoded, warnings)
    timings.lookup_seconds = time.monotonic() - looked_up
    span.set_attribute(semconv.TOTAL_STEPS, plan.total_steps)
    span.set_attribute(semconv.REUSE_STEPS, plan.reuse_steps)
    span.set_attribute(semconv.REGION_STEPS, max(0, plan.region_end - plan.reuse_steps))
    span.set_attribute(semconv.CACHE_DECISION, "hit" if plan.reuse_steps else "miss")

    planned = [pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan))]
    planned += [pb.GenerationEvent(warning=pb.WarningEvent(warning=warning)) for warning in warnings]
    running = await tools.store.advance(job.job_id, IN_QUEUE, planned)
    if running is None:
        return
    log.info("planned", reuse_steps=plan.reuse_steps, reason=plan.reasons[0].text)
    span.set_attribute(semconv.ATTEMPT, running.generation.attempts)
    request = messages.denoise_request(job.job_id, spec, encoded, plan)
    run = DenoiseStream(tools, running, model, plan, timings, taken)
    try:
        await run.follow(request)
    finally:
        # The donor may have been lost since it was planned with.
        span.set_attribute(semconv.CACHE_DECISION, "hit" if run.first_step else "miss")


async def _embed(tools: Tools, job: Job, model: denoiser_pb2.ModelInfo) -> embedder_pb2.EmbedResponse:
    left = tools.seconds_left(job)
    try:
        with calling("embedder"):
            return await tools.downstream.embedder.Embed(
                embedder_pb2.EmbedRequest(
                    prompt=job.generation.spec.prompt,
                    conditioning_encoder_id=model.conditioning_encoder_id,
                ),
                timeout=min(left, tools.settings.embed_seconds),
                metadata=tools.downstream.metadata,
            )
    except ChorusError as error:
        if error.reason != errors.DEADLINE_EXCEEDED:
            raise classify_failure(error, "embedder") from error
        if left <= tools.settings.embed_seconds:
            raise too_late(job) from error
        silent = errors.unavailable("embedder", f"no answer in {tools.settings.embed_seconds:g} s")
        raise RetryableFailure("embedder", silent) from error


async def _plan(
    tools: Tools,
    job: Job,
    model: denoiser_pb2.ModelInfo,
    encoded: embedder_pb2.EmbedResponse,
    warnings: list[errors_pb2.JobError],
) -> plan_pb2.Plan:
    spec = job.generation.spec
    sigmas, policy = tuple(spec.schedule.sigmas), POLICIES[spec.reuse]
    own = spec.explicit_reuse if spec.HasField("explicit_reuse") else None
    donors: list[planner.Donor] = []
    missing: ChorusError | None = None
    if policy != "off" or own is not None:
        try:
            donors = await _look_up(tools, job, model, encoded)
        except ChorusError as error:
            error.metadata.setdefault("service", "cache")
            log.warning("cache not used", error=error.message)
            warnings.append(errors.to_job_error(error))
            missing = error
    if own is None or planner.needs_edit(own):
        donors = await _rerank(tools, job, encoded, donors)
    pace = tools.pace.seconds_per_step(spec, model)
    with telemetry.span(semconv.SPAN_PLAN, {semconv.DONOR_COUNT: len(donors)}) as span:
        if missing is not None:
            chosen = planner.without_cache(len(sigmas) - 1, missing.message)
        elif own is not None:
            chosen = planner.explicit(own, len(sigmas) - 1, donors, pace)
        else:
            chosen = planner.plan(policy, sigmas, donors, pace, calibration_of(model.model_id))
        span.set_attribute(semconv.REUSE_STEPS, chosen.reuse_steps)
        span.set_attribute(
            semconv.PLAN_REASON,
            plan_pb2.PlanReasonCode.Name(chosen.reasons[-1].code).removeprefix("PLAN_REASON_CODE_"),
        )
        if chosen.donor is not None:
            span.set_attribute(semconv.ENTRY_ID, chosen.donor.entry_id)
            span.set_attribute(semconv.DONOR_SCORE, chosen.donor.score)
            if chosen.donor.edit is not None:
                span.set_attribute(semconv.EDIT, chosen.donor.edit.kind)
    return planner.to_message(chosen)


async def _rerank(
    tools: Tools, job: Job, encoded: embedder_pb2.EmbedResponse, donors: list[planner.Donor]
) -> list[planner.Donor]:
    """Donors with the edits that lead from them; without, should the embedder fail: similarity decides."""
    if not donors:
        return donors
    seconds = min(tools.seconds_left(job), tools.settings.align_seconds)
    try:
        return await tools.reranker.rerank(job.generation.spec.prompt, encoded, donors, seconds)
    except ChorusError as error:
        log.warning("prompts not compared", error=error.message)
        return donors


async def _look_up(
    tools: Tools, job: Job, model: denoiser_pb2.ModelInfo, encoded: embedder_pb2.EmbedResponse
) -> list[planner.Donor]:
    left = tools.seconds_left(job)
    if tools.downstream.cache_state.serving is False:
        raise tools.downstream.cache_state.missing()
    identity = messages.latent_identity(job.generation.spec, model)
    try:
        with calling("cache"):
            reply = await tools.downstream.cache.Lookup(
                messages.lookup_request(identity, encoded, tools.settings.donor_limit),
                timeout=min(left, tools.settings.lookup_seconds),
                metadata=tools.downstream.metadata,
            )
    except ChorusError as error:
        if error.reason == errors.DEADLINE_EXCEEDED:
            raise errors.unavailable("cache", f"no answer in {tools.settings.lookup_seconds:g} s") from error
        raise
    return messages.donors_of(reply)


def _truncated() -> errors_pb2.JobError:
    return errors_pb2.JobError(
        reason=errors.INVALID_FIELD,
        message="the prompt has more tokens than the encoder takes; those beyond were dropped",
        metadata={"service": "embedder", "field": "spec.prompt"},
    )
