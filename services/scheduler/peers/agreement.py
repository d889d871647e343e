"""Decides which description of a model is in force when several denoisers serve it.

A request must not depend on the denoiser that it meets: denoisers that serve one model id differently do not
serve it together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from chorus.denoiser.v1 import denoiser_pb2
from chorus.denoiser.v1.denoiser_pb2 import ModelInfo

# Fields that describe the machine and the process, not the model.
_MAY_DIFFER: Final = ("seconds_per_step", "backend", "fallback_steps")
_FIELDS: Final = tuple(
    field.name for field in denoiser_pb2.ModelInfo.DESCRIPTOR.fields if field.name not in _MAY_DIFFER
)


@dataclass(frozen=True)
class Agreement:
    """Models of several denoisers.

    Attributes:
        models: the description in force, by model id.
        refused: fields that differ from the description in force, by denoiser and model id.
    """

    models: Mapping[str, ModelInfo]
    refused: Mapping[tuple[str, str], tuple[str, ...]]


def agree(
    known: Mapping[str, ModelInfo], answers: Mapping[str, Mapping[str, ModelInfo]], *, complete: bool
) -> Agreement:
    """Returns the models of all denoisers, and who is refused for which of them.

    A description stays in force as long as the answer of one denoiser agrees with it. Otherwise that of the
    first denoiser comes into force.

    Args:
        known: descriptions in force until now.
        answers: models of each denoiser by model id, the first denoiser first.
        complete: whether every denoiser has answered; otherwise known models that no answer has are kept.
    """
    models = {} if complete else dict(known)
    for model_id in dict.fromkeys(each for answer in answers.values() for each in answer):
        offered = [answer[model_id] for answer in answers.values() if model_id in answer]
        former = known.get(model_id, offered[0])
        agreeing = (each for each in offered if not find_differences(each, former))
        models[model_id] = next(agreeing, offered[0])
    refused = {
        (denoiser, model_id): fields
        for denoiser, answer in answers.items()
        for model_id, model in answer.items()
        if (fields := find_differences(model, models[model_id]))
    }
    return Agreement(models, refused)


def find_differences(first: ModelInfo, second: ModelInfo) -> tuple[str, ...]:
    """Returns the names of the fields in which two descriptions of one model must agree and do not."""
    return tuple(name for name in _FIELDS if getattr(first, name) != getattr(second, name))
