"""Validates a DenoiseRequest and converts it to a DenoiseJob."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from chorus.common.v1 import latents_pb2, plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import BlobFault
from chorus_rpc.errors import ChorusError, Violation, Violations
from chorus_rpc.limits import (
    MAX_ENCODER_ID_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_VECTOR_DIM,
    MAX_WEIGHTED_TOKENS,
    NORM_TOLERANCE,
    SHA256_PATTERN,
)
from chorus_rpc.plan_bounds import check_amplification, check_depth, check_region
from numpy.typing import NDArray

from services.contract.identity import approximate, find_approximation_fault
from services.contract.prompts import find_prompt_fault
from services.contract.reuse import donor_boundaries, effective_region_end, needs_side_data
from services.contract.schedule import find_schedule_fault
from services.contract.tensors import decode_tensor
from services.denoiser.model.loaded import LatentShape, LoadedModel
from services.denoiser.network.wan import Grid
from services.denoiser.reuse.resume_point import ResumePoint, describe_run, unpack_resume_point


@dataclass(frozen=True)
class DenoiseJob:
    """Validated parameters of one run.

    Attributes:
        latent_shape: Shape of the latents, (C, T, H, W).
        sigmas: Noise levels; one more than the steps.
        token_states: Token states of the prompt, float32 [L, text_dim].
        plan: Plan as requested; K1 is above 0 exactly if a donor is set.
        vector_dim: Dimension of the retrieval vectors.
        admission: Request to store the result; None means that it is not stored.
        run_digest: Digest of what the result depends on, which its resume points name.
        max_resume_point_bytes: Upper bound on the resume points that the caller wants, in bytes; 0: none.
        resume: State that the run continues from; None means that it starts at its first step.
        step_previews: Whether each step has a picture of what it predicted.
    """

    generation_id: str
    model: LoadedModel
    latent_shape: LatentShape
    sigmas: tuple[float, ...]
    seed: int
    token_states: NDArray[np.float32]
    plan: plan_pb2.Plan
    retrieval_encoder_id: str
    vector_dim: int
    admission: denoiser_pb2.AdmissionContext | None
    run_digest: str = ""
    max_resume_point_bytes: int = 0
    resume: ResumePoint | None = None
    step_previews: bool = False

    @property
    def total_steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def reuse_steps(self) -> int:
        """K1, the number of steps taken from the donor."""
        return self.plan.reuse_steps

    @property
    def donor(self) -> plan_pb2.DonorRef | None:
        return self.plan.donor if self.reuse_steps else None

    @property
    def host_adapter(self) -> str:
        """Id of the adapter that computes the first step after the donor; empty if there is none."""
        host = self.model.host
        return "" if host is None or self.reuse_steps == self.total_steps else host.adapters[-1].id

    @property
    def region_end(self) -> int:
        """K2: at least K1, and equal to it if there is no stage 2."""
        return effective_region_end(self.plan)

    @property
    def donor_steps(self) -> tuple[int, ...]:
        """Step boundaries whose latents the plan takes from the donor."""
        return tuple(donor_boundaries(self.plan, self.total_steps))

    @property
    def step_numbers(self) -> tuple[int, ...]:
        """Steps that a run with the plan's donor computes, in order: the draft, then K1 … N − 1."""
        draft = (self.plan.draft_step,) if self.plan.draft_step else ()
        return (*draft, *range(self.reuse_steps, self.total_steps))

    @property
    def needs_side_data(self) -> bool:
        """Whether the plan reads the donor's attention maps or the token states of its prompt."""
        return needs_side_data(self.plan.region, self.plan.amplification)

    @property
    def needs_donor(self) -> bool:
        """Whether the run reads the donor's data: a resumed one may be past the steps that do."""
        if self.donor is None or self.resume is None:
            return self.donor is not None
        return self.resume.region is not None or self.needs_side_data

    @property
    def token_grid(self) -> Grid:
        return self.model.token_grid(self.latent_shape)

    @property
    def approximation(self) -> latents_pb2.Approximation | None:
        """What the result is stored as if it reuses a donor; None if such a result is not stored so."""
        admission = self.admission
        return admission.approximation if admission and admission.HasField("approximation") else None

    @property
    def donor_identity(self) -> latents_pb2.LatentIdentity:
        """Identity of the donor's latents."""
        donor = self.donor
        reused = donor is not None and donor.HasField("approximation")
        return approximate(self.identity, self.plan.donor.approximation if reused else None)

    @property
    def identity(self) -> latents_pb2.LatentIdentity:
        """Identity of the latents that the model computes without a donor."""
        spec = self.model.spec
        return latents_pb2.LatentIdentity(
            model_id=spec.id,
            weights_digest=self.model.weights_digest,
            adapters=describe_adapters(self.model),
            schedule=latents_pb2.Schedule(sigmas=self.sigmas),
            latent_shape=self.latent_shape,
            latent_dtype=latents_pb2.D_TYPE_FLOAT32,
            codec_id=self.model.codec.id,
            conditioning_encoder_id=spec.text.encoder_id,
            model_digest=self.model.model_digest,
        )


def describe_adapters(model: LoadedModel) -> list[latents_pb2.Adapter]:
    """Returns the adapters that were merged into the weights."""
    return [latents_pb2.Adapter(adapter_id=a.id, digest=a.digest, scale=a.scale) for a in model.adapters]


def unknown_model(model_id: str, available: Mapping[str, object]) -> ChorusError:
    """Returns the error for a model that this denoiser does not serve."""
    listed = ",".join(available)
    return ChorusError(
        errors.UNKNOWN_MODEL,
        f"model_id: {model_id[:100]!r} is not served here; available: {listed}",
        metadata={"available": listed},
        violations=[Violation("model_id", f"must be one of {listed}")],
    )


def parse_request(request: denoiser_pb2.DenoiseRequest, models: Mapping[str, LoadedModel]) -> DenoiseJob:
    """Converts a request to a job.

    Raises UNKNOWN_MODEL, or INVALID_FIELD that names every invalid field and its bound.
    """
    model = models.get(request.model_id)
    if model is None:
        raise unknown_model(request.model_id, models)
    violations = Violations()
    violations.require(
        0 < len(request.generation_id) <= MAX_ID_CHARACTERS,
        "generation_id",
        f"must have 1 to {MAX_ID_CHARACTERS} characters, not {len(request.generation_id)}",
    )
    shape = _parse_shape(violations, request, model)
    sigmas = _parse_sigmas(violations, request, model)
    states = _parse_token_states(violations, request, model)
    _check_plan(violations, request.plan, len(sigmas) - 1)
    violations.require(
        model.spec.schedule.sampler == "euler"
        or request.plan.region_end <= request.plan.reuse_steps
        or request.plan.donor.HasField("seed"),
        "plan.donor.seed",
        "must be set for a plan with region steps: the model's sampler added noise that depends on it",
    )
    admission = request.admission if request.HasField("admission") else None
    if admission is not None or request.plan.reuse_steps:
        _check_retrieval(violations, request)
    if admission is not None:
        _check_admission(violations, admission, request.vector_dim)
    violations.raise_if_any()
    assert shape is not None
    assert states is not None
    run_digest = describe_run(request, model.weights_digest)
    return DenoiseJob(
        generation_id=request.generation_id,
        model=model,
        latent_shape=shape,
        sigmas=sigmas,
        seed=request.seed,
        token_states=states,
        plan=request.plan,
        retrieval_encoder_id=request.retrieval_encoder_id,
        vector_dim=request.vector_dim,
        admission=admission,
        run_digest=run_digest,
        max_resume_point_bytes=request.max_resume_point_bytes,
        resume=_parse_resume_point(request, model, shape, run_digest),
        step_previews=request.step_previews,
    )


def _parse_resume_point(
    request: denoiser_pb2.DenoiseRequest, model: LoadedModel, shape: LatentShape, run_digest: str
) -> ResumePoint | None:
    """Raises INVALID_FIELD for a point of another run, or after which the run has no step left."""
    if not request.resume_point:
        return None
    plan, steps = request.plan, len(request.schedule.sigmas) - 1
    # A draft ends at K1.
    first = plan.reuse_steps + (0 if plan.draft_step else 1)
    if first >= steps:
        raise errors.invalid("resume_point", "must be empty: the run has one step")
    try:
        return unpack_resume_point(
            request.resume_point,
            run_digest,
            shape,
            math.prod(model.token_grid(shape)),
            range(first, steps),
        )
    except BlobFault as fault:
        raise errors.invalid("resume_point", str(fault)) from None


def _parse_shape(
    violations: Violations, request: denoiser_pb2.DenoiseRequest, model: LoadedModel
) -> LatentShape | None:
    sizes = (request.shape.frames, request.shape.height, request.shape.width)
    bounds = model.spec.bounds
    fits = [
        violations.require(fault is None, f"shape.{name}", fault or "")
        for name, fault in (
            ("frames", bounds.frames.describe_fault(sizes[0])),
            ("height", bounds.height.describe_fault(sizes[1])),
            ("width", bounds.width.describe_fault(sizes[2])),
        )
    ]
    if not all(fits):
        return None
    # Every size within the bounds has latents of whole patches: `load_spec` checks it.
    return model.codec.latent_shape(*sizes)


def _parse_sigmas(
    violations: Violations, request: denoiser_pb2.DenoiseRequest, model: LoadedModel
) -> tuple[float, ...]:
    sigmas = tuple(request.schedule.sigmas)
    fault = find_schedule_fault(sigmas)
    if violations.require(fault is None, "schedule.sigmas", fault or ""):
        fault = model.spec.bounds.steps.describe_fault(len(sigmas) - 1)
        violations.require(fault is None, "schedule.sigmas", f"its number of steps {fault}")
    return sigmas


def _parse_token_states(
    violations: Violations, request: denoiser_pb2.DenoiseRequest, model: LoadedModel
) -> NDArray[np.float32] | None:
    text, dim = model.spec.text, model.spec.transformer.text_dim
    violations.require(
        request.conditioning_encoder_id == text.encoder_id,
        "conditioning_encoder_id",
        f"must be {text.encoder_id}, which {request.model_id} was trained with",
    )
    try:
        states = decode_tensor(
            request.token_states, "token_states", rank=2, max_elements=text.max_tokens * dim
        )
    except ChorusError as error:
        for violation in error.violations:
            violations.require(False, violation.field, violation.description)
        return None
    tokens, width = states.shape
    violations.require(
        1 <= tokens <= text.max_tokens and width == dim,
        "token_states.shape",
        f"must be [L, {dim}] with L 1 to {text.max_tokens}, not {[tokens, width]}",
    )
    return states


def _check_plan(violations: Violations, plan: plan_pb2.Plan, steps: int) -> None:
    violations.require(
        plan.total_steps == steps,
        "plan.total_steps",
        f"must be {steps}, the schedule's number of steps, not {plan.total_steps}",
    )
    check_depth(
        violations,
        "plan.",
        plan.reuse_steps,
        plan.region_end,
        steps,
        plan.renoised,
        plan.draft_step,
        exact=True,
    )
    regional = plan.region_end > plan.reuse_steps
    if (
        violations.require(
            plan.HasField("region") == regional,
            "plan.region",
            "must be set exactly if plan.region_end is above plan.reuse_steps",
        )
        and regional
    ):
        check_region(violations, "plan.region", plan.region)
    if plan.HasField("amplification"):
        check_amplification(violations, "plan.amplification", plan.amplification, steps)
    for name, tokens in (("gained", plan.gained), ("lost", plan.lost)):
        violations.require(
            len(tokens) <= MAX_WEIGHTED_TOKENS and all(0 <= token.weight <= 1 for token in tokens),
            f"plan.{name}",
            f"must be at most {MAX_WEIGHTED_TOKENS} tokens, each with a weight of 0 to 1",
        )
    violations.require(
        plan.HasField("donor") == (plan.reuse_steps > 0),
        "plan.donor",
        "must be set exactly if plan.reuse_steps is above 0",
    )
    if plan.donor.HasField("approximation"):
        fault = find_approximation_fault(plan.donor.approximation)
        violations.require(fault is None, "plan.donor.approximation", fault or "")
        violations.require(
            plan.reuse_steps == steps,
            "plan.donor.approximation",
            f"must be unset unless plan.reuse_steps is {steps}: such an entry holds clean latents only",
        )
    if plan.HasField("donor"):
        violations.require(
            re.fullmatch(SHA256_PATTERN, plan.donor.entry_id) is not None,
            "plan.donor.entry_id",
            "must be 64 lower-case hex digits",
        )


def _check_retrieval(violations: Violations, request: denoiser_pb2.DenoiseRequest) -> None:
    violations.require(
        0 < len(request.retrieval_encoder_id) <= MAX_ENCODER_ID_CHARACTERS,
        "retrieval_encoder_id",
        f"must have 1 to {MAX_ENCODER_ID_CHARACTERS} characters if the cache is read or written",
    )
    violations.require(
        1 <= request.vector_dim <= MAX_VECTOR_DIM,
        "vector_dim",
        f"must be 1 to {MAX_VECTOR_DIM} if the cache is read or written, not {request.vector_dim}",
    )


def _check_admission(
    violations: Violations, admission: denoiser_pb2.AdmissionContext, vector_dim: int
) -> None:
    fault = find_prompt_fault(admission.prompt)
    violations.require(fault is None, "admission.prompt", fault or "")
    if admission.HasField("approximation"):
        fault = find_approximation_fault(admission.approximation)
        violations.require(fault is None, "admission.approximation", fault or "")
    vector = admission.retrieval_vector
    if violations.require(
        len(vector) == vector_dim,
        "admission.retrieval_vector",
        f"must hold vector_dim = {vector_dim} values, not {len(vector)}",
    ):
        norm = math.sqrt(sum(value * value for value in vector))
        violations.require(
            abs(norm - 1) <= NORM_TOLERANCE,
            "admission.retrieval_vector",
            f"must be L2-normalised: its norm is {norm:.4g}, not 1",
        )
