"""Fields of requests, with their bounds, and those that are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from chorus_rpc.limits import (
    MAX_DEADLINE_SECONDS,
    MAX_FPS,
    MAX_ID_CHARACTERS,
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_OUTPUTS,
    MAX_PROMPT_BYTES,
    MAX_REPORT_COMMENT_BYTES,
    MAX_STEPS,
    MAX_WEBHOOK_URL_CHARACTERS,
)
from chorus_rpc.suggestions import closest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from services.gateway.errors import UNSUPPORTED, Fault, invalid
from services.gateway.videos.bodies import File

_LARGEST: Final = (1 << 32) - 1
_SIZE_PATTERN: Final = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"

# Fields of other servers, with the reason why they are refused.
REFUSED: Final[Mapping[str, str]] = {
    "input_reference": "videos are made from text only",
    "image_reference": "videos are made from text only",
    "video_reference": "videos are made from text only",
    "audio_reference": "videos are made from text only",
    "reference_url": "videos are made from text only",
    "video_url": "videos are made from text only; to start from a video, name it to POST /v1/videos/edits",
    "negative_prompt": "few-step models run without guidance",
    "flow_shift": "the schedule is the model's; state chorus.plan to change the reuse",
    "boundary_ratio": "the served models have one stage",
    "max_sequence_length": "the length of a prompt is bounded by the model",
    "lora": "adapters are configured on the server",
    "extra_params": "state the fields themselves",
    "diffusers_kwargs": "the server does not run pipelines of diffusers",
    "enable_teacache": "reuse is controlled by chorus.reuse",
    "output_quality": "the encoding is the server's",
    "output_compression": "the encoding is the server's",
    "enable_upscaling": "videos are not enlarged",
    "enable_frame_interpolation": "frames are not interpolated",
    "generate_audio": "videos have no sound",
    "sound": "videos have no sound",
}


def _reject_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not a flag")
    return value


def _reject_file(value: object) -> object:
    if isinstance(value, File):
        raise ValueError("must be text, not a file")
    return value


def _accept_text(value: object) -> object:
    """Accepts the text of a number, as the OpenAI API has it."""
    return value.strip() if isinstance(value, str) else _reject_flag(value)


_SECONDS_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 3_600},
            {"type": "string", "pattern": "^[1-9][0-9]{0,3}$"},
        ]
    }
)
Number = BeforeValidator(_reject_flag)
Text = Annotated[str, BeforeValidator(_reject_file)]
Scale = Annotated[float, Number, Field(ge=0, le=20)]
Labels = Annotated[dict[Text, Text], Field(max_length=MAX_LABELS)]


class _Fields(BaseModel):
    # Descriptions of the fields, which the OpenAPI document contains.
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ChorusFields(_Fields):
    """Fields of Chorus that the OpenAI API does not have."""

    reuse: Literal["off", "safe", "balanced", "fast"] | None = None
    """How much may be reused from earlier videos; the server's default if unset."""
    max_reuse_steps: Annotated[int, Number, Field(ge=0, le=MAX_STEPS)] | None = None
    """Upper bound on the steps that are taken from an earlier video; 0: none but the policy's."""
    donor: Annotated[Text, Field(max_length=2 * MAX_ID_CHARACTERS)] | None = None
    """Id of the video that is the only possible donor; this one takes its seed."""
    no_store: bool | None = None
    """Whether nothing of this video is kept for later requests."""
    plan: Annotated[Text, Field(max_length=1_024)] | dict[str, Any] | None = None
    """Explicit plan, for experiments: an object, or text such as "reuse_steps:2,region_end:4"."""
    deadline_seconds: Annotated[float, Number, Field(gt=0, le=MAX_DEADLINE_SECONDS)] | None = None
    """Seconds after which the video fails if it is not complete."""
    priority: Literal["low", "normal", "high"] | None = None
    """Class in the order of the queue."""
    webhook_url: Annotated[Text, Field(min_length=1, max_length=MAX_WEBHOOK_URL_CHARACTERS)] | None = None
    """https URL that receives a signed request when the video has ended."""
    webhook_events: (
        Annotated[list[Literal["completed", "failed", "cancelled"]], Field(min_length=1, max_length=3)] | None
    ) = None
    """Ends that the webhook reports; default: all."""
    step_previews: bool | None = None
    """Whether a small picture of each computed step is kept; GET /v1/videos/{video_id}/events?previews=true
    returns them."""


class RemixFields(_Fields):
    """Body of POST /v1/videos/{video_id}/remix."""

    prompt: Annotated[Text, Field(min_length=1, max_length=MAX_PROMPT_BYTES)]
    """Text that describes the video: at most 8,192 bytes."""
    user: Annotated[Text, Field(max_length=MAX_LABEL_BYTES)] | None = None
    """Label `user` of the video."""
    metadata: Labels | None = None
    """Labels of the video: at most 16 texts of at most 256 bytes."""
    chorus: ChorusFields | None = None


class ReportFields(_Fields):
    """Body of POST /v1/videos/{video_id}/report."""

    problem: Literal["donor_visible", "prompt_not_followed", "broken_picture", "broken_motion", "other"]
    """What is wrong with the video; `donor_visible`: something of the donor is left."""
    comment: Annotated[Text, Field(max_length=MAX_REPORT_COMMENT_BYTES)] = ""
    """More about it: at most 1,000 bytes of printable text, without line breaks."""


class VideoReference(_Fields):
    """Video that an edit starts from."""

    id: Annotated[Text, Field(min_length=1, max_length=2 * MAX_ID_CHARACTERS)]


class EditFields(RemixFields):
    """Body of POST /v1/videos/edits."""

    video: VideoReference
    """The video to edit, which must be complete."""


class CreateFields(RemixFields):
    """Body of POST /v1/videos."""

    model: Annotated[Text, Field(min_length=1, max_length=MAX_ID_CHARACTERS)] | None = None
    """Id of the model; the server's default if unset."""
    seconds: Annotated[int, BeforeValidator(_accept_text), Field(ge=1, le=3_600), _SECONDS_SCHEMA] | None = (
        None
    )
    """Length in seconds, a number or its text. The video has the nearest length that the model allows;
    default: the model's."""
    size: Annotated[Text, Field(pattern=_SIZE_PATTERN)] | None = None
    """Width and height in pixels, such as 720x1280; default: the model's."""
    width: Annotated[int, Number, Field(ge=1, le=65_536)] | None = None
    """Width in pixels, with `height`; `size` states both."""
    height: Annotated[int, Number, Field(ge=1, le=65_536)] | None = None
    """Height in pixels, with `width`; `size` states both."""
    fps: Annotated[float, Number, Field(gt=0, le=MAX_FPS)] | None = None
    """Frames per second, which must be the model's."""
    num_frames: Annotated[int, Number, Field(ge=1, le=_LARGEST)] | None = None
    """Number of frames, in place of `seconds`."""
    seed: Annotated[int, Number, Field(ge=0, lt=1 << 64)] | None = None
    """Seed of the noise; random if unset."""
    num_inference_steps: Annotated[int, Number, Field(ge=1, le=MAX_STEPS)] | None = None
    """Number of denoising steps; default: the model's."""
    guidance_scale: Scale | None = None
    """Accepted if it is 1: few-step models run without guidance."""
    guidance_scale_2: Scale | None = None
    """Accepted if it is 1: few-step models run without guidance."""
    true_cfg_scale: Scale | None = None
    """Accepted if it is 1: few-step models run without guidance."""
    n: Annotated[int, Number, Field(ge=1, le=MAX_OUTPUTS)] | None = None
    """Number of videos with different seeds. The answer is the first of them, and names the others."""
    num_outputs_per_prompt: Annotated[int, Number, Field(ge=1, le=MAX_OUTPUTS)] | None = None
    """Another name of `n`."""


F = TypeVar("F", bound=_Fields)


def parse_fields(kind: type[F], fields: Mapping[str, Any]) -> F:
    """Returns the checked fields of a request. Raises ApiError (400) that names every field at fault.

    Fields whose value is null count as absent.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    given = {name: value for name, value in given.items() if name != "negative_prompt" or value != ""}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        faults = [_describe(kind, each) for each in error.errors(include_url=False)]
    # A union has an entry for each of its kinds.
    raise invalid(list({fault.param: fault for fault in reversed(faults)}.values())[::-1])


def _describe(kind: type[_Fields], entry: Any) -> Fault:
    path = [
        str(part) for part in entry["loc"] if not str(part).startswith(("constrained-", "function-", "dict["))
    ]
    name = ".".join(path)[:200] or "body"
    if entry["type"] == "extra_forbidden":
        return Fault(name, _explain_refusal(kind, path), UNSUPPORTED)
    if entry["type"] == "missing":
        return Fault(name, "is required", "missing_required_parameter")
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] in ("value_error", "missing"):
        return Fault(name, message)
    return Fault(name, f"{message[0].lower()}{message[1:]}, not {_show(entry['input'])}")


def _explain_refusal(kind: type[_Fields], path: list[str]) -> str:
    name = path[-1]
    if name in REFUSED:
        return f"is not supported: {REFUSED[name]}"
    inside = ChorusFields if path[0] == "chorus" and len(path) > 1 else kind
    nearest = closest(name[:64], list(inside.model_fields))
    return f"is not a field of this request{f'; did you mean {nearest}?' if nearest else ''}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
