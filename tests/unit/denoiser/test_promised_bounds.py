"""Verifies that each bound of DenoiseRequest holds at both edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.errors import ChorusError

from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.request import parse_request
from tests.integration.denoiser.calls import request, reusing
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.fault("number-promises")

NAN = float("nan")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    return {"tiny": LoadedModel.load(save_tiny_model(tmp_path_factory.mktemp("model")))}


def changed(**fields: Any) -> denoiser_pb2.DenoiseRequest:
    message = request()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def shaped(**sizes: int) -> denoiser_pb2.DenoiseRequest:
    message = request()
    for name, value in sizes.items():
        setattr(message.shape, name, value)
    return message


def gained(count: int = 1, weight: float = 1.0) -> denoiser_pb2.DenoiseRequest:
    message = reusing(request(), "a" * 64, 1)
    for index in range(count):
        message.plan.gained.add(index=index, weight=weight)
    return message


def admitted(prompt: str = "x", norm: float = 1.0, size: int = 8) -> denoiser_pb2.DenoiseRequest:
    message = request()
    message.admission.prompt = prompt
    message.admission.retrieval_vector[:] = [norm] + [0.0] * (size - 1)
    message.vector_dim = size
    return message


Build = Callable[[Any], denoiser_pb2.DenoiseRequest]
CASES: list[tuple[str, Build, list[Any], list[Any]]] = [
    ("generation_id", lambda n: changed(generation_id="x" * n), [1, 128], [0, 129]),
    ("seed", lambda n: changed(seed=n), [0, 2**32, 2**64 - 1], []),
    ("retrieval_encoder_id", lambda n: changed(retrieval_encoder_id="x" * n), [1, 512], [0, 513]),
    ("vector_dim", lambda n: admitted(size=n), [1, 4096], [4097]),
    ("shape.frames", lambda n: shaped(frames=n), [1, 12], [0, 13, 2**32 - 1]),
    ("shape.height", lambda n: shaped(height=n), [8, 64], [7, 9, 65, 66]),
    ("shape.width", lambda n: shaped(width=n), [8, 64], [7, 9, 65, 66]),
    ("schedule.sigmas", lambda n: request(sigmas=shifted_schedule(n, 5.0)), [1, 150], [151, 201]),
    ("plan.gained", lambda n: gained(count=n), [0, 2048], [2049]),
    ("plan.gained", lambda x: gained(weight=x), [0.0, 1.0], [-0.001, 1.001, NAN]),
    ("plan.reuse_steps", lambda n: reusing(request(), "a" * 64, n), [1, 4], [5]),
    ("plan.donor.entry_id", lambda n: reusing(request(), "a" * n, 1), [64], [0, 63, 65]),
    ("admission.prompt", lambda n: admitted(prompt="x" * n), [1, 8192], [0, 8193]),
    ("admission.retrieval_vector", lambda x: admitted(norm=x), [0.9991, 1.0009], [0.9989, 1.0011, NAN]),
]


@pytest.mark.parametrize(("field", "build", "valid", "invalid"), CASES, ids=[case[0] for case in CASES])
def test_bound_holds_at_both_edges(
    models: dict[str, LoadedModel], field: str, build: Build, valid: list[Any], invalid: list[Any]
) -> None:
    for value in valid:
        assert field not in violated(models, build(value)), value
    for value in invalid:
        assert field in violated(models, build(value)), value


def violated(models: dict[str, LoadedModel], message: denoiser_pb2.DenoiseRequest) -> list[str]:
    try:
        parse_request(message, models)
    except ChorusError as error:
        return [violation.field for violation in error.violations]
    return []


def test_request_under_test_is_valid(models: dict[str, LoadedModel]) -> None:
    assert not violated(models, request())
    assert not violated(models, admitted())
