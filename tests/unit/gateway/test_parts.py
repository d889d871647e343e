"""Verifies small parts of the gateway: bearer tokens, frame rates that are kept, the error envelope."""

from __future__ import annotations

from typing import Any, cast

import pytest
from chorus.common.v1.errors_pb2 import ErrorReason
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_client import AsyncChorusClient, ChorusError, Model
from chorus_rpc import errors
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import Fault, build_body, from_chorus, invalid
from services.gateway.security.keys import read_token
from services.gateway.videos.frame_rates import FrameRates


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64))
def test_any_printable_key_is_read(key: str) -> None:
    assert read_token(f"Bearer {key}", required=True) == key
    assert read_token(f"bearer  {key} ", required=False) == key
    assert read_token(f"BEARER {key}", required=True) == key


@given(st.text(max_size=40))
def test_other_headers_are_refused_without_being_repeated(header: str) -> None:
    if header.strip().lower().startswith("bearer "):
        return
    with pytest.raises(ChorusError) as refused:
        read_token(header, required=False)
    assert refused.value.reason == errors.UNAUTHENTICATED
    assert len(header) < 12 or header not in refused.value.message


def test_missing_key_is_refused_if_it_is_required() -> None:
    assert read_token(None, required=False) is None
    with pytest.raises(ChorusError, match="Authorization: Bearer KEY"):
        read_token(None, required=True)


class Scheduler:
    """Lists one model, or fails; counts the calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: ChorusError | None = None
        self.rate = 8.0

    async def models(self) -> tuple[Model, ...]:
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        return (Model.from_proto(pb.Model(model_id="small", frames_per_second=self.rate)),)


async def test_frame_rates_are_read_once_a_minute_and_survive_a_fault() -> None:
    now = 1_000.0
    scheduler: Any = Scheduler()
    client = cast(AsyncChorusClient, scheduler)
    rates = FrameRates(lambda: now)
    assert [await rates.find("small", client) for _ in range(3)] == [8, 8, 8]
    assert (await rates.find("unknown", client), scheduler.calls) == (0, 1)
    now, scheduler.rate = now + 61, 16.0
    assert (await rates.find("small", client), scheduler.calls) == (16, 2)
    now, scheduler.fault = now + 61, errors.unavailable("denoiser", "gone")
    assert [await rates.find("small", client) for _ in range(2)] == [16, 16]
    assert scheduler.calls == 3, "it is not asked again at once"


def test_envelope_names_every_fault() -> None:
    error = invalid([Fault("seed", "too large"), Fault("lora", "no", "unsupported_parameter")])
    body = build_body(error)["error"]
    assert (body["param"], body["code"], body["type"]) == ("seed", "invalid_value", "invalid_request_error")
    assert [each["param"] for each in body["violations"]] == ["seed", "lora"]


def test_every_reason_of_the_contract_has_an_answer() -> None:
    for reason in ErrorReason.values():
        found = from_chorus(ChorusError(reason, "a message"))
        assert found.status in (400, 401, 403, 404, 409, 429, 500, 503)
        assert found.code == found.code.lower()
        assert (found.retry_after is not None) == (found.status in (429, 503))


def test_address_of_the_scheduler_is_not_in_the_answer() -> None:
    gone = ChorusError(
        errors.DEPENDENCY_UNAVAILABLE,
        "nothing answers at 10.0.0.7:7400",
        metadata={"service": "scheduler", "target": "10.0.0.7:7400"},
    )
    found = from_chorus(gone)
    assert "10.0.0.7" not in found.message
    assert found.status == 503
