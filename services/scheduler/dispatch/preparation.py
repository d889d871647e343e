"""Prepares a run: embeds the prompt, finds donors, compares their prompts with it, and plans the reuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError

from services.contract.identity import approximate
from services.runtime.logs import get_logger
from services.scheduler.dispatch.admissions import PendingAdmissions
from services.scheduler.dispatch.compare import compare_prompts
from services.scheduler.dispatch.overrides import find_unused_plan, find_unused_retention, warn_field_ignored
from services.scheduler.dispatch.retry import classify_failure
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.peers.cache import CacheClient
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.peers.encoder_registry import EncoderRegistry
from services.scheduler.peers.messages import build_approximation, build_latent_identity, truncate_tokens
from services.scheduler.peers.model_registry import ModelRegistry
from services.scheduler.planning import explicit, planner
from services.scheduler.planning.calibration import Policy
from services.scheduler.planning.calibration_files import Calibrations
from services.scheduler.planning.plan_message import choose_seed, to_message
from services.scheduler.planning.plans import Donor

log = get_logger("preparation")

POLICIES: Mapping[plan_pb2.ReusePolicy.ValueType, Policy] = {
    plan_pb2.REUSE_POLICY_OFF: "off",
    plan_pb2.REUSE_POLICY_SAFE: "safe",
    plan_pb2.REUSE_POLICY_BALANCED: "balanced",
    plan_pb2.REUSE_POLICY_FAST: "fast",
}


@dataclass(frozen=True)
class Prepared:
    """What is known of a run before it starts.

    Attributes:
        identity: identity of the latents that the run computes without a donor.
        approximation: what its latents are stored as if it reuses a donor; None if they are not.
        encoded: the encoded prompt.
        warnings: what the answer of the job will warn of.
        embed_seconds, lookup_seconds: durations of the preparation's parts.
    """

    model: denoiser_pb2.ModelInfo
    identity: latents_pb2.LatentIdentity
    approximation: latents_pb2.Approximation | None
    encoded: embedder_pb2.EmbedResponse
    plan: plan_pb2.Plan
    warnings: tuple[errors_pb2.JobError, ...]
    embed_seconds: float
    lookup_seconds: float


class Preparation:
    """Prepares runs; holds no state of any job.

    Args:
        compare_prompts: whether the prompts of donors are compared with the target's.
    """

    def __init__(
        self,
        store: JobStore,
        models: ModelRegistry,
        embedder: EmbedderClient,
        encoders: EncoderRegistry,
        cache: CacheClient,
        throughput: Throughput,
        admissions: PendingAdmissions,
        calibrations: Calibrations,
        *,
        compare_prompts: bool,
    ) -> None:
        self._store = store
        self._models = models
        self._embedder = embedder
        self._encoders = encoders
        self._cache = cache
        self._throughput = throughput
        self._admissions = admissions
        self._calibrations = calibrations
        self._compare_prompts = compare_prompts

    async def prepare(self, job: Job) -> Prepared:
        """Prepares a job's run, without changing anything.

        Raises RetryableFailure if a service is unavailable, ChorusError if the job cannot succeed.
        """
        begun = time.monotonic()
        spec = job.generation.spec
        model = self._models.model(spec.model_id)
        identity = build_latent_identity(spec, model)
        warnings: list[errors_pb2.JobError] = []
        approximation = self._build_approximation(job, model)
        encoded, repeat = await self._embed_and_find_repeat(job, model, identity, approximation, warnings)
        embedded = time.monotonic()
        if repeat is not None:
            donors, cache_error = [repeat], None
        else:
            donors, cache_error = await self._look_up(job, identity, encoded, warnings)
            donors = await self._add_edits(job, encoded, donors, warnings)
        plan = self._plan(job.generation, model, donors, cache_error)
        if cache_error is None:
            warnings += find_unused_plan(spec, plan, model.max_text_tokens)
        warnings += find_unused_retention(job.generation, plan)
        return Prepared(
            model,
            identity,
            approximation,
            encoded,
            plan,
            tuple(warnings),
            embed_seconds=embedded - begun,
            lookup_seconds=time.monotonic() - embedded,
        )

    async def plan_with(self, job: Job, prepared: Prepared, donors: list[Donor]) -> plan_pb2.Plan:
        """Returns the plan that a job would have with these donors, the most similar first.

        Raises ChorusError only if the job's deadline passes.
        """
        donors = await self._add_edits(job, prepared.encoded, donors, [])
        return self._plan(job.generation, prepared.model, donors, None)

    def still_holds(self, job: Job, prepared: Prepared) -> bool:
        """Returns whether the denoiser still serves the model for which a run was prepared."""
        try:
            model = self._models.model(job.generation.spec.model_id)
        except ChorusError:
            return False
        same_host = model.host_adapter == prepared.model.host_adapter
        return same_host and build_latent_identity(job.generation.spec, model) == prepared.identity

    async def _embed_and_find_repeat(
        self,
        job: Job,
        model: denoiser_pb2.ModelInfo,
        identity: latents_pb2.LatentIdentity,
        approximation: latents_pb2.Approximation | None,
        warnings: list[errors_pb2.JobError],
    ) -> tuple[embedder_pb2.EmbedResponse, Donor | None]:
        """Returns the encoded prompt and the earlier result of the same request, if the cache has it.

        Both calls run at once: the search needs the name of the embedder's encoder, not the vector.
        """
        known = self._encoders.retrieval
        # Each call has a deadline. Waiting for both leaves no task whose error is never read.
        encoded, repeat = await asyncio.gather(
            self._embed(job, model, warnings),
            self._find_repeat(job, identity, approximation, known),
            return_exceptions=True,
        )
        if isinstance(encoded, BaseException):
            raise encoded
        if isinstance(repeat, BaseException):
            raise repeat
        used = _describe_retrieval(encoded)
        if known is None or known.encoder_id != used.encoder_id:  # the embedder restarted with another one
            repeat = await self._find_repeat(job, identity, approximation, used)
        return encoded, repeat

    async def _embed(
        self, job: Job, model: denoiser_pb2.ModelInfo, warnings: list[errors_pb2.JobError]
    ) -> embedder_pb2.EmbedResponse:
        try:
            encoded = await self._embedder.embed(
                job.generation.spec.prompt, model.conditioning_encoder_id, job.caller
            )
        except ChorusError as error:
            raise classify_failure(error, "embedder") from error
        if encoded.truncated:
            warnings.append(
                _make_truncation_warning("the prompt has more tokens than the encoder accepts", "embedder")
            )
        if truncate_tokens(encoded, model.max_text_tokens) is not encoded:
            warnings.append(
                _make_truncation_warning(
                    f"the prompt has {encoded.token_states.shape[0]} tokens; {model.model_id} reads the first"
                    f" {model.max_text_tokens}",
                    "denoiser",
                )
            )
        return encoded

    def _build_approximation(
        self, job: Job, model: denoiser_pb2.ModelInfo
    ) -> latents_pb2.Approximation | None:
        """Returns what the job's result is stored as if it reuses a donor.

        None if the request chooses its plan or its donor.
        """
        spec = job.generation.spec
        policy = POLICIES[spec.reuse]
        if policy == "off" or spec.HasField("explicit_reuse") or spec.donor_generation_id:
            return None
        return build_approximation(spec, model, policy)

    async def _find_repeat(
        self,
        job: Job,
        identity: latents_pb2.LatentIdentity,
        approximation: latents_pb2.Approximation | None,
        retrieval: embedder_pb2.EncoderInfo | None,
    ) -> Donor | None:
        """Returns the earlier result of the same request, if the cache has it.

        A request without a seed asks for another video than before. An error of the cache is ignored: the
        lookup that follows reports it.
        """
        spec = job.generation.spec
        if approximation is None or retrieval is None or job.generation.seed_chosen:
            return None
        wanted = identity, approximate(identity, approximation)
        try:
            found = await asyncio.gather(*(self._find(job, each, retrieval) for each in wanted))
        except ChorusError as error:
            if error.reason == errors.DEADLINE_EXCEEDED:
                raise
            return None
        # The full computation comes before the approximation.
        total_steps = len(spec.schedule.sigmas) - 1
        return next((each for each in found if each and planner.is_repeat(each, total_steps)), None)

    async def _find(
        self, job: Job, identity: latents_pb2.LatentIdentity, retrieval: embedder_pb2.EncoderInfo
    ) -> Donor | None:
        """Returns the entry of the job's prompt and seed under an identity, or None."""
        spec = job.generation.spec
        self._cache.require_available()
        await self._admissions.wait(job.tenant, identity, (spec.prompt, spec.seed))
        return await self._cache.find(identity, retrieval, spec.prompt, spec.seed, job.caller)

    async def _look_up(
        self,
        job: Job,
        identity: latents_pb2.LatentIdentity,
        encoded: embedder_pb2.EmbedResponse,
        warnings: list[errors_pb2.JobError],
    ) -> tuple[list[Donor], ChorusError | None]:
        """Returns the donors, or the error of a cache that cannot be used: the job then runs without it."""
        spec = job.generation.spec
        if POLICIES[spec.reuse] == "off" and not spec.HasField("explicit_reuse"):
            return [], None
        try:
            self._cache.require_available()
            await self._admissions.wait(job.tenant, identity)
            if spec.donor_generation_id:
                return await self._find_named_donor(job, identity, encoded, warnings), None
            return await self._cache.lookup(identity, encoded, job.caller), None
        except ChorusError as error:
            if error.reason == errors.DEADLINE_EXCEEDED:
                raise
            error.metadata.setdefault("service", "cache")
            log.warning("cache not used", error=error.message)
            warnings.append(errors.to_job_error(error))
            return [], error

    async def _find_named_donor(
        self,
        job: Job,
        identity: latents_pb2.LatentIdentity,
        encoded: embedder_pb2.EmbedResponse,
        warnings: list[errors_pb2.JobError],
    ) -> list[Donor]:
        """Returns the donor that the request names.

        If its latents are not in the cache, returns none and adds a warning.
        """
        spec = job.generation.spec
        named = await self._store.get(spec.donor_generation_id)
        cause = "it was removed"
        if named is not None:
            theirs = named.generation
            cause = "its latents are not in the cache"
            if theirs.plan.reuse_steps > 0:
                cause = f"it reused generation {theirs.plan.donor.generation_id!r} itself: name that one"
            found = await self._cache.find(
                identity, _describe_retrieval(encoded), theirs.spec.prompt, spec.seed, job.caller
            )
            if found is not None:
                donor_encoded = await self._embedder.embed(
                    theirs.spec.prompt, encoded.conditioning_encoder_id, job.caller
                )
                return [replace(found, score=_cosine(encoded, donor_encoded))]
        message = f"generation {spec.donor_generation_id!r} is not reused: {cause}"
        warnings.append(warn_field_ignored("spec.donor_generation_id", message))
        return []

    async def _add_edits(
        self,
        job: Job,
        encoded: embedder_pb2.EmbedResponse,
        donors: list[Donor],
        warnings: list[errors_pb2.JobError],
    ) -> list[Donor]:
        """Adds to each donor the edit from its prompt to the target's, if the plan needs it.

        If the embedder fails, returns the donors unchanged: the planner then decides by their similarity.
        """
        spec = job.generation.spec
        edits_unused = spec.HasField("explicit_reuse") and not explicit.needs_edit(spec.explicit_reuse)
        if edits_unused or not donors or not self._compare_prompts:
            return donors
        try:
            return await compare_prompts(self._embedder, spec.prompt, encoded, donors, job.caller)
        except ChorusError as error:
            if error.reason == errors.DEADLINE_EXCEEDED:
                raise
            error.metadata.setdefault("service", "embedder")
            log.warning("prompts not compared", error=error.message)
            warning = errors.to_job_error(error)
            warning.message = f"the prompts could not be compared with the donors': {error.message}"
            warnings.append(warning)
            return donors

    def _plan(
        self,
        generation: pb.Generation,
        model: denoiser_pb2.ModelInfo,
        donors: Sequence[Donor],
        cache_error: ChorusError | None,
    ) -> plan_pb2.Plan:
        spec, seed_chosen = generation.spec, generation.seed_chosen
        sigmas = tuple(spec.schedule.sigmas)
        total_steps = len(sigmas) - 1
        step_seconds = self._throughput.seconds_per_step(spec, model)
        with telemetry.span(semconv.SPAN_PLAN, {semconv.DONOR_COUNT: len(donors)}) as span:
            if cache_error is not None:
                plan = planner.plan_without_cache(total_steps, cache_error.message)
            elif spec.HasField("explicit_reuse"):
                plan = explicit.plan_explicit(spec.explicit_reuse, total_steps, donors, step_seconds)
            else:
                calibration = self._calibrations.find(model)
                seed = None if seed_chosen else spec.seed
                plan = planner.plan(
                    POLICIES[spec.reuse],
                    sigmas,
                    donors,
                    step_seconds,
                    calibration,
                    seed,
                    spec.prompt,
                    spec.max_reuse_steps,
                )
            code = plan_pb2.PlanReasonCode.Name(plan.reasons[-1].code)
            span.set_attribute(semconv.REUSE_STEPS, plan.reuse_steps)
            span.set_attribute(semconv.PLAN_REASON, code.removeprefix("PLAN_REASON_CODE_"))
            if plan.donor is not None:
                span.set_attribute(semconv.ENTRY_ID, plan.donor.entry_id)
                span.set_attribute(semconv.DONOR_SCORE, plan.donor.score)
                if plan.donor.edit is not None:
                    span.set_attribute(semconv.EDIT, plan.donor.edit.kind)
        message = to_message(plan)
        message.seed = choose_seed(message, spec.seed, seed_chosen, spec.prompt)
        return message


def _describe_retrieval(encoded: embedder_pb2.EmbedResponse) -> embedder_pb2.EncoderInfo:
    """Returns the encoder of the retrieval vector of a prompt."""
    return embedder_pb2.EncoderInfo(
        encoder_id=encoded.retrieval_encoder_id, vector_dim=len(encoded.retrieval_vector)
    )


def _cosine(first: embedder_pb2.EmbedResponse, second: embedder_pb2.EmbedResponse) -> float:
    """Returns the similarity of two prompts, -1 to 1. Retrieval vectors have the length 1."""
    return sum(a * b for a, b in zip(first.retrieval_vector, second.retrieval_vector, strict=True))


def _make_truncation_warning(cause: str, service: str) -> errors_pb2.JobError:
    return warn_field_ignored("spec.prompt", f"{cause}; those beyond its limit were dropped", service=service)
