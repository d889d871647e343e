"""From plain arguments to the protobuf request, and the words for the contract's enums."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Sequence
from typing import Final, TypedDict

from chorus.common.v1 import plan_pb2
from chorus.common.v1.latents_pb2 import Schedule
from chorus.common.v1.video_pb2 import VideoShape
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.errors import Violations, invalid
from google.protobuf.timestamp_pb2 import Timestamp

State = scheduler_pb2.GenerationState

REUSE_POLICIES: Final = {
    "": plan_pb2.REUSE_POLICY_UNSPECIFIED,
    "off": plan_pb2.REUSE_POLICY_OFF,
    "safe": plan_pb2.REUSE_POLICY_SAFE,
    "balanced": plan_pb2.REUSE_POLICY_BALANCED,
    "fast": plan_pb2.REUSE_POLICY_FAST,
}

STATES: Final = {
    "queued": scheduler_pb2.GENERATION_STATE_QUEUED,
    "waiting": scheduler_pb2.GENERATION_STATE_WAITING,
    "running": scheduler_pb2.GENERATION_STATE_RUNNING,
    "succeeded": scheduler_pb2.GENERATION_STATE_SUCCEEDED,
    "failed": scheduler_pb2.GENERATION_STATE_FAILED,
    "cancelled": scheduler_pb2.GENERATION_STATE_CANCELLED,
}
_STATE_WORDS: Final = {number: word for word, number in STATES.items()}

ENDED: Final = frozenset(
    {
        scheduler_pb2.GENERATION_STATE_SUCCEEDED,
        scheduler_pb2.GENERATION_STATE_FAILED,
        scheduler_pb2.GENERATION_STATE_CANCELLED,
    }
)
_LAST_EVENTS: Final = frozenset({"succeeded", "failed", "cancelled"})

# Distance from now at which a deadline is refused before it is sent; the scheduler's own bound is lower.
_SENDABLE_DEADLINE_SECONDS: Final = 10 * 366 * 86_400.0


class SpecOptions(TypedDict, total=False):
    """What `submit` and `generate` take besides the prompt; whatever is left out, the server chooses.

    Attributes:
        model: model id.
        frames, height, width: of the video, in pixels; all three or none.
        steps: denoising steps of the model's own schedule.
        sigmas: noise levels instead of `steps`: N + 1 values, strictly decreasing, from at most 1 to 0.
        seed: 0 to 2⁶⁴ − 1.
        reuse: "off", "safe", "balanced" or "fast".
        explicit_reuse: a plan of one's own instead, as `chorus_client.explicit_reuse` makes it.
        no_store: keep nothing of this request for later ones.
        deadline: seconds from now after which the generation fails.
        request_id: 1 to 128 of A–Z, a–z, 0–9, '.', '_', '-'; the same id with the same body is the same
            generation. Default: a new UUID.
    """

    model: str | None
    frames: int | None
    height: int | None
    width: int | None
    steps: int | None
    sigmas: Sequence[float] | None
    seed: int | None
    reuse: str | None
    explicit_reuse: scheduler_pb2.ExplicitReuse | None
    no_store: bool
    deadline: float | None
    request_id: str | None


def submit_request(prompt: str, options: SpecOptions) -> scheduler_pb2.SubmitGenerationRequest:
    """The request of `options`.

    Raises ChorusError (INVALID_FIELD) for what protobuf cannot carry or what contradicts itself; bounds
    that a model sets are the server's to check.
    """
    found = Violations()
    spec = scheduler_pb2.GenerationSpec(model_id=options.get("model") or "")
    spec.no_store = options.get("no_store", False)
    try:
        spec.prompt = prompt
    except (UnicodeEncodeError, ValueError):
        found.require(False, "prompt", "must be UTF-8")

    def whole(name: str, value: int | None, bits: int) -> int | None:
        if value is None or found.require(
            0 <= value < 1 << bits, name, f"must be 0 to 2^{bits} − 1, not {value}"
        ):
            return value
        return None

    size = {name: whole(name, options.get(name), 32) for name in ("frames", "height", "width")}  # type: ignore[arg-type]
    given = [name for name, value in size.items() if value is not None]
    if given:
        found.require(
            all(options.get(name) is not None for name in size),
            "shape",
            f"give frames, height and width, or none of them, not only {', '.join(given)}",
        )
        spec.shape.CopyFrom(VideoShape(**{name: value or 0 for name, value in size.items()}))
    steps, sigmas = whole("steps", options.get("steps"), 32), options.get("sigmas")
    found.require(steps is None or sigmas is None, "sigmas", "give steps or sigmas, not both")
    if sigmas is not None:
        spec.schedule.CopyFrom(Schedule(sigmas=sigmas))
    elif steps is not None:
        spec.steps = steps
    seed = whole("seed", options.get("seed"), 64)
    if seed is not None:
        spec.seed = seed
    reuse = options.get("reuse") or ""
    words = ", ".join(word for word in REUSE_POLICIES if word)
    if found.require(reuse in REUSE_POLICIES, "reuse", f"must be one of {words}, not {reuse!r}"):
        spec.reuse = REUSE_POLICIES[reuse]
    plan = options.get("explicit_reuse")
    if plan is not None:
        spec.explicit_reuse.CopyFrom(plan)
    deadline = options.get("deadline")
    if deadline is not None and found.require(
        math.isfinite(deadline) and abs(deadline) < _SENDABLE_DEADLINE_SECONDS,
        "deadline",
        f"must be a number of seconds from now, not {deadline:g}",
    ):
        spec.deadline.CopyFrom(timestamp_in(deadline))
    found.raise_if_any()
    return scheduler_pb2.SubmitGenerationRequest(
        request_id=options.get("request_id") or str(uuid.uuid4()), spec=spec
    )


def timestamp_in(seconds: float) -> Timestamp:
    """The moment `seconds` from now."""
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return moment


def state_word(state: State.ValueType) -> str:
    """ "queued", "running", …; "unknown" for a state that this client does not know."""
    return _STATE_WORDS.get(state, "unknown")


def state_of(word: str | None) -> State.ValueType:
    """The state named by `word`; None or "" is every state. Raises ChorusError for another word."""
    if not word:
        return scheduler_pb2.GENERATION_STATE_UNSPECIFIED
    if word not in STATES:
        raise invalid("state", f"must be one of {', '.join(STATES)}, not {word!r}")
    return STATES[word]


def is_last(event: scheduler_pb2.GenerationEvent) -> bool:
    """Whether the generation ended with this event."""
    return event.WhichOneof("event") in _LAST_EVENTS


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def duration_seconds(text: str, field: str) -> float:
    """Seconds of "90", "90s", "15m", "12h", "7d" or "2w". Raises ChorusError that names `field`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw]?)", text.strip())
    if match is None:
        raise invalid(
            field, f"must be a number with an optional unit s, m, h, d or w, such as 12h, not {text!r}"
        )
    return float(match[1]) * _UNITS[match[2]]


def numbers(text: str, field: str) -> list[float]:
    """The values of "1,0.9,0". Raises ChorusError that names `field`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise invalid(
            field, f"must be numbers with commas between, such as 1,0.9,0.5,0, not {text!r}"
        ) from None
