"""Explicit plans: how a request says itself what to reuse. From words to the contract's message, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

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
_WHOLE: Final = {  # bounds of whole numbers, both included
    "k1": (1, MAX_STEPS - 1),
    "k2": (0, MAX_STEPS),
    "dilation": (0, MAX_DILATION),
    "first_step": (0, MAX_STEPS),
    "end_step": (0, MAX_STEPS),
    "first_layer": (0, MAX_LAYER),
}


def explicit_reuse(
    k1: int,
    *,
    k2: int = 0,
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
) -> ExplicitReuse:
    """A plan of one's own, for `explicit_reuse` of `submit` and `generate`. What is left out has its default.

    Args:
        k1: 1 to the number of steps − 1: so many steps are taken from the most similar donor.
        k2: the first step after k1 that is computed whole again; 0: no step computes a region only.
        region: "probe", "full-step" or "attention": how the region is found.
        threshold, dilation, budget: of `RegionPlan`; shares of 0 to 1, and 0 to 8 tokens.
        context: "none" or "strided": what the region sees of the rest.
        amplify: form and strength: "contrast:0.5", "bias:1" or "value-gain:1"; 0 to 4.
        first_step, end_step, first_layer: of `Amplification`: where it acts; all 0: everywhere.
        min_score: −1 to 1; less similar donors are not reused.
        renoised: start from the donor's clean latents, noised again to the level of step k1, instead of its
            latents of that step; without k2.

    Raises ChorusError (INVALID_FIELD) that names each argument at fault and its bound. Whether k1 and k2 suit
    the number of steps is the server's to check.
    """
    found = Violations()
    whole = {"k1": k1, "k2": k2, "dilation": dilation or 0}
    whole |= {"first_step": first_step, "end_step": end_step, "first_layer": first_layer}
    for name, value in whole.items():
        low, high = _WHOLE[name]
        found.require(low <= value <= high, name, f"must be {low} to {high}, not {value}")
    regional = region or context or any(part is not None for part in (threshold, dilation, budget))
    found.require(k2 == 0 or k2 >= k1, "k2", f"must be 0, or at least k1 = {k1}, not {k2}")
    found.require(
        not regional or k2 > k1, "k2", f"must be above k1 = {k1} where a region is described, not {k2}"
    )
    found.require(-1 <= min_score <= 1, "min_score", f"must be −1 to 1, not {min_score:g}")
    found.require(
        bool(amplify) or not (first_step or end_step or first_layer),
        "amplify",
        "must be given with first_step, end_step and first_layer",
    )
    found.require(
        not renoised or k2 <= k1,
        "renoised",
        f"must not be given with k2 = {k2}: no step may compute a region",
    )
    source = _word(found, "region", region or "probe", SOURCES)
    around = _word(found, "context", context, CONTEXTS) if context else DEFAULT_REGION.context
    amplification = _amplification(found, amplify) if amplify else Amplification()
    found.raise_if_any()

    plan = ExplicitReuse(reuse_steps=k1, region_end=k2, min_score=min_score, renoised=renoised)
    if regional:
        plan.region.CopyFrom(DEFAULT_REGION)
        plan.region.source, plan.region.context = source, around
        if source == plan_pb2.REGION_SOURCE_ATTENTION:
            plan.region.threshold = DEFAULT_ATTENTION_THRESHOLD
        for name, part in (("threshold", threshold), ("dilation", dilation), ("budget", budget)):
            if part is not None:
                setattr(plan.region, name, part)
        check_region(found, "region", plan.region)
    if amplify:
        plan.amplification.CopyFrom(amplification)
        plan.amplification.first_step, plan.amplification.end_step = first_step, end_step
        plan.amplification.first_layer = first_layer
        check_amplification(found, "amplify", plan.amplification, MAX_STEPS)
    found.raise_if_any()
    return plan


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "k1": int,
    "k2": int,
    "region": str,
    "threshold": float,
    "dilation": int,
    "budget": float,
    "context": str,
    "amplify": str,
    "first-step": int,
    "end-step": int,
    "first-layer": int,
    "min-score": float,
}
_SAID: Final = ("renoised",)  # parts that are said by their name alone


def parse_plan(text: str) -> ExplicitReuse:
    """The plan of "k1:2,k2:4,region:probe,amplify:contrast:0.5": arguments of `explicit_reuse`.

    Raises ChorusError (INVALID_FIELD).
    """
    arguments: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        field = name.replace("-", "_")
        if name not in _READ and name not in _SAID:
            raise invalid("plan", f"{name!r} is unknown; it is made of {', '.join((*_READ, *_SAID))}")
        if field in arguments:
            raise invalid(field, "comes twice")
        if name in _SAID:
            if value:
                raise invalid(field, f"takes no value, not {value!r}")
            arguments[field] = True
            continue
        try:
            arguments[field] = _READ[name](value)
        except ValueError:
            raise invalid(field, f"must be a number, not {value!r}") from None
    if "k1" not in arguments:
        raise invalid("k1", f"must be given, 1 to the number of steps − 1; such as k1:1, not {text!r}")
    return explicit_reuse(**arguments)


def plan_of_options(k1: int | None, **options: Any) -> ExplicitReuse | None:
    """The plan of a command's options, those that are None not given; None where none is."""
    given = {name: value for name, value in options.items() if value is not None}
    if k1 is not None:
        return explicit_reuse(k1, **given)
    if given:
        names = ", ".join(given)
        raise invalid("k1", f"must be given with {names}: 1 to the number of steps − 1")
    return None


def describe_region(region: RegionPlan) -> str:
    """For instance "probe, threshold 0.005, dilation 1, budget 50 %"."""
    words = [
        _named(SOURCES, region.source),
        f"threshold {region.threshold:g}",
        f"dilation {region.dilation}",
        f"budget {100 * region.budget:.0f} %",
    ]
    if region.context != plan_pb2.REGION_CONTEXT_NONE:
        words.append(f"{_named(CONTEXTS, region.context)} context")
    return ", ".join(words)


def describe_amplification(amplification: Amplification) -> str:
    """For instance "contrast 0.5, steps 1–2, from layer 3"; steps are counted from 1, both ends included."""
    words = [f"{_named(FORMS, amplification.form)} {amplification.strength:g}"]
    if amplification.end_step:
        words.append(f"steps {amplification.first_step + 1}–{amplification.end_step}")
    if amplification.first_layer:
        words.append(f"from layer {amplification.first_layer}")
    return ", ".join(words)


def _word(found: Violations, field: str, word: str, known: Mapping[str, int]) -> Any:
    found.require(word in known, field, f"must be one of {', '.join(known)}, not {word!r}")
    return known.get(word, 0)


def _amplification(found: Violations, text: str) -> Amplification:
    word, _, strength = text.partition(":")
    form = _word(found, "amplify", word, FORMS)
    try:
        return Amplification(form=form, strength=float(strength))
    except ValueError:
        found.require(
            False,
            "amplify",
            f"must be a form and its strength, 0 to {MAX_STRENGTH:g}, such as contrast:0.5, not {text!r}",
        )
        return Amplification()


def _named(known: Mapping[str, int], number: int) -> str:
    return next((word for word, found in known.items() if found == number), f"unknown ({number})")
