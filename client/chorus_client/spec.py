"""Options of a generation: from plain arguments and text to the contract's request."""

from __future__ import annotations

import operator
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, SupportsFloat, SupportsIndex, TypedDict, cast

from chorus.common.v1 import plan_pb2
from chorus.common.v1.latents_pb2 import Schedule
from chorus.common.v1.video_pb2 import VideoShape
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.errors import Violations, invalid
from chorus_rpc.limits import MAX_DEADLINE_SECONDS, MAX_LIFETIME_SECONDS
from chorus_rpc.suggestions import closest

from chorus_client.search import check_labels, check_text
from chorus_client.states import PRIORITIES, PriorityName

REUSE_POLICIES: Final = {
    "": plan_pb2.REUSE_POLICY_UNSPECIFIED,
    "off": plan_pb2.REUSE_POLICY_OFF,
    "safe": plan_pb2.REUSE_POLICY_SAFE,
    "balanced": plan_pb2.REUSE_POLICY_BALANCED,
    "fast": plan_pb2.REUSE_POLICY_FAST,
}


class SpecOptions(TypedDict, total=False):
    """Options of `submit` and `generate`. The server chooses those that are absent or None.

    Attributes:
        model: model id.
        frames, height, width: size of the video, in frames and pixels; all three or none.
        steps: denoising steps of the model's own schedule, 1 to 200.
        sigmas: noise levels instead of `steps`: N + 1 strictly decreasing values, from at most 1 to 0.
        seed: seed of the noise, 0 to 2⁶⁴ − 1.
        reuse: policy: "off", "safe", "balanced" or "fast".
        max_reuse_steps: upper bound on the steps that a policy takes from a donor, 1 to the number of
            steps − 1; 0 for none.
        donor: id of the generation that is the only possible donor; the request takes its seed.
        explicit_reuse: plan to use instead of `reuse`, from `chorus_client.explicit_reuse`.
        priority: class in the order of the queue: "low", "normal" or "high".
        labels: pairs by which `list` finds the generation, at most 16; they change nothing of the video. A
            key has 1 to 63 characters A–Z, a–z, 0–9, '.', '_' or '-'; a value has 0 to 256 bytes of printable
            text.
        webhook: https URL that receives a signed request when the generation has ended (docs/webhooks.md).
        webhook_events: ends that it receives, of "completed", "failed" and "cancelled". Default: all.
        step_previews: whether the event of each computed step carries a picture (`Event.step.preview`).
        no_store: whether none of this request's latents are stored for later requests.
        lifetime: time after which the cache drops them, in seconds: above 0, at most about ten years.
            Default: the cache's own.
        pin: whether the cache keeps them until then even if it needs room.
        deadline: time from the acceptance of the request after which the generation fails, in seconds: above
            0, at most 86,400. The server counts it, so that the clocks of client and server may differ.
        request_id: 1 to 128 characters A–Z, a–z, 0–9, '.', '_' or '-'. Repeating an id with the same request
            returns the same generation. Default: a new UUID.
    """

    model: str | None
    frames: int | None
    height: int | None
    width: int | None
    steps: int | None
    sigmas: Sequence[float] | None
    seed: int | None
    reuse: str | None
    max_reuse_steps: int | None
    donor: str | None
    explicit_reuse: scheduler_pb2.ExplicitReuse | None
    priority: str | None
    labels: Mapping[str, str] | None
    webhook: str | None
    webhook_events: Sequence[str] | None
    step_previews: bool | None
    no_store: bool | None
    lifetime: float | None
    pin: bool | None
    deadline: float | None
    request_id: str | None


# Ends of a generation that a webhook reports, by their words.
WEBHOOK_EVENTS: Final = {
    "completed": scheduler_pb2.WEBHOOK_EVENT_COMPLETED,
    "failed": scheduler_pb2.WEBHOOK_EVENT_FAILED,
    "cancelled": scheduler_pb2.WEBHOOK_EVENT_CANCELLED,
}

# Names of other libraries for the same option.
_FOREIGN: Final = {
    "generator": "seed",
    "model_id": "model",
    "model_name": "model",
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "webhook_url": "webhook",
}
_UNSUPPORTED: Final = {
    "fps": "the model sets the frame rate",
    "guidance_scale": "few-step models run without guidance",
    "negative_prompt": "few-step models run without guidance",
    "num_videos_per_prompt": "call submit_many, which submits several outputs of one prompt",
    "outputs": "call submit_many, which submits several outputs of one prompt",
}


def reject_unknown_options(options: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises TypeError for an option that SpecOptions lacks; the message names the nearest known option.

    Args:
        others: names of further parameters of the call, for the suggestion.
    """
    known = (*SpecOptions.__annotations__, *others)
    for name in options:
        if name in known:
            continue
        if name in _UNSUPPORTED:
            raise TypeError(f"unknown option {name}; it is not supported: {_UNSUPPORTED[name]}")
        if name in _FOREIGN:
            raise TypeError(f"unknown option {name}; use {_FOREIGN[name]}")
        nearest = closest(name, known)
        raise TypeError(
            f"unknown option {name}; did you mean {nearest}?"
            if nearest
            else f"unknown option {name}; must be one of {', '.join(known)}"
        )


def build_request(prompt: str, options: SpecOptions) -> scheduler_pb2.SubmitGenerationRequest:
    """Builds the request for a prompt and its options.

    Raises TypeError for an unknown option, and ChorusError (INVALID_FIELD) for values that protobuf cannot
    carry or that contradict each other; the server checks the bounds that a model sets.
    """
    reject_unknown_options(options, ("timeout", "patience", "on_accepted", "on_event"))
    violations = Violations()

    def text(name: str, value: str) -> str:
        return check_text(violations, name, value)

    def optional_text(name: str, value: str | None) -> str:
        return "" if value is None else text(name, value)

    spec = scheduler_pb2.GenerationSpec(
        prompt=text("prompt", prompt),
        model_id=optional_text("model", options.get("model")),
        donor_generation_id=optional_text("donor", options.get("donor")),
        labels=check_labels(violations, options.get("labels")),
    )
    request_id = optional_text("request_id", options.get("request_id")) or str(uuid.uuid4())
    no_store = options.get("no_store")
    if violations.require(
        no_store is None or isinstance(no_store, bool), "no_store", f"must be True or False, not {no_store!r}"
    ):
        spec.no_store = bool(no_store)
    previews = options.get("step_previews")
    if violations.require(
        previews is None or isinstance(previews, bool),
        "step_previews",
        f"must be True or False, not {previews!r}",
    ):
        spec.step_previews = bool(previews)
    pin, lifetime = options.get("pin"), options.get("lifetime")
    if (
        violations.require(pin is None or isinstance(pin, bool), "pin", f"must be True or False, not {pin!r}")
        and pin
    ):
        spec.retention.pinned = True
    if lifetime is not None and violations.require(
        isinstance(lifetime, SupportsFloat) and 0 < float(lifetime) <= MAX_LIFETIME_SECONDS,
        "lifetime",
        f"must be a number of seconds, above 0, at most {MAX_LIFETIME_SECONDS}, not {lifetime!r}",
    ):
        spec.retention.lifetime.FromNanoseconds(max(1, round(float(lifetime) * 1e9)))
    violations.require(
        not (no_store and spec.HasField("retention")),
        "no_store",
        "excludes lifetime and pin: it keeps no latents",
    )

    def integer(name: str, value: int | None, bits: int) -> int | None:
        if value is None:
            return None
        fits = isinstance(value, SupportsIndex) and 0 <= operator.index(value) < 1 << bits
        violations.require(fits, name, f"must be 0 to 2^{bits} − 1, not {value!r}")
        return operator.index(value) if fits else None

    shape = {"frames": options.get("frames"), "height": options.get("height"), "width": options.get("width")}
    size = {name: integer(name, value, 32) for name, value in shape.items()}
    given = [name for name, value in size.items() if value is not None]
    if given:
        violations.require(
            None not in shape.values(),
            "shape",
            f"give frames, height and width, or none of them, not only {', '.join(given)}",
        )
        spec.shape.CopyFrom(VideoShape(**{name: value or 0 for name, value in size.items()}))
    steps, sigmas = integer("steps", options.get("steps"), 32), options.get("sigmas")
    violations.require(steps is None or sigmas is None, "sigmas", "give steps or sigmas, not both")
    if sigmas is not None:
        try:
            spec.schedule.CopyFrom(Schedule(sigmas=sigmas))
        except TypeError:
            violations.require(False, "sigmas", f"must be a sequence of numbers, not {sigmas!r}")
    elif steps is not None:
        spec.steps = steps
    seed = integer("seed", options.get("seed"), 64)
    if seed is not None:
        spec.seed = seed
    reuse = "" if (policy := options.get("reuse")) is None else policy
    words = ", ".join(word for word in REUSE_POLICIES if word)
    known = isinstance(reuse, str) and reuse in REUSE_POLICIES
    if violations.require(known, "reuse", f"must be one of {words}, not {reuse!r}"):
        spec.reuse = REUSE_POLICIES[reuse]
    spec.max_reuse_steps = integer("max_reuse_steps", options.get("max_reuse_steps"), 32) or 0
    priority = "" if (word := options.get("priority")) is None else word
    if priority != "":  # which selects the server's default
        known = isinstance(priority, str) and priority in PRIORITIES
        if violations.require(known, "priority", f"must be one of {', '.join(PRIORITIES)}, not {priority!r}"):
            spec.priority = PRIORITIES[cast(PriorityName, priority)]
    webhook = _build_webhook(violations, options.get("webhook"), options.get("webhook_events"))
    if webhook is not None:
        spec.webhook.CopyFrom(webhook)
    plan = options.get("explicit_reuse")
    if plan is not None and violations.require(
        isinstance(plan, scheduler_pb2.ExplicitReuse),
        "explicit_reuse",
        f"must be a plan of explicit_reuse() or parse_plan(), not {plan!r}",
    ):
        spec.explicit_reuse.CopyFrom(plan)
    deadline = options.get("deadline")
    if deadline is not None and violations.require(
        isinstance(deadline, SupportsFloat) and 0 < float(deadline) <= MAX_DEADLINE_SECONDS,
        "deadline",
        f"must be a number of seconds from now, above 0, at most {MAX_DEADLINE_SECONDS}, not {deadline!r}",
    ):
        # Counted by the server, whose clock may differ from this one.
        spec.timeout.FromNanoseconds(max(1, round(float(deadline) * 1e9)))
    violations.raise_if_any()
    return scheduler_pb2.SubmitGenerationRequest(request_id=request_id, spec=spec)


def _build_webhook(
    violations: Violations, url: str | None, events: Sequence[str] | None
) -> scheduler_pb2.Webhook | None:
    """Returns the webhook of a request, None without one; the server checks the URL."""
    words = ", ".join(WEBHOOK_EVENTS)
    listed = isinstance(events, Sequence) and not isinstance(events, str)
    known = events is None or (listed and all(event in WEBHOOK_EVENTS for event in events))
    violations.require(known, "webhook_events", f"must be a list of {words}, not {events!r}")
    if url is None:
        violations.require(not events, "webhook_events", "needs webhook, the URL of the receiver")
        return None
    return scheduler_pb2.Webhook(
        url=check_text(violations, "webhook", url),
        events=[WEBHOOK_EVENTS[event] for event in events or ()] if known else (),
    )


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_duration(text: str, field: str) -> float:
    """Returns the seconds of "90", "90s", "15m", "12h", "7d" or "2w". Raises ChorusError about `field`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw]?)", text.strip())
    if match is None:
        raise invalid(
            field, f"must be a number with an optional unit s, m, h, d or w, such as 12h, not {text!r}"
        )
    return float(match[1]) * _UNITS[match[2]]


def parse_numbers(text: str, field: str) -> list[float]:
    """Returns the values of "1,0.9,0". Raises ChorusError about `field`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise invalid(
            field, f"must be numbers separated by commas, such as 1,0.9,0.5,0, not {text!r}"
        ) from None
