"""Tests of the denoiser over gRPC: every field outside its bounds is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors

from services.contract.schedule import shifted_schedule
from services.contract.tensors import encode_tensor
from tests.integration.denoiser.calls import DIM, SECONDS, failure, request
from tests.tiny_model import ENCODER_ID, MAX_TOKENS, TEXT_DIM


async def test_unknown_model_is_rejected(stub: Any) -> None:
    what = request()
    what.model_id = "wan2.2-t2v-a14b"
    error = await failure(stub, what)
    assert error.reason == errors.UNKNOWN_MODEL
    assert error.metadata["available"] == "tiny"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Warm(denoiser_pb2.WarmRequest(model_id="other"), timeout=SECONDS)
    assert errors.from_rpc_error(caught.value, "denoiser").reason == errors.UNKNOWN_MODEL


def with_states(shape: tuple[int, ...]) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.token_states.CopyFrom(encode_tensor(np.zeros(shape, np.float32)))

    return change


def with_sigmas(*sigmas: float) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.schedule.sigmas[:] = sigmas
        what.plan.total_steps = max(1, len(sigmas) - 1)

    return change


def with_field(path: str, value: Any) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        *parents, name = path.split(".")
        owner: Any = what
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)

    return change


def with_vector(*values: float) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.admission.retrieval_vector[:] = values

    return change


def with_renoised_steps(steps: int) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.plan.reuse_steps, what.plan.renoised = steps, True

    return change


def with_draft(reuse_steps: int, draft_step: int) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.plan.reuse_steps, what.plan.draft_step = reuse_steps, draft_step

    return change


@pytest.mark.parametrize(
    ("change", "field_name", "bound"),
    [
        (with_field("generation_id", ""), "generation_id", "1 to 128"),
        (with_field("generation_id", "g" * 129), "generation_id", "1 to 128"),
        (with_field("shape.frames", 13), "shape.frames", "1 to 12"),
        (with_field("shape.height", 9), "shape.height", "steps of 4"),
        (with_field("shape.width", 1 << 31), "shape.width", "8 to 64"),
        (with_field("shape.width", 10), "shape.width", "in steps of 4"),
        (with_sigmas(1.0, 0.5, 0.6, 0.0), "schedule.sigmas", "decreasing"),
        (with_sigmas(1.0, float("nan"), 0.0), "schedule.sigmas", "decreasing"),
        (with_sigmas(1.0, 0.5), "schedule.sigmas", "end at 0"),
        (with_sigmas(), "schedule.sigmas", "2 to"),
        (with_sigmas(*shifted_schedule(151, 5.0)), "schedule.sigmas", "1 to 150"),
        (with_field("plan.total_steps", 5), "plan.total_steps", "must be 4"),
        (with_field("plan.reuse_steps", 5), "plan.reuse_steps", "0 to 4"),
        (with_renoised_steps(4), "plan.reuse_steps", "0 to 3"),
        (with_draft(0, 1), "plan.draft_step", "reuse_steps = 0 (at least 1) to 3"),
        (with_draft(2, 1), "plan.draft_step", "reuse_steps = 2 (at least 1) to 3"),
        (with_draft(2, 4), "plan.draft_step", "reuse_steps = 2 (at least 1) to 3"),
        (with_draft(4, 4), "plan.reuse_steps", "0 to 3"),
        (with_field("plan.reuse_steps", 1), "plan.donor", "must be set"),
        (with_field("plan.renoised", True), "plan.renoised", "reuse_steps of at least 1"),
        (with_field("plan.donor.entry_id", "0" * 64), "plan.donor", "must be set exactly if"),
        (with_field("admission.approximation.policy", "off"), "admission.approximation", "one of safe"),
        (with_field("plan.donor.entry_id", "../x"), "plan.donor.entry_id", "64 lower-case hex"),
        (with_field("conditioning_encoder_id", "clip@1"), "conditioning_encoder_id", ENCODER_ID),
        (with_states((5, TEXT_DIM + 1)), "token_states.shape", f"[L, {TEXT_DIM}]"),
        (with_states((MAX_TOKENS + 1, TEXT_DIM)), "token_states.shape", "elements"),
        (with_states((5,)), "token_states.shape", "2 dimensions"),
        (with_field("token_states.data", b"short"), "token_states.data", "bytes"),
        (with_field("vector_dim", 0), "vector_dim", "1 to 4096"),
        (with_field("retrieval_encoder_id", ""), "retrieval_encoder_id", "1 to 512"),
        (with_field("admission.prompt", "  "), "admission.prompt", "1 to 8192"),
        (with_vector(1.0), "admission.retrieval_vector", f"vector_dim = {DIM}"),
        (with_vector(*[1.0] * DIM), "admission.retrieval_vector", "L2-normalised"),
        (with_vector(*[float("nan")] * DIM), "admission.retrieval_vector", "L2-normalised"),
    ],
)
async def test_field_outside_its_bounds_is_named(
    stub: Any, change: Callable[[denoiser_pb2.DenoiseRequest], None], field_name: str, bound: str
) -> None:
    what = request()
    change(what)
    error = await failure(stub, what)
    assert error.reason == errors.INVALID_FIELD
    assert bound in {v.field: v.description for v in error.violations}[field_name]


async def test_all_invalid_fields_are_named_at_once(stub: Any) -> None:
    what = request()
    what.shape.frames = 0
    what.plan.total_steps = 9
    what.token_states.Clear()
    fields = {violation.field for violation in (await failure(stub, what)).violations}
    assert fields == {"shape.frames", "plan.total_steps", "token_states.dtype"}
