"""Verifies which results are admitted to the cache."""

from __future__ import annotations

import asyncio
from typing import cast
from unittest.mock import Mock

import pytest
import torch
from chorus_rpc import errors

from services.denoiser.admissions import Admissions
from services.denoiser.denoise import Result, Video
from services.denoiser.latent_cache import LatentCache
from services.denoiser.request import DenoiseJob


class RecordingCache:
    """Latent cache that admits everything."""

    async def admit(self, *_: object) -> str:
        return "entry"


def make_result(*, fell_back: bool) -> Result:
    return Result(
        video=Video(b"", 1, 1, 1, 1.0),
        latents={1: torch.zeros(1, 1, 1, 1)},
        side=None,
        steps_run=1,
        computed_steps=1.0,
        fell_back=fell_back,
        denoise_seconds=1.0,
        decode_seconds=0.0,
    )


@pytest.mark.fault("identity")
@pytest.mark.parametrize(
    ("fp8", "fell_back", "admitted"), [(False, True, True), (True, False, True), (True, True, False)]
)
async def test_latents_of_another_precision_than_the_identity_states_are_not_admitted(
    fp8: bool, fell_back: bool, admitted: bool
) -> None:
    job = cast(DenoiseJob, Mock(generation_id="g", model=Mock(fp8=fp8)))
    admissions = Admissions(cast(LatentCache, RecordingCache()), max_count=1, max_bytes=1 << 20)
    outcome = await admissions.start(job, "tenant", make_result(fell_back=fell_back))
    assert (outcome.entry_id == "entry") == admitted
    assert outcome.HasField("error") != admitted
    if not admitted:
        assert outcome.error.reason == errors.WRONG_STATE
        assert "8-bit floats" in outcome.error.message
    await admissions.close()


@pytest.mark.fault("swallowed-errors")
async def test_large_result_is_refused_only_while_another_waits() -> None:
    job = cast(DenoiseJob, Mock(generation_id="g", model=Mock(fp8=False)))
    admissions = Admissions(cast(LatentCache, RecordingCache()), max_count=8, max_bytes=1)
    first = admissions.start(job, "tenant", make_result(fell_back=False))
    refused = await admissions.start(job, "tenant", make_result(fell_back=False))
    assert refused.error.reason == errors.QUEUE_FULL
    assert "4 bytes of results, in addition to its own 4 bytes, already wait" in refused.error.message
    assert (await first).entry_id == "entry"
    await asyncio.sleep(0)  # its place is free once its callbacks have run
    assert (await admissions.start(job, "tenant", make_result(fell_back=False))).entry_id == "entry"
    await admissions.close()
