"""The form of the Studio: from text fields to the options of a request, and from errors back to fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chorus_client import Generation, Model, SpecOptions, Violation

FIELDS: Final = (
    "prompt",
    "model",
    "frames",
    "height",
    "width",
    "steps",
    "seed",
    "reuse",
    "donor",
    "priority",
    "labels",
    "step_previews",
    "request_id",
)
# Value of a box that is ticked; one that is not sends nothing.
TICKED: Final = "yes"
# Fields of the contract by their last name, where the form calls them otherwise.
_FORM_NAMES: Final = {
    "model_id": "model",
    "donor_generation_id": "donor",
    "shape": "frames",
    "schedule": "steps",
    "denoising": "steps",
}


@dataclass(frozen=True)
class ParsedForm:
    """Request of a form.

    Attributes:
        faults: what is wrong, by field; the options are incomplete if there is any.
    """

    prompt: str
    options: SpecOptions
    faults: Mapping[str, str]


def parse_request_form(values: Mapping[str, str], models: Sequence[Model]) -> ParsedForm:
    """Reads the fields of the form. Empty fields leave the choice to the server.

    Of height, width and frames, those that are empty are the model's default if another is stated.
    """
    faults: dict[str, str] = {}
    options: SpecOptions = {}
    prompt = values.get("prompt", "").strip()
    if not prompt:
        faults["prompt"] = "describe the video"

    def read_number(name: str) -> int | None:
        text = values.get(name, "").strip()
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            faults[name] = f"must be a whole number, not {text[:40]!r}"
            return None
        return int(text)

    model = next((each for each in models if each.id == values.get("model")), models[0] if models else None)
    shape = [read_number(name) for name in ("frames", "height", "width")]
    if any(each is not None for each in shape) and model is not None:
        frames, height, width = (
            a if a is not None else b for a, b in zip(shape, model.default_shape, strict=True)
        )
        options["frames"], options["height"], options["width"] = frames, height, width
    options["steps"], options["seed"] = read_number("steps"), read_number("seed")
    options["model"] = values.get("model") or None
    options["reuse"] = values.get("reuse") or None
    options["priority"] = values.get("priority") or None
    options["donor"] = values.get("donor", "").strip() or None
    options["labels"] = _parse_labels(values.get("labels", ""), faults)
    options["step_previews"] = values.get("step_previews") == TICKED
    options["request_id"] = values.get("request_id") or None
    return ParsedForm(prompt, options, faults)


def parse_label(text: str, refuse: Callable[[str], None]) -> dict[str, str]:
    """Reads "key=value"; calls `refuse` with the fault of text of another form."""
    key, equals, value = text.strip().partition("=")
    if not equals or not key.strip():
        refuse(f"must be key=value, not {text.strip()[:80]!r}")
        return {}
    return {key.strip(): value.strip()}


def _parse_labels(text: str, faults: dict[str, str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        labels |= parse_label(part, lambda fault: faults.__setitem__("labels", fault))
    return labels


def map_violations(violations: Sequence[Violation]) -> dict[str, str]:
    """Returns what the scheduler refused by field of the form; "" for a field that the form lacks."""
    faults: dict[str, str] = {}
    for violation in violations:
        parts = [part for part in violation.field.split(".") if part != "spec"]
        last = parts[-1].partition("[")[0] if parts else ""
        name = _FORM_NAMES.get(last, last)
        key = name if name in FIELDS else ""
        text = violation.description if key else f"{violation.field}: {violation.description}"
        faults[key] = f"{faults[key]}; {text}" if key in faults else text
    return faults


def fill_from(generation: Generation, change: str, models: Sequence[Model]) -> dict[str, str]:
    """Returns the fields of a request like an earlier one.

    Of a schedule other than the model's default, the form states the number of steps only.

    Args:
        change: "edit" to continue from its video with other words, "full" to compute the same without reuse,
            "vary" for another video of the same prompt.
    """
    spec = generation.proto.spec
    values = {
        "prompt": generation.prompt,
        "model": generation.model,
        "frames": str(spec.shape.frames or ""),
        "height": str(spec.shape.height or ""),
        "width": str(spec.shape.width or ""),
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(generation.labels.items())),
    }
    sigmas = tuple(spec.schedule.sigmas)
    usual = next((each.default_sigmas for each in models if each.id == generation.model), ())
    if sigmas and sigmas != usual:
        values["steps"] = str(len(sigmas) - 1)
    if change == "edit":
        values["donor"] = generation.id
    elif change == "full":
        values |= {"reuse": "off", "seed": str(generation.seed)}
    return values
