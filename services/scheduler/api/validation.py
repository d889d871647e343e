"""Validation of requests at the edge, and the accepted spec that results.

All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import Violation, Violations
from chorus_rpc.limits import MAX_DEADLINE_SECONDS, MAX_ID_CHARACTERS, MAX_PAGE_SIZE
from chorus_rpc.plan_bounds import check_amplification, check_depth, check_region
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.contract.prompts import find_prompt_fault
from services.contract.retention import find_retention_fault
from services.contract.schedule import find_schedule_fault, shifted_schedule
from services.scheduler.api.search import check_labels
from services.scheduler.jobs.deadline import is_valid_timestamp, to_unix_seconds

DEFAULT_PAGE_SIZE = 50
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_CHARACTERS}}}")
_MAX_HOURS = f"{MAX_DEADLINE_SECONDS / 3600:g} hours"
_DONOR = "spec.donor_generation_id"


@dataclass(frozen=True)
class Defaults:
    """Values of fields that a request leaves unset.

    Attributes:
        model_id: default model; empty for the denoiser's first model.
        deadline_seconds: time from submission to deadline, in seconds.
    """

    model_id: str
    reuse: plan_pb2.ReusePolicy.ValueType
    deadline_seconds: float


def check_request_id(request_id: str) -> list[Violation]:
    """Returns the violation of a malformed request_id, if any."""
    if _REQUEST_ID.fullmatch(request_id):
        return []
    return [
        Violation(
            "request_id",
            f"must be 1 to {MAX_ID_CHARACTERS} of A–Z, a–z, 0–9, '.', '_' and '-', not {_quote(request_id)};"
            " choose a new one for each request",
        )
    ]


def validate_spec(
    spec: pb.GenerationSpec,
    models: Mapping[str, denoiser_pb2.ModelInfo],
    defaults: Defaults,
    now: float,
    choose_seed: Callable[[], int],
) -> pb.GenerationSpec:
    """Returns the accepted spec, with every default filled in.

    Args:
        models: models by id, the default first; at least one.
        now: current time in Unix seconds.
        choose_seed: returns the seed of a request that states none.

    Raises INVALID_FIELD, or UNKNOWN_MODEL, with every invalid field.
    """
    violations: list[Violation] = []
    accepted = pb.GenerationSpec(
        prompt=_prompt(spec, violations),
        seed=spec.seed if spec.HasField("seed") else choose_seed(),
        reuse=_reuse(spec, defaults, violations),
        no_store=spec.no_store,
        priority=_priority(spec, violations),
        max_reuse_steps=spec.max_reuse_steps,
        donor_generation_id=spec.donor_generation_id,
        deadline=_deadline(spec, defaults, now, violations),
        labels=spec.labels,
        step_previews=spec.step_previews,
    )
    violations += check_labels(spec.labels, "spec.labels")
    fault = find_schedule_fault(spec.schedule.sigmas) if spec.HasField("schedule") else None
    if fault is not None:
        violations.append(Violation("spec.schedule.sigmas", fault))
    model_id = spec.model_id or defaults.model_id or next(iter(models))
    model = models.get(model_id)
    if model is None:
        violations.append(
            Violation("spec.model_id", f"{_quote(model_id)} is not served; available: {', '.join(models)}")
        )
        unknown = errors.invalid_fields(violations, errors.UNKNOWN_MODEL)
        unknown.metadata["available"] = ",".join(models)
        raise unknown
    accepted.model_id = model_id
    accepted.shape.CopyFrom(spec.shape if spec.HasField("shape") else model.default_shape)
    if spec.HasField("shape"):
        for name, bound in (("frames", model.frames), ("height", model.height), ("width", model.width)):
            violations += _check_bound(f"spec.shape.{name}", getattr(spec.shape, name), bound, model_id)
    if fault is None:
        accepted.schedule.CopyFrom(_schedule(spec, model, violations))
    if spec.HasField("explicit_reuse"):
        accepted.explicit_reuse.CopyFrom(spec.explicit_reuse)
        violations += _check_explicit(spec.explicit_reuse, len(accepted.schedule.sigmas) - 1, model.layers)
    violations += _check_max_reuse(accepted)
    if spec.HasField("retention"):
        accepted.retention.CopyFrom(spec.retention)
        violations += _check_retention(spec)
    if accepted.donor_generation_id and accepted.reuse == plan_pb2.REUSE_POLICY_OFF:
        violations.append(Violation(_DONOR, "must be empty with the policy OFF, which reuses nothing"))
    if violations:
        raise errors.invalid_fields(violations)
    return accepted


def apply_donor(
    requested: pb.GenerationSpec, accepted: pb.GenerationSpec, donor: pb.Generation | None
) -> list[Violation]:
    """Sets the seed of an accepted spec to that of the donor that it names; returns the violations.

    Args:
        requested: spec as requested.
        donor: generation that it names; None if the tenant has no such generation.
    """
    name = _quote(accepted.donor_generation_id)
    if donor is None:
        return [Violation(_DONOR, f"there is no generation {name}")]
    if donor.state != pb.GENERATION_STATE_SUCCEEDED:
        state = pb.GenerationState.Name(donor.state).removeprefix("GENERATION_STATE_")
        return [Violation(_DONOR, f"generation {name} has no video: it is {state}")]
    theirs = donor.spec
    different = [
        f"{field} ({ours}, not {other})"
        for field, ours, other in (
            ("model_id", accepted.model_id, theirs.model_id),
            ("schedule", list(accepted.schedule.sigmas), list(theirs.schedule.sigmas)),
            ("shape", _describe_shape(accepted.shape), _describe_shape(theirs.shape)),
        )
        if ours != other
    ]
    if different:
        return [Violation(_DONOR, f"must have this request's {', '.join(different)} to be its donor")]
    seed = donor.plan.seed if donor.plan.HasField("seed") else theirs.seed
    if requested.HasField("seed") and requested.seed != seed:
        return [
            Violation(
                "spec.seed", f"must be unset, or {seed} as that of the named donor, not {requested.seed}"
            )
        ]
    accepted.seed = seed
    return []


def _describe_shape(shape: video_pb2.VideoShape) -> str:
    return f"{shape.frames} x {shape.height} x {shape.width}"


def _prompt(spec: pb.GenerationSpec, violations: list[Violation]) -> str:
    if (fault := find_prompt_fault(spec.prompt)) is not None:
        violations.append(Violation("spec.prompt", fault))
    return spec.prompt.strip()


def _reuse(
    spec: pb.GenerationSpec, defaults: Defaults, violations: list[Violation]
) -> plan_pb2.ReusePolicy.ValueType:
    if spec.reuse not in plan_pb2.ReusePolicy.values():
        violations.append(
            Violation(
                "spec.reuse", f"must be one of {', '.join(plan_pb2.ReusePolicy.keys())}, not {spec.reuse}"
            )
        )
        return defaults.reuse
    return spec.reuse or defaults.reuse


def _priority(spec: pb.GenerationSpec, violations: list[Violation]) -> pb.Priority.ValueType:
    if spec.priority not in pb.Priority.values():
        known = ", ".join(pb.Priority.keys())
        violations.append(Violation("spec.priority", f"must be one of {known}, not {spec.priority}"))
    return spec.priority or pb.PRIORITY_NORMAL


def _check_max_reuse(accepted: pb.GenerationSpec) -> list[Violation]:
    """Returns the violations of `max_reuse_steps`. A bound that could have no effect is a violation."""
    field, limit = "spec.max_reuse_steps", accepted.max_reuse_steps
    if limit == 0:
        return []
    if accepted.HasField("explicit_reuse"):
        return [Violation(field, "must be 0 with explicit_reuse, whose reuse_steps state the depth")]
    if accepted.reuse == plan_pb2.REUSE_POLICY_OFF:
        return [Violation(field, "must be 0 with the policy OFF, which reuses nothing")]
    last = len(accepted.schedule.sigmas) - 2
    if 0 <= last < limit:
        bound = f", or 1 to {last}, one less than the steps" if last else " for a single step"
        return [Violation(field, f"must be 0{bound}, not {limit}")]
    return []


def _check_retention(spec: pb.GenerationSpec) -> list[Violation]:
    if spec.no_store:
        return [Violation("spec.retention", "must not be set with no_store, which keeps no latents")]
    fault = find_retention_fault(spec.retention)
    return [] if fault is None else [Violation("spec.retention.lifetime", fault)]


def _deadline(
    spec: pb.GenerationSpec, defaults: Defaults, now: float, violations: list[Violation]
) -> Timestamp:
    """Returns the deadline of a request: its timeout from `now`, its own deadline, or the default."""
    if spec.HasField("timeout") and spec.HasField("deadline"):
        for field, other in (("timeout", "deadline"), ("deadline", "timeout")):
            violations.append(
                Violation(f"spec.{field}", f"must not be set with spec.{other}; set timeout only")
            )
        return spec.deadline
    if spec.HasField("deadline"):
        violations += _check_deadline(spec.deadline, now)
        return spec.deadline
    nanoseconds = int(defaults.deadline_seconds * 1e9)
    if spec.HasField("timeout"):
        found = _check_timeout(spec.timeout)
        if found:
            violations += found
            return spec.deadline
        nanoseconds = spec.timeout.ToNanoseconds()
    deadline = Timestamp()
    deadline.FromNanoseconds(int(now * 1e9) + nanoseconds)
    return deadline


def _check_timeout(timeout: Duration) -> list[Violation]:
    # Computed from the parts, because protobuf raises an error for a duration that it does not define.
    seconds = timeout.seconds + timeout.nanos / 1e9
    if abs(timeout.nanos) >= 1_000_000_000 or timeout.seconds * timeout.nanos < 0:
        return [Violation("spec.timeout", "its nanos must be below 10^9, and seconds and nanos of one sign")]
    if seconds > 0 and (timeout.seconds, timeout.nanos) <= (MAX_DEADLINE_SECONDS, 0):
        return []
    return [Violation("spec.timeout", f"must be above 0, at most {_MAX_HOURS}, not {seconds:g} s")]


def _check_deadline(deadline: Timestamp, now: float) -> list[Violation]:
    if not is_valid_timestamp(deadline):
        return [Violation("spec.deadline", "must be a time between the years 1 and 9999")]
    ahead = to_unix_seconds(deadline) - now
    if ahead <= 0:
        return [
            Violation(
                "spec.deadline",
                f"passed {-ahead:.3f} s ago on this server's clock; it must be in the future, at most"
                f" {_MAX_HOURS}; set timeout instead, which does not depend on the client's clock",
            )
        ]
    if ahead > MAX_DEADLINE_SECONDS:
        return [
            Violation("spec.deadline", f"is {ahead / 3600:.1f} hours ahead; it must be at most {_MAX_HOURS}")
        ]
    return []


def _check_bound(field: str, value: int, bound: video_pb2.Bound, model_id: str) -> list[Violation]:
    multiple = max(bound.multiple, 1)
    if bound.min <= value <= bound.max and (value - bound.min) % multiple == 0:
        return []
    step = f" in steps of {multiple}" if multiple > 1 else ""
    return [Violation(field, f"must be {bound.min} to {bound.max}{step} for {model_id}, not {value}")]


def _schedule(
    spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo, violations: list[Violation]
) -> latents_pb2.Schedule:
    if spec.HasField("schedule"):
        steps = len(spec.schedule.sigmas) - 1
        for violation in _check_bound("spec.schedule.sigmas", steps, model.steps, model.model_id):
            violations.append(Violation(violation.field, f"the number of steps {violation.description}"))
        return spec.schedule
    if spec.HasField("steps"):
        out_of_bounds = _check_bound("spec.steps", spec.steps, model.steps, model.model_id)
        violations += out_of_bounds
        return latents_pb2.Schedule(
            sigmas=[] if out_of_bounds else shifted_schedule(spec.steps, model.schedule_shift)
        )
    return model.default_schedule


def _check_explicit(reuse: pb.ExplicitReuse, steps: int, layers: int) -> Sequence[Violation]:
    """Returns the violations of an explicit reuse. Parameters that could have no effect are violations.

    Args:
        steps: steps of the schedule; below 1 if the schedule itself is invalid.
        layers: layers of the model; 0 if unknown.
    """
    violations = Violations()
    field = "spec.explicit_reuse"
    if steps >= 1:
        violations.require(
            reuse.reuse_steps >= 1,
            f"{field}.reuse_steps",
            "must be at least 1; to reuse nothing, leave explicit_reuse unset",
        )
        check_depth(
            violations,
            f"{field}.",
            reuse.reuse_steps,
            reuse.region_end,
            steps,
            reuse.renoised,
            reuse.draft_step,
        )
        if reuse.HasField("amplification"):
            check_amplification(violations, f"{field}.amplification", reuse.amplification, steps)
            amplification = reuse.amplification
            violations.require(
                amplification.end_step == 0 or amplification.end_step > reuse.reuse_steps,
                f"{field}.amplification.end_step",
                f"must be above reuse_steps = {reuse.reuse_steps}, or both first_step and end_step 0: earlier"
                f" steps are not computed; not {amplification.end_step}",
            )
            violations.require(
                layers == 0 or amplification.first_layer < layers,
                f"{field}.amplification.first_layer",
                f"must be below {layers}, the layers of the model, not {amplification.first_layer}",
            )
    if reuse.HasField("region"):
        violations.require(
            reuse.region_end > reuse.reuse_steps,
            f"{field}.region",
            f"may be set only if region_end is above reuse_steps = {reuse.reuse_steps},"
            f" not {reuse.region_end}",
        )
        check_region(violations, f"{field}.region", reuse.region)
    violations.require(
        -1 <= reuse.min_score <= 1,
        f"{field}.min_score",
        f"must be a cosine, -1 to 1, not {reuse.min_score:g}",
    )
    return violations.found


def check_page_size(page_size: int) -> int:
    """Returns the page size to use. Raises INVALID_FIELD if the requested one is too large."""
    if page_size > MAX_PAGE_SIZE:
        raise errors.invalid(
            "page_size", f"must be at most {MAX_PAGE_SIZE}, not {page_size}; 0 is the default"
        )
    return page_size or DEFAULT_PAGE_SIZE


def _quote(text: str) -> str:
    """Returns a caller's text for use in a message, shortened to less than a line."""
    return repr(text if len(text) <= 64 else f"{text[:61]}...")
