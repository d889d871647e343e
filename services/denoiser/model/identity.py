"""Digest of a model file: everything in it that changes latents.

A field is part of the digest unless IRRELEVANT lists it, so that a new field cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.contract.identity import canonical_digest
from services.denoiser.model.spec import ModelSpec

_CONTENT = "location or expected digest of files; the identity holds the digest of their content"
_REQUEST = "default of a request; the identity holds the value of the request"
_PIXELS = "changes the video that is decoded from the latents"

# Fields and sections that the digest leaves out, with the reason.
IRRELEVANT: Mapping[str, str] = {
    "weights.file": _CONTENT,
    "weights.sha256": _CONTENT,
    "adapters.file": _CONTENT,
    "adapters.sha256": _CONTENT,
    "host": "computes only runs that start from a donor, whose latents are not stored",
    "transformer.sizes": "location of values that are fields themselves",
    "transformer.dtype": "changes latents by rounding, as another device or backend does, not in content",
    "text.encoder": "location of the encoder; its id holds the digest of its content",
    "text.lexicon": "changes which donors are chosen, not which latents a model computes",
    "text.refiner.file": "location; the digest of its content is a field itself",
    "codec.file": _CONTENT,
    "codec.sha256": _CONTENT,
    "codec.tile": _PIXELS,
    "schedule.sigmas": _REQUEST,
    "schedule.shift": "changes the default of a request; the identity holds the request's noise levels",
    "bounds": "bounds on requests",
    "calibration": "changes how much of a donor is reused, not which latents a model computes",
    "video.frames": _REQUEST,
    "video.height": _REQUEST,
    "video.width": _REQUEST,
    "video.fps": _PIXELS,
    "video.upscale": _PIXELS,
}


def model_digest(spec: ModelSpec, *, fp8: bool) -> str:
    """Returns the SHA-256, lower-case hex, of all fields of a model file that change latents.

    Args:
        fp8: Whether the matrix products are computed in 8-bit floats. Unlike another type, device or backend,
            this changes latents by more than rounding.
    """
    return canonical_digest({"spec": _relevant(spec.model_dump(mode="json"), ""), "fp8": fp8})


def _relevant(value: Any, path: str) -> Any:
    """Returns a value without the fields below it that IRRELEVANT lists; an element has its list's path."""
    if isinstance(value, list):
        return [_relevant(element, path) for element in value]
    if not isinstance(value, dict):
        return value
    named = ((name, f"{path}.{name}".removeprefix("."), child) for name, child in value.items())
    return {name: _relevant(child, below) for name, below, child in named if below not in IRRELEVANT}
