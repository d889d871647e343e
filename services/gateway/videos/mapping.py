"""From the fields of a request to the specification of a generation. All functions are pure."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chorus_client import (
    ChorusError,
    ExplicitReuse,
    Generation,
    Model,
    Range,
    SpecOptions,
    explicit_reuse,
    parse_plan,
)
from chorus_rpc.limits import MAX_ID_CHARACTERS

from services.gateway.errors import INVALID, UNSUPPORTED, ApiError, Fault, from_chorus, invalid
from services.gateway.videos.fields import ChorusFields, CreateFields, RemixFields
from services.gateway.videos.identifiers import find_generation_id

KEY_HEADER: Final = "Idempotency-Key"
USER_LABEL: Final = "user"
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_CHARACTERS}}}")
_PLAN_FIELDS: Final = frozenset(inspect.signature(explicit_reuse).parameters)
# Relative difference of two frame rates that counts as none: an mp4 states them as a fraction.
_FPS_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Submission:
    """A request for videos, as the Chorus client takes it.

    Attributes:
        outputs: number of videos.
        model: the model that makes them; None if the request does not need to know it.
        warnings: sentences about fields that are not met exactly.
    """

    prompt: str
    outputs: int
    options: SpecOptions
    model: Model | None = None
    warnings: Sequence[str] = field(default=())


def build_submission(fields: CreateFields, models: Sequence[Model], request_id: str | None) -> Submission:
    """Returns the submission of POST /v1/videos. Raises ApiError that names every field that cannot be
    honoured.

    Args:
        models: the models that can be named, the default first.
        request_id: value of the header Idempotency-Key.
    """
    faults: list[Fault] = []
    options = _build_common(fields, request_id, faults)
    for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale"):
        value = getattr(fields, name)
        if value is not None and value != 1:
            message = f"must be 1, not {value:g}: few-step models run without guidance"
            faults.append(Fault(name, message, UNSUPPORTED))
    outputs = _choose_outputs(fields, faults)
    model = _find_model(fields.model, models, faults)
    warnings: list[str] = []
    if model is not None:
        _choose_shape(fields, model, options, faults, warnings)
    if faults:
        raise invalid(faults)
    if fields.model is not None:
        options["model"] = fields.model
    if fields.seed is not None:
        options["seed"] = fields.seed
    if fields.num_inference_steps is not None:
        options["steps"] = fields.num_inference_steps
    return Submission(fields.prompt, outputs, options, model, tuple(warnings))


def build_remix(fields: RemixFields, source: Generation, request_id: str | None) -> Submission:
    """Returns the submission of a video that starts from another one, with its model, size, steps and
    seed.
    """
    faults: list[Fault] = []
    options = _build_common(fields, request_id, faults)
    if options.get("donor"):
        faults.append(
            Fault("chorus.donor", "must not be stated: the donor is the video that the request names")
        )
    if faults:
        raise invalid(faults)
    spec = source.proto.spec
    options["model"] = source.model
    options["frames"], options["height"], options["width"] = (
        spec.shape.frames,
        spec.shape.height,
        spec.shape.width,
    )
    options["sigmas"] = list(spec.schedule.sigmas)
    options["donor"] = source.id
    return Submission(fields.prompt, 1, options)


def choose_frames(seconds: int, fps: float, frames: Range) -> int:
    """Returns the valid number of frames that is nearest to a length, the larger of two.

    Args:
        fps: frames per second, above 0.
    """
    multiple = max(frames.multiple, 1)
    steps = int((seconds * fps - frames.min) / multiple + 0.5)
    most = (frames.max - frames.min) // multiple
    return frames.min + multiple * min(max(steps, 0), most)


def format_seconds(frames: int, fps: float) -> str:
    """Returns the length of a video as text, such as "4" or "1.33"."""
    return f"{round(frames / fps, 2):g}" if fps else "0"


_FIELDS_OF_SPEC: Final[Mapping[str, str]] = {
    "spec.prompt": "prompt",
    "spec.model_id": "model",
    "spec.shape.frames": "num_frames",
    "spec.shape.height": "size",
    "spec.shape.width": "size",
    "spec.steps": "num_inference_steps",
    "spec.seed": "seed",
    "spec.timeout": "chorus.deadline_seconds",
    "spec.reuse": "chorus.reuse",
    "spec.max_reuse_steps": "chorus.max_reuse_steps",
    "spec.priority": "chorus.priority",
    "spec.labels": "metadata",
    "spec.webhook": "chorus.webhook_url",
    "spec.webhook.url": "chorus.webhook_url",
    "spec.webhook.events": "chorus.webhook_events",
    "webhook": "chorus.webhook_url",
    "webhook_events": "chorus.webhook_events",
    "spec.step_previews": "chorus.step_previews",
    "step_previews": "chorus.step_previews",
    "request_id": KEY_HEADER,
    "outputs": "n",
}


def name_field(name: str, fields: RemixFields) -> str:
    """Returns the name in the request of a field that the scheduler, or its client, names."""
    if name in ("spec.donor_generation_id", "donor"):
        return "video" if fields.chorus is None or fields.chorus.donor is None else "chorus.donor"
    label = re.fullmatch(r'(?:spec\.)?labels\[["\'](.*)["\']\]', name)
    if label:
        return USER_LABEL if label[1] == USER_LABEL and fields.user is not None else f"metadata.{label[1]}"
    if name.startswith("spec.explicit_reuse"):
        return "chorus.plan" + name.removeprefix("spec.explicit_reuse")
    if name == "spec.shape.frames" and isinstance(fields, CreateFields) and fields.num_frames is None:
        return "seconds"
    return _FIELDS_OF_SPEC.get(name, name)


def translate_error(error: ChorusError, fields: RemixFields) -> ApiError:
    """Converts an error of a submission; it names the fields of the request."""
    found = from_chorus(error)
    if not found.faults:
        return found
    faults = [Fault(name_field(fault.param, fields), fault.message, fault.code) for fault in found.faults]
    if found.status == 400:
        return invalid(faults)
    return ApiError(found.status, found.code, found.message, param=faults[0].param, faults=faults)


def _build_common(fields: RemixFields, request_id: str | None, faults: list[Fault]) -> SpecOptions:
    """Returns the options that every submission may state."""
    options: SpecOptions = {}
    if request_id is not None:
        if _REQUEST_ID.fullmatch(request_id):
            options["request_id"] = request_id
        else:
            bound = f"must be 1 to {MAX_ID_CHARACTERS} of A–Z, a–z, 0–9, '.', '_' and '-'"
            faults.append(Fault(KEY_HEADER, bound))
    labels = dict(fields.metadata or {})
    if fields.user is not None:
        if USER_LABEL in labels:
            faults.append(
                Fault("metadata.user", "must not be stated with the field user, which is this label")
            )
        labels[USER_LABEL] = fields.user
    if labels:
        options["labels"] = labels
    if fields.chorus is not None:
        _add_chorus(fields.chorus, options, faults)
    return options


def _add_chorus(fields: ChorusFields, options: SpecOptions, faults: list[Fault]) -> None:
    if fields.reuse is not None:
        options["reuse"] = fields.reuse
    if fields.max_reuse_steps is not None:
        options["max_reuse_steps"] = fields.max_reuse_steps
    if fields.no_store is not None:
        options["no_store"] = fields.no_store
    if fields.step_previews is not None:
        options["step_previews"] = fields.step_previews
    if fields.deadline_seconds is not None:
        options["deadline"] = fields.deadline_seconds
    if fields.priority is not None:
        options["priority"] = fields.priority
    if fields.webhook_url is not None:
        options["webhook"] = fields.webhook_url
    if fields.webhook_events is not None:
        options["webhook_events"] = fields.webhook_events
    if fields.donor is not None:
        donor = find_generation_id(fields.donor)
        if donor is None:
            faults.append(Fault("chorus.donor", f"must be the id of a video, not {fields.donor[:64]!r}"))
        else:
            options["donor"] = donor
    if fields.plan is not None:
        plan = _parse_plan(fields.plan, faults)
        if plan is not None:
            options["explicit_reuse"] = plan


def _parse_plan(plan: str | Mapping[str, Any], faults: list[Fault]) -> ExplicitReuse | None:
    try:
        if isinstance(plan, str):
            return parse_plan(plan)
        unknown = [name for name in plan if name not in _PLAN_FIELDS]
        faults += [
            Fault(f"chorus.plan.{name[:64]}", "is not a field of a plan", UNSUPPORTED) for name in unknown
        ]
        if "reuse_steps" not in plan:
            faults.append(Fault("chorus.plan.reuse_steps", "must be given: 1 to the number of steps − 1"))
        elif not unknown:
            return explicit_reuse(**{name: _read_scalar(value) for name, value in plan.items()})
    except ChorusError as error:
        faults += [
            Fault("chorus.plan" if each.field == "plan" else f"chorus.plan.{each.field}", each.description)
            for each in error.violations
        ]
    return None


def _read_scalar(value: Any) -> Any:
    """Returns the number or flag that the field of a form states as text; another value unchanged."""
    if not isinstance(value, str) or len(value) > 32:
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, int | float) else value


def _choose_outputs(fields: CreateFields, faults: list[Fault]) -> int:
    stated = {value for value in (fields.n, fields.num_outputs_per_prompt) if value is not None}
    if len(stated) > 1:
        faults.append(Fault("num_outputs_per_prompt", f"must be n = {fields.n}, whose other name it is"))
    return next(iter(stated), 1)


def _find_model(name: str | None, models: Sequence[Model], faults: list[Fault]) -> Model | None:
    if name is None:
        return models[0] if models else None
    found = next((model for model in models if model.id == name), None)
    if found is None:
        available = ", ".join(model.id for model in models)
        faults.append(Fault("model", f"{name!r} is not served; available: {available}", "model_not_found"))
    return found


def _choose_shape(
    fields: CreateFields, model: Model, options: SpecOptions, faults: list[Fault], warnings: list[str]
) -> None:
    """Adds the shape to the options if the request states a part of it."""
    frames = _choose_length(fields, model, faults, warnings)
    size = _choose_size(fields, faults)
    if frames is None and size is None:
        return
    default_frames, default_height, default_width = model.default_shape
    options["frames"] = default_frames if frames is None else frames
    options["width"], options["height"] = (default_width, default_height) if size is None else size


def _choose_length(
    fields: CreateFields, model: Model, faults: list[Fault], warnings: list[str]
) -> int | None:
    """Returns the number of frames; None if the request states none."""
    fps = model.frames_per_second
    if fields.fps is not None and abs(fields.fps - fps) > _FPS_TOLERANCE * fps:
        bound = f"must be {fps:g}, the frame rate of {model.id}" if fps else "the model sets the frame rate"
        faults.append(Fault("fps", f"{bound}, not {fields.fps:g}", UNSUPPORTED))
        return None
    if fields.seconds is None:
        return fields.num_frames
    if not fps:
        faults.append(
            Fault("seconds", f"the frame rate of {model.id} is unknown; state num_frames", UNSUPPORTED)
        )
        return None
    frames = choose_frames(fields.seconds, fps, model.frames)
    if fields.num_frames is not None and fields.num_frames != frames:
        faults.append(
            Fault(
                "num_frames", f"must be {frames} with seconds = {fields.seconds}, or stated without seconds"
            )
        )
    made = format_seconds(frames, fps)
    if made != str(fields.seconds):
        warnings.append(
            f"seconds: {fields.seconds} was requested; the nearest length of {model.id} is {made} s"
        )
    return frames


def _choose_size(fields: CreateFields, faults: list[Fault]) -> tuple[int, int] | None:
    """Returns width and height; None if the request states none."""
    stated = {"width": fields.width, "height": fields.height}
    missing = [name for name, value in stated.items() if value is None]
    if fields.size is not None:
        width, height = map(int, fields.size.split("x"))
        for name, value, other in (("width", fields.width, width), ("height", fields.height, height)):
            if value is not None and value != other:
                faults.append(Fault(name, f"must be {other} as in size, or not stated, not {value}", INVALID))
        return width, height
    if len(missing) == 1:
        faults.append(Fault(missing[0], "must be stated with the other side, or use size"))
        return None
    if fields.width is None or fields.height is None:
        return None
    return fields.width, fields.height
