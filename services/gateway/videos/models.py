"""Endpoints of models: what is served, and the bounds of its videos."""

from __future__ import annotations

from typing import Literal

from chorus_client import Model, Range
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from services.gateway.errors import ApiError
from services.gateway.security.keys import Caller

router = APIRouter(prefix="/v1/models", tags=["models"])


class Bounds(BaseModel):
    """Valid values: `min`, `min + multiple` and so on, up to `max`."""

    min: int
    max: int
    multiple: int


class ModelDetails(BaseModel):
    """Bounds of the fields of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: Bounds
    height: Bounds
    width: Bounds
    steps: Bounds
    default_frames: int
    default_size: str
    default_steps: int
    frames_per_second: float | None
    seconds_per_step: float | None
    """Time of a step at the default size, as measured on the server."""
    max_text_tokens: int | None


class ModelObject(BaseModel):
    """A model that a request can name."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    """Always 0: the server does not record it."""
    owned_by: Literal["chorus"] = "chorus"
    chorus: ModelDetails


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.get("")
async def list_models(client: Caller) -> ModelList:
    """Lists the models, the default first."""
    return ModelList(data=[_build(model) for model in await client.models()])


@router.get("/{model_id}")
async def get_model(client: Caller, model_id: str) -> ModelObject:
    """Returns a model."""
    for model in await client.models():
        if model.id == model_id:
            return _build(model)
    raise ApiError(404, "model_not_found", f"there is no model {model_id[:64]!r}", param="model_id")


def _build(model: Model) -> ModelObject:
    frames, height, width = model.default_shape
    return ModelObject(
        id=model.id,
        chorus=ModelDetails(
            frames=_bounds(model.frames),
            height=_bounds(model.height),
            width=_bounds(model.width),
            steps=_bounds(model.steps),
            default_frames=frames,
            default_size=f"{width}x{height}",
            default_steps=len(model.default_sigmas) - 1,
            frames_per_second=model.frames_per_second or None,
            seconds_per_step=model.seconds_per_step or None,
            max_text_tokens=model.max_text_tokens or None,
        ),
    )


def _bounds(found: Range) -> Bounds:
    return Bounds(min=found.min, max=found.max, multiple=found.multiple)
