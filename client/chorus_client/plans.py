"""Explicit plans, by which a request determines its reuse: built from arguments or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, SupportsFloat

from chorus.common.v1 import plan_pb2
from chorus.common.v1.plan_pb2 import Amplification, RegionPlan
from chorus.scheduler.v1.scheduler_pb2 import ExplicitReuse
from chorus_rpc.errors import Violations, invalid
from chorus_rpc.limits import MAX_STEPS
from chorus_rpc.plan_bounds import (
    DEFAULT_ATTENTION_THRESHOLD,
    DEFAULT_REGION,
    MAX_DILATION,
    MAX_LAYER,
    MAX_STRENGTH,
    check_amplification,
    check_region,
)
from chorus_rpc.suggestions import closest

SOURCES: Final = {
    "probe": plan_pb2.REGION_SOURCE_PROBE,
    "full-step": plan_pb2.REGION_SOURCE_FULL_STEP,
    "attention": plan_pb2.REGION_SOURCE_ATTENTION,
}
CONTEXTS: Final = {"none": plan_pb2.REGION_CONTEXT_NONE, "strided": plan_pb2.REGION_CONTEXT_STRIDED}
FORMS: Final = {
    "contrast": plan_pb2.AMPLIFICATION_FORM_CONTRAST,
    "bias": plan_pb2.AMPLIFICATION_FORM_BIAS,
    "value-gain": plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
}
_INTEGERS: Final = {  # bounds of whole numbers, both included
    "reuse_steps": (1, MAX_STEPS - 1),
    "region_end": (0, MAX_STEPS),
    "draft_step": (0, MAX_STEPS - 1),
    "dilation": (0, MAX_DILATION),
    "first_step": (0, MAX_STEPS),
    "end_step": (0, MAX_STEPS),
    "first_layer": (0, MAX_LAYER),
}


def explicit_reuse(
    reuse_steps: int,
    *,
    region_end: int = 0,
    region: str = "",
    threshold: float | None = None,
    dilation: int | None = None,
    budget: float | None = None,
    context: str = "",
    amplify: str = "",
    first_step: int = 0,
    end_step: int = 0,
    first_layer: int = 0,
    min_score: float = 0.0,
    renoised: bool = False,
    draft_step: int = 0,
) -> ExplicitReuse:
    """Builds a plan for the option `explicit_reuse` of `submit` and `generate`.

    Args:
        reuse_steps: steps taken from the most similar donor, 1 to the number of steps − 1.
        region_end: end of the steps from `reuse_steps` on that compute only a region; 0 for none.
        region: source of the region: "probe", "full-step" or "attention".
        threshold: difference above which a token belongs to the region, 0 to 1.
        dilation: neighbouring tokens that join the region, 0 to 8.
        budget: largest share of tokens in the region, 0 to 1; tested once: above it, every later step is
            computed in full.
        context: tokens outside the region that it attends to: "none" or "strided".
        amplify: form and strength: "contrast:0.5", "bias:1" or "value-gain:1"; strength 0 to 4.
        first_step, end_step: amplified steps, from `first_step` up to `end_step`; both 0 for all steps.
        first_layer: first layer that is amplified, from 0.
        min_score: lowest similarity of a donor that is reused, −1 to 1.
        renoised: whether to start from the donor's clean latents, noised again to the level of `reuse_steps`,
            instead of its latents of that step; without `region_end`.
        draft_step: step that is computed first, from the donor's latents at it, `reuse_steps` to the number
            of steps − 1: the run starts from its prediction, noised again to the level of `reuse_steps`. 0
            for none; without `region_end` and `renoised`.

    Raises ChorusError (INVALID_FIELD) that names each invalid argument and its bound. The server checks
    whether the plan suits the number of steps.
    """
    violations = Violations()
    integers = {"reuse_steps": reuse_steps, "region_end": region_end, "dilation": dilation or 0}
    integers["draft_step"] = draft_step
    integers |= {"first_step": first_step, "end_step": end_step, "first_layer": first_layer}
    numbers = {"threshold": threshold, "budget": budget, "min_score": min_score}
    words = {"region": region, "context": context, "amplify": amplify}
    typed: tuple[tuple[Mapping[str, object], type, str], ...] = (
        (integers, int, "a whole number"),
        (numbers, SupportsFloat, "a number"),
        (words, str, "text"),
    )
    for parts, kind, noun in typed:
        for name, part in parts.items():
            violations.require(part is None or isinstance(part, kind), name, f"must be {noun}, not {part!r}")
    violations.raise_if_any()  # the bounds below compare values of the right types
    for name, value in integers.items():
        low, high = _INTEGERS[name]
        violations.require(low <= value <= high, name, f"must be {low} to {high}, not {value}")
    regional = region or context or any(part is not None for part in (threshold, dilation, budget))
    violations.require(
        region_end == 0 or region_end >= reuse_steps,
        "region_end",
        f"must be 0, or at least reuse_steps = {reuse_steps}, not {region_end}",
    )
    violations.require(
        not regional or region_end > reuse_steps,
        "region_end",
        f"must be above reuse_steps = {reuse_steps} if a region is described, not {region_end}",
    )
    violations.require(-1 <= min_score <= 1, "min_score", f"must be −1 to 1, not {min_score:g}")
    violations.require(
        bool(amplify) or not (first_step or end_step or first_layer),
        "amplify",
        "must be given with first_step, end_step and first_layer",
    )
    violations.require(
        not renoised or region_end <= reuse_steps,
        "renoised",
        f"must not be given with region_end = {region_end}: no step may compute a region",
    )
    violations.require(
        not draft_step or (reuse_steps <= draft_step and region_end <= reuse_steps and not renoised),
        "draft_step",
        f"must be 0, or at least reuse_steps = {reuse_steps} without region_end and renoised,"
        f" not {draft_step}",
    )
    source = _parse_word(violations, "region", region or "probe", SOURCES)
    context_value = (
        _parse_word(violations, "context", context, CONTEXTS) if context else DEFAULT_REGION.context
    )
    amplification = _parse_amplification(violations, amplify) if amplify else Amplification()
    violations.raise_if_any()

    plan = ExplicitReuse(
        reuse_steps=reuse_steps,
        region_end=region_end,
        min_score=min_score,
        renoised=renoised,
        draft_step=draft_step,
    )
    if regional:
        plan.region.CopyFrom(DEFAULT_REGION)
        plan.region.source, plan.region.context = source, context_value
        if source == plan_pb2.REGION_SOURCE_ATTENTION:
            plan.region.threshold = DEFAULT_ATTENTION_THRESHOLD
        for name, part in (("threshold", threshold), ("dilation", dilation), ("budget", budget)):
            if part is not None:
                setattr(plan.region, name, part)
        check_region(violations, "region", plan.region)
    if amplify:
        plan.amplification.CopyFrom(amplification)
        plan.amplification.first_step, plan.amplification.end_step = first_step, end_step
        plan.amplification.first_layer = first_layer
        check_amplification(violations, "amplify", plan.amplification, MAX_STEPS)
    violations.raise_if_any()
    return plan


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "reuse_steps": int,
    "region_end": int,
    "draft_step": int,
    "region": str,
    "threshold": float,
    "dilation": int,
    "budget": float,
    "context": str,
    "amplify": str,
    "first_step": int,
    "end_step": int,
    "first_layer": int,
    "min_score": float,
}
_FLAGS: Final = ("renoised",)  # without a value


def parse_plan(text: str) -> ExplicitReuse:
    """Builds the plan of a text such as "reuse_steps:2,region_end:4,region:probe,amplify:contrast:0.5".

    The text is a list of arguments of `explicit_reuse`, separated by commas; `renoised` has no value. Hyphens
    stand for underscores as well, as in the command's options. Raises ChorusError (INVALID_FIELD).
    """
    arguments: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition(":")
        name = key.replace("-", "_")
        if name not in _PARSERS and name not in _FLAGS:
            known = (*_PARSERS, *_FLAGS)
            nearest = closest(name, known)
            hint = f"did you mean {nearest}?" if nearest else f"must be one of {', '.join(known)}"
            raise invalid("plan", f"unknown part {key!r}; {hint}")
        if name in arguments:
            raise invalid(name, "must not be repeated")
        if name in _FLAGS:
            if value:
                raise invalid(name, f"takes no value, not {value!r}")
            arguments[name] = True
            continue
        try:
            arguments[name] = _PARSERS[name](value)
        except ValueError:
            raise invalid(name, f"must be a number, not {value!r}") from None
    if "reuse_steps" not in arguments:
        bound = "1 to the number of steps − 1, such as reuse_steps:1"
        raise invalid("reuse_steps", f"must be given, {bound}; not {text!r}")
    return explicit_reuse(**arguments)


def plan_from_options(reuse_steps: int | None, **options: Any) -> ExplicitReuse | None:
    """Builds the plan of a command's options, ignoring those that are None; None without any."""
    given = {name: value for name, value in options.items() if value is not None}
    if reuse_steps is not None:
        return explicit_reuse(reuse_steps, **given)
    if given:
        names = ", ".join(given)
        raise invalid("reuse_steps", f"must be given with {names}: 1 to the number of steps − 1")
    return None


def describe_region(region: RegionPlan) -> str:
    """Returns for instance "probe, threshold 0.005, dilation 1, budget 50 %"."""
    words = [
        _find_name(SOURCES, region.source),
        f"threshold {region.threshold:g}",
        f"dilation {region.dilation}",
        f"budget {100 * region.budget:.0f} %",
    ]
    if region.context != plan_pb2.REGION_CONTEXT_NONE:
        words.append(f"{_find_name(CONTEXTS, region.context)} context")
    return ", ".join(words)


def describe_amplification(amplification: Amplification) -> str:
    """Returns for instance "contrast 0.5, steps 1–2, from layer 3": steps from 1, both ends included."""
    words = [f"{_find_name(FORMS, amplification.form)} {amplification.strength:g}"]
    if amplification.end_step:
        words.append(f"steps {amplification.first_step + 1}–{amplification.end_step}")
    if amplification.first_layer:
        words.append(f"from layer {amplification.first_layer}")
    return ", ".join(words)


def _parse_word(violations: Violations, field: str, word: str, known: Mapping[str, int]) -> Any:
    violations.require(word in known, field, f"must be one of {', '.join(known)}, not {word!r}")
    return known.get(word, 0)


def _parse_amplification(violations: Violations, text: str) -> Amplification:
    word, separator, strength = text.partition(":")
    if separator and word not in FORMS:
        _parse_word(violations, "amplify", word, FORMS)
        return Amplification()
    try:
        return Amplification(
            form=FORMS.get(word, plan_pb2.AMPLIFICATION_FORM_UNSPECIFIED), strength=float(strength)
        )
    except ValueError:
        violations.require(
            False,
            "amplify",
            f"must be a form and its strength, 0 to {MAX_STRENGTH:g}, such as contrast:0.5, not {text!r}",
        )
        return Amplification()


def _find_name(known: Mapping[str, int], number: int) -> str:
    return next((name for name, value in known.items() if value == number), f"unknown ({number})")
